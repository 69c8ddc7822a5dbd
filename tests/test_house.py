"""The rules of the house: arrows one way, few files know redis, only the command line reads the environment or prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import redis_sessions

ROOT = Path(redis_sessions.__file__).parent
# A file imports only from those before it.
ORDER = """
    errors settings keys acl commands scripts ops report scan retime files shelf json_pairs legacy migrate
    verdicts evidence output placement recognise agents findings checks access upkeep doctor turn resume adapters
    refusals exchange wire urls connections pools sentinels clusters risks client
    keeper runner base_store store async_store watches metrics testing server __init__
""".split()  # noqa: SIM905
KNOW_REDIS = {"refusals", "exchange", "connections", "pools", "sentinels", "clusters", "risks", "client", "testing"}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imports(path):
    """Every name that a file imports, with its package."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_its_place_in_the_order():
    assert {module_of(path) for path in FILES} - {"cli"} == set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryFile:
    def test_it_imports_only_from_those_before_it(self, path):
        module = module_of(path)
        for name in imports(path):
            package, _, rest = name.partition(".")
            if package == "redis_sessions" and module != "cli":
                other = rest.split(".")[0]
                assert other in ORDER[: ORDER.index(module)], f"{module} imports {other}"

    def test_only_few_know_redis(self, path):
        if module_of(path) not in KNOW_REDIS:
            assert not [name for name in imports(path) if name.split(".")[0] in ("redis", "fakeredis", "hiredis")]

    def test_only_the_command_line_reads_the_environment_or_prints(self, path):
        if module_of(path) != "cli":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Name):
                    assert node.id not in ("print", "input")
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "sys"):
                    assert node.attr not in ("environ", "getenv", "stdin", "stdout", "stderr", "argv")

    def test_it_has_fewer_than_three_hundred_lines(self, path):
        assert len(path.read_text().splitlines()) < 300

    def test_it_says_what_it_is_for(self, path):
        assert ast.get_docstring(ast.parse(path.read_text()))


def test_the_core_depends_on_no_more_than_it_says():
    allowed = {"redis", "pydantic", "redis_sessions"}
    import sys

    for path in FILES:
        if module_of(path) in ("cli", "metrics", "testing", "server"):
            continue
        foreign = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names) - allowed
        assert not foreign, path


TESTS = sorted(Path(__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(Path(__file__).parent)))
def test_a_file_of_the_tests_has_fewer_than_three_hundred_lines(path):
    assert len(path.read_text().splitlines()) < 300


def test_the_readme_shows_every_file_in_its_order():
    house = (Path(__file__).parents[1] / "README.md").read_text().split("## How it is built")[1].split("\n## ")[0]
    shown = [name for row in re.findall(r"^\| (`.*?) \|", house, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)]
    assert shown == [*(name for name in ORDER if name != "__init__"), "cli"]
