"""The reference that the docstrings give: nothing public is left out, and each error is named where it is raised."""

from __future__ import annotations

import ast
import inspect

from redis_sessions import AsyncSessionStore, SessionStore, async_store


def methods(kind):
    """Public methods by name, constructors of other names among them."""
    found = {name: getattr(value, "__func__", value) for name, value in vars(kind).items() if not name.startswith("_")}
    return {name: value for name, value in found.items() if inspect.isfunction(value)}


class TestTheFlavours:
    sync, other = methods(SessionStore), methods(AsyncSessionStore)

    def test_they_have_the_same_methods_with_the_same_parameters(self):
        assert set(self.sync) - {"close"} == set(self.other) - {"aclose"}
        for name in set(self.sync) - {"close"}:
            sync, other = (inspect.signature(kind[name]) for kind in (self.sync, self.other))
            assert list(sync.parameters) == list(other.parameters)
            for parameter in set(sync.parameters) - {"run"}:
                assert sync.parameters[parameter] == other.parameters[parameter]

    def test_they_say_the_same(self):
        for name in set(self.sync) - {"close"}:
            assert inspect.getdoc(self.other[name]).startswith(inspect.getdoc(self.sync[name])), name
        assert inspect.getdoc(AsyncSessionStore.resume).endswith("gives the lease back before it goes on.")

    def test_what_an_editor_reads_in_the_source_is_how_the_other_begins(self):
        [kind] = [node for node in ast.parse(inspect.getsource(async_store)).body if isinstance(node, ast.ClassDef)]
        for node in kind.body:
            if getattr(node, "name", "_").startswith("_") or node.name == "aclose":
                continue
            summary, same, _ = ast.get_docstring(node).partition(f". Same as SessionStore.{node.name}.")
            assert same, node.name
            assert inspect.getdoc(self.sync[node.name]).startswith(summary), node.name
