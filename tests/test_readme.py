"""The README and the manual: code and console sessions print what the pages show, and every command exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys

import pytest
import typer

from redis_sessions.cli.app import app
from tests.manual import PAGES, ROOT, blocks, play, prose, read, timeless
from tests.over import over

COMMANDS = typer.main.get_command(app).commands
INLINE = [(name, line) for name in PAGES for line in re.findall(r"`redis-sessions ([^`]+)`", prose(name))]


@pytest.mark.parametrize("name", PAGES)
def test_blocks_print_what_the_page_shows(name, tmp_path):
    for block, printed in play(name, tmp_path):
        assert timeless(printed) == timeless(block.text)


def test_there_are_many_blocks_to_run():
    every = [block for name in PAGES for block in blocks(name)]
    counts = {language: sum(block.language == language for block in every) for language in ("python", "console", "sh")}
    assert counts["python"] > 10
    assert counts["console"] > 10
    assert counts["sh"] > 5
    assert {block.language for block in every} == {"python", "console", "sh", "text", "toml"}
    assert {block.info for block in every if block.language == "console"} == {"", "exits 1", "exits 2"}


def test_typed_examples_pass_mypy(tmp_path):
    typed = [block.text for name in PAGES for block in blocks(name) if block.info == "typed"]
    assert len(typed) == 2
    for number, code in enumerate(typed):
        (tmp_path / f"example{number}.py").write_text(code)
    options = ["--strict", "--ignore-missing-imports", "--no-warn-return-any", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *map(str, tmp_path.glob("*.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_command_is_documented_and_exists():
    documented = re.findall(r"^\| `redis-sessions ([a-z]+)", read("operations"), re.MULTILINE)
    assert sorted(documented) == sorted(COMMANDS)


@over(("name", "line"), INLINE)
def test_a_command_in_the_text_parses(name, line):
    """It is not run, but its name, its options and the number of its arguments are right; or it is only named."""
    command, *words = shlex.split(line.partition(" > ")[0])
    if words:
        COMMANDS[command].make_context(command, words)
    assert command in COMMANDS


def test_there_are_commands_in_the_text():
    assert len(INLINE) > 40


def test_continuous_integration_reads_the_line_that_runs_the_tests():
    pattern = re.search(r"grep -m 1 -E '(.*)' README\.md", (ROOT / ".ci/run").read_text())[1]
    lines = [line for line in read("README").splitlines() if re.search(pattern, line)]
    assert lines == ["python3 -m venv .venv && .venv/bin/pip install -q '.[all]' && .venv/bin/python -m pytest"]
