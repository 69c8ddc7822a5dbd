"""The README keeps its word: its code prints what it says, its commands exist and show what they show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from redis_sessions.server import EmbeddedServer

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.DOTALL)
SESSIONS = re.findall(r"```console\n\$ (.*?)\n(.*?)```", README, re.DOTALL)
DEFAULT_URL = "redis://127.0.0.1:6379/0"


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with EmbeddedServer(directory=tmp_path_factory.mktemp("serve") / "data") as server:
        yield server.url


def run(*arguments, url):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"REDIS_URL": url, "PATH": ""},
        check=False,
    )


def timeless(printed):
    """Without what differs from one time to the next, and nothing else: times, sizes, the server's version."""
    printed = re.sub(r"(_ms\": |_seconds{.*} )[\d.e-]+", r"\1…", printed)
    return re.sub(r"[\d.,]+ (ms|MB)( ahead of| behind)?|(Valkey) [\d.]+", r"… \1\3", printed)


def test_its_code_prints_what_it_says_and_its_commands_show_what_they_show(url):
    assert len(EXAMPLES) == 3
    for code, printed in EXAMPLES:
        done = run("-W", "error", "-c", code.replace(DEFAULT_URL, url), url=url)
        assert (done.stderr, done.stdout) == ("", printed)
    assert len(SESSIONS) == 5
    for line, shown in SESSIONS:
        command, _, filtered = line.partition(" | ")
        program, *arguments = command.split()
        assert program == "redis-sessions"
        done = run("-m", "redis_sessions.cli", *arguments, url=url)
        assert done.returncode == 0, done.stderr
        printed = done.stdout
        if filtered:
            printed = subprocess.run(filtered.split(), input=printed, capture_output=True, text=True, check=True).stdout
        assert timeless(printed) == timeless(shown)


def test_its_typed_examples_type_check(tmp_path):
    typed = re.findall(r"```python typed\n(.*?)```", README, re.DOTALL)
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
    shown = run("-m", "redis_sessions.cli", "--help", url=DEFAULT_URL).stdout
    commands = set(re.findall(r"^  ([a-z]+)  ", shown.split("Commands:")[1], re.MULTILINE))
    documented = set(re.findall(r"^\| `redis-sessions ([a-z]+)", README, re.MULTILINE))
    assert commands == documented


def test_the_first_screen_is_a_screen():
    first_screen = README.split("## Try it")[0]
    assert first_screen.count("\n") <= 55
