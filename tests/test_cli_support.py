"""What the tests of the command line share. No tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli.app import app
from redis_sessions.cli.options import Options
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer

DAY_MS = 86_400_000
VARIABLES = (
    "REDIS_SESSIONS_URL",
    "REDIS_SESSIONS_PASSWORD_FILE",
    "REDIS_SESSIONS_NAMESPACE",
    "REDIS_SESSIONS_MAX_AGE",
    "REDIS_SESSIONS_CONFIG",
    "REDIS_SESSIONS_AGENTS",
    "REDIS_SESSIONS_MAX_TURNS",
    "REDIS_SESSIONS_MAX_LIFETIME",
    "REDIS_SESSIONS_MAX_CONTEXT",
    "REDIS_SESSIONS_REPLICAS",
    "REDIS_URL",
    "FORCE_COLOR",
    "NO_COLOR",
    "XDG_DATA_HOME",
    "PYTHONUNBUFFERED",
)
EVIL_KEYS = [
    "\x1b[2J\x1b]0;owned\x07",
    "[red]loud[/red]",
    "a\u202efdp.exe",
    "two\nlines\ttab",
    "日本語/レビュー#7",
    "back\\slash",
]
PROGRAM = [sys.executable, "-m", "redis_sessions"]
# A command line whose stores have other settings than the default ones.
CHANGED = """
from redis_sessions.cli import main, options
settings = options.Options.settings
options.Options.settings = lambda self: settings(self).model_copy(update={})
main()
"""

# A command line of a user without a name, a home or any rights: what it needs is imported before.
NOBODY = """
import os, sys
from redis_sessions.cli import app, main
from redis_sessions.legacy import atomic_file, file, transfer
from redis_sessions import server, store
os.setgroups([])
os.setgid(54321)
os.setuid(54321)
main()
"""


class Cli:
    """Runs commands on one namespace of one server, and looks behind them."""

    def __init__(self, url: str, namespace: str) -> None:
        self.url, self.namespace = url, namespace
        self.options = ["--url", url, "--namespace", namespace]
        self.raw = redis.Redis.from_url(url)
        self.keys = Keys(namespace)

    def __call__(self, command: str, *args: str | Path, code: int = 0) -> Any:
        return run(command, *self.options, *args, code=code)

    def runner(self, command: str, *args: str | Path) -> Any:
        """Run a command and judge nothing."""
        return CliRunner().invoke(app, [command, *self.options, *map(str, args)])

    def json(self, command: str, *args: str | Path, code: int = 0) -> Any:
        return self.result(self(command, "--json", *args, code=code).stdout)

    def result(self, line: str) -> Any:
        """A line of JSON without the namespace and the time that each has."""
        result = json.loads(line)
        assert result.pop("namespace") == self.namespace
        assert abs(result.pop("at_ms") - time.time() * 1000) < 60_000
        return result

    def plant(self, key: str, value: str = "id-1", **options: Any) -> None:
        self.raw.set(self.keys.session_id(key), value, **{"px": DAY_MS} | options)

    def value(self, key: str) -> Any:
        return self.raw.get(self.keys.session_id(key))

    def pttl_ms(self, key: str) -> Any:
        return self.raw.pttl(self.keys.session_id(key))


def run(*args: str | Path, code: int = 0, **options: Any) -> Any:
    """Run a command to its end; whatever it raises but its exit code is a failure, as is a line on stderr too many."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], **options)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit | None)
    if code >= exits.USAGE:
        assert result.stdout == ""
        assert re.fullmatch(r"redis-sessions: [^\n]+\n", result.stderr)
    return result


def without_variables() -> dict[str, str]:
    """This process's environment without what the program reads."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def spawn(*args: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start the program as a process of its own, in a session of its own; its streams are pipes by default."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = without_variables() | options.pop("env", {})
    return subprocess.Popen([*PROGRAM, *map(str, args)], env=environment, start_new_session=True, **{**streams, **options})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield server.url


@contextmanager
def as_nobody() -> Iterator[None]:
    """Programs are those of a user who has no rights. Skips where that can't be."""
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys.modules[__name__], "PROGRAM", [sys.executable, "-c", NOBODY])
        patched.delenv("HOME", raising=False)
        yield


def program_with(**update: int) -> list[str]:
    """The program, with these settings of its stores."""
    return [sys.executable, "-c", CHANGED.format(update)]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Redis is away, nothing waits for it: not this process, and no program that it starts."""
    settings = Options.settings
    monkeypatch.setattr(Options, "settings", lambda self: settings(self).model_copy(update={"deadline_ms": 100}))
    monkeypatch.setattr(sys.modules[__name__], "PROGRAM", program_with(deadline_ms=100))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(url: str, namespace: str) -> Iterator[Cli]:
    cli = Cli(url, namespace)
    yield cli
    if leftover := list(cli.raw.scan_iter(f"{namespace}*")):
        cli.raw.delete(*leftover)
    cli.raw.close()
