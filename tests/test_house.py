"""The rules of the house: arrows one way, one package knows redis, only the command line reads the environment or prints."""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from pathlib import Path

import redis_sessions
from tests.over import over

ROOT = Path(redis_sessions.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

# What each folder, or file of the top level, may import; nothing here leads back, so there are no circles.
_BASE = {"errors", "forks", "keys", "settings"}
_STORE = _BASE | {"operations", "client", "resume", "legacy", "store", "doctor", "agents"}
ARROWS = {
    "errors": set(),
    "keys": {"errors"},
    "settings": {"errors"},
    "forks": set(),
    "operations": _BASE,
    "client": _BASE | {"operations"},
    "resume": _BASE | {"operations"},
    "legacy": _BASE | {"operations"},
    "agents": {"errors", "operations", "resume"},
    "doctor": _BASE | {"operations", "agents"},
    "adapters": {"errors", "agents", "resume"},
    "store": _STORE,
    "metrics": _STORE,
    "testing": _STORE,
    "server": {"errors"},
    "__init__": _STORE,
    "__main__": {"cli"},
    "demo": {*_STORE, "__init__", "metrics", "testing", "server"},
    "cli": {*_STORE, "__init__", "metrics", "testing", "server", "demo"},
}


def place(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Every name that a file imports, with its package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


class TestEveryFile:
    @over("path", FILES)
    def test_it_imports_only_what_its_folder_may(self, path):
        ours = [name.split(".")[1] for name in imports(path) if name.startswith("redis_sessions.")]
        folders = {name if name in ARROWS else "__init__" for name in ours} - {place(path)}
        assert folders <= ARROWS[place(path)]

    @over("path", FILES)
    def test_only_the_client_knows_redis(self, path):
        if place(path) not in ("client", "testing"):
            assert not {name.split(".")[0] for name in imports(path)} & {"redis", "fakeredis", "hiredis"}

    @over("path", FILES)
    def test_only_the_command_line_and_the_demo_read_the_environment_or_print(self, path):
        if place(path) not in ("cli", "demo"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Name):
                    assert node.id not in ("print", "input")
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "sys"):
                    assert node.attr not in ("environ", "getenv", "stdin", "stdout", "stderr", "argv")

    @over("path", FILES)
    def test_the_core_depends_on_no_more_than_it_says(self, path):
        if place(path) not in ("cli", "demo", "metrics", "testing", "server"):
            foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
            assert foreign <= {"redis", "hiredis", "pydantic", "redis_sessions"}

    @over("path", FILES)
    def test_it_says_what_it_is_for(self, path):
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_a_class_name_means_one_thing():
    named = Counter(
        node.name.lstrip("_")
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, times in named.items() if times > 1] == []


def _messages(path):
    """The text of every error and remedy that a file writes, braces for what is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "")[:1].isupper():
            for value in (*node.args, *(each.value for each in node.keywords if each.arg == "remedy")):
                if isinstance(value, ast.Constant | ast.JoinedStr):
                    parts = getattr(value, "values", [value])
                    yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)


@over("path", FILES)
def test_errors_of_the_library_speak_python_and_those_of_the_command_line_speak_of_options(path):
    for text in _messages(path):
        if place(path) in ("cli", "demo"):
            assert not re.search(r"\w_ms\b|\bpass\b|StoreSettings|\bstore\.\w|\w\(\)", text), text
        elif "redis-sessions" not in text:  # a whole command may be a remedy anywhere
            assert not re.search(r"(?<![\w-])--[a-z]", text), text
