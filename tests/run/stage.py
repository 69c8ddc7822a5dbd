"""Shared by the tests of `run`: a stage, on which stand-ins for agents do what a script says. No tests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_sessions.agents import known_agents
from tests import test_cli_support
from tests.run.starter import Starter
from tests.test_cli_support import DAY_MS, PROGRAM, Cli, spawn, without_variables

HERE = Path(__file__).parent
DEADLINE_S = 30.0
KEY = "acme/shop#42:reviewer"
R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
AGENTS = ("claude", "codex", "gemini", "opencode", "copilot")
COMMANDS = {
    "claude": ["claude", "-p", "--output-format", "json", "go on"],
    "codex": ["codex", "exec", "--json", "-m", "o", "go on"],
    "gemini": ["gemini", "-p", "go on"],
    "opencode": ["opencode", "run", "--format", "json", "go on"],
    "copilot": ["copilot", "-p", "go on"],
}
CLAUDE = COMMANDS["claude"]
INIT = '{"type":"system","subtype":"init","session_id":"' + E + '"}\n'
TURN = '{"type":"result","subtype":"success","is_error":false,"num_turns":1,"session_id":"' + E + '","result":"hi"}\n'
GONE = f"No conversation found with session ID: {R}\n"
REFUSED = [["err", GONE], ["exit", 1]]
RESTARTED = f"redis-sessions: session {R} was refused (gone): started fresh\n"
SAID = [["out", TURN]]
HANG = [["tell", "ready"], ["pause"]]
FAMILY = [["child", HANG], *HANG]
MIB = 1024 * 1024
CLOCK = """
import os, time, types
from redis_sessions.cli import main
from redis_sessions.cli.run import process
over = os.environ["STAGE"] + "/over"
process.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 3600 * os.path.exists(over))
main()
"""
PATIENT = """
from redis_sessions.cli import main
from redis_sessions.cli.run import process
process.GRACE_S = 3600.0
main()
"""


@dataclass
class Done:
    """A run that has ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def said(self) -> list[str]:
        """What the wrapper itself said on stderr."""
        return [line for line in self.err.decode("utf-8", "replace").splitlines() if line.startswith("redis-sessions: ")]


def done(code: int, out: bytes, err: bytes) -> Done:
    assert b"Traceback" not in err, err.decode()
    return Done(code, out, err)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def resumed(agent: str, session_id: str = R, command: list[str] | None = None) -> list[str]:
    """The command of an agent with the resume argument where it goes."""
    command = command or COMMANDS[agent]
    match agent:
        case "codex":
            return [*command[:-1], "resume", session_id, command[-1]]
        case "opencode":
            return [*command[:2], f"--session={session_id}", *command[2:]]
    return [agent, f"--resume={session_id}", *command[1:]]


class Stage:
    """A directory with stand-ins, their script and what they told; closing it ends all of them that are left."""

    def __init__(self, directory: Path, cli: Cli, starter: Starter) -> None:
        self.directory, self.cli, self._starter = directory, cli, starter
        self.binaries = directory / "bin"
        self.binaries.mkdir(parents=True)
        source = f"#!{sys.executable} -IS\n{(HERE / 'stand_in_agent.py').read_text()}"
        first = self.binaries / AGENTS[0]
        first.write_text(source)
        first.chmod(0o700)
        for name in {name for agent in known_agents() for name in agent.executables} - {first.name}:
            os.link(first, self.binaries / name)
        os.mkfifo(directory / "told")
        self._told = os.open(directory / "told", os.O_RDONLY | os.O_NONBLOCK)
        self._heard: list[dict[str, Any]] = []
        self._rest = b""
        self._started: list[subprocess.Popen[bytes]] = []
        self._doors: dict[str, int] = {}
        self.result_file = directory / "result.json"

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        while not self._read(0.0):
            for told in self.log:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(told["pid"], signal.SIGKILL)
            if self._read(0.05):
                break
        for descriptor in (self._told, *self._doors.values()):
            os.close(descriptor)
        shutil.rmtree(self.directory)

    # -- what they do

    def script(self, fresh: list[Any] | None = None, resumed: list[Any] | None = None) -> None:
        both = {"fresh": SAID if fresh is None else fresh, "resumed": SAID if resumed is None else resumed}
        (self.directory / "script.json").write_text(json.dumps(both))
        for steps in both.values():
            for name, *given in steps:
                for step in given[-1] if name in ("child", "orphan", "on") else [[name, *given]]:
                    if step[0] == "await":
                        self._door(step[1])

    def go(self, name: str) -> None:
        """Let go on who awaits that."""
        os.write(self._doors[name], b"x")

    def _door(self, name: str) -> None:
        if name not in self._doors:
            os.mkfifo(self.directory / name)
            self._doors[name] = os.open(self.directory / name, os.O_RDWR)

    # -- running

    @property
    def environment(self) -> dict[str, str]:
        return {
            "STAGE": str(self.directory),
            "PATH": f"{self.binaries}:{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }

    def put_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What this process itself starts is on this stage too."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def arguments(self, *options: str, command: list[str] | None = None, key: str = KEY) -> list[str]:
        return ["run", key, *self.cli.options, *options, "--", *(CLAUDE if command is None else command)]

    def start(self, *options: str, command: list[str] | None = None, key: str = KEY, **how: Any) -> subprocess.Popen[bytes]:
        environment = self.environment | how.pop("env", {})
        process = spawn(*self.arguments(*options, command=command, key=key), env=environment, **how)
        self._started.append(process)
        return process

    def run(
        self, *options: str, command: list[str] | None = None, given: bytes | None = None, key: str = KEY, **how: Any
    ) -> Done:
        """Run it to its end. One that nothing is special about is a fork of the starter."""
        if how.keys() <= {"env"} and test_cli_support.PROGRAM is PROGRAM:
            environment = without_variables() | self.environment | how.get("env", {})
            arguments = self.arguments(*options, command=command, key=key)
            return done(*self._starter.run(arguments, environment, given, DEADLINE_S))
        if given is not None:
            how["stdin"] = subprocess.PIPE
        return self.finish(self.start(*options, command=command, key=key, **how), given)

    def launch(self, *words: str, env: Mapping[str, str] | None = None, **how: Any) -> subprocess.Popen[bytes]:
        """Start any program on this stage, in a session of its own; its streams are pipes by default."""
        environment = {**os.environ, **self.environment, **(env or {})}
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
        process = subprocess.Popen(words, env=environment, start_new_session=True, **streams)
        self._started.append(process)
        return process

    def start_by(self, *starter: str, options: Sequence[str] = (), **how: Any) -> subprocess.Popen[bytes]:
        """Have another program start it, by the words that follow."""
        return self.launch(*starter, *test_cli_support.PROGRAM, *self.arguments(*options), **how)

    def start_in_shell(self, script: str, *options: str, **how: Any) -> subprocess.Popen[bytes]:
        """Have a shell start it, where `script` says `exec "$@"`."""
        return self.start_by("/bin/sh", "-c", script, "sh", options=options, **how)

    def finish(self, process: subprocess.Popen[bytes], given: bytes | None = None) -> Done:
        out, err = process.communicate(given, timeout=DEADLINE_S)
        return done(process.returncode, out or b"", err or b"")

    # -- what they told

    @property
    def log(self) -> list[dict[str, Any]]:
        path = self.directory / "log"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def starts(self) -> list[list[str]]:
        return [told["argv"] for told in self.log if told["event"] == "start"]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [told for told in self.log if told["event"] == event]

    def hear(self, event: str) -> dict[str, Any]:
        """Wait until one of them tells this; each is heard once."""
        give_up_at_s = time.monotonic() + DEADLINE_S
        while True:
            for number, told in enumerate(self._heard):
                if told["event"] == event:
                    return self._heard.pop(number)
            assert time.monotonic() < give_up_at_s, f"nobody told {event}: {self._heard}"
            self._read(1.0)

    def all_gone(self, within_s: float = DEADLINE_S) -> bool:
        """Wait until no process of theirs is left."""
        give_up_at_s = time.monotonic() + within_s
        while not (gone := self._read(max(0.0, give_up_at_s - time.monotonic()))) and time.monotonic() < give_up_at_s:
            pass
        return gone

    def _read(self, wait_s: float) -> bool:
        """Take in what was told; whether nobody holds the FIFO open."""
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        poll.poll(wait_s * 1000)
        try:
            piece = os.read(self._told, 65_536)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._heard += [json.loads(line) for line in lines]
        return not piece

    # -- what is in Redis

    def plant(self, session_id: str = R, key: str = KEY) -> None:
        self.cli.plant(key, session_id, px=DAY_MS // 2)

    def stored(self, key: str = KEY) -> str | None:
        value = self.cli.value(key)
        return None if value is None else value.decode()

    def kept(self, session_id: str = R, key: str = KEY) -> bool:
        """Whether it is there with the TTL it was planted with."""
        return self.stored(key) == session_id and self.cli.pttl_ms(key) <= DAY_MS // 2

    def saved(self, session_id: str, key: str = KEY) -> bool:
        """Whether it is there with a whole TTL."""
        return self.stored(key) == session_id and self.cli.pttl_ms(key) > DAY_MS // 2

    @property
    def counters(self) -> tuple[int, int, int]:
        """Resumes, fresh starts, resume failures."""
        names = ("resumes_total", "fresh_starts_total", "resume_failures_total")
        values = self.cli.raw.mget([self.cli.keys.counter(name) for name in names])
        return tuple(int(value or 0) for value in values)  # type: ignore[return-value]

    def wait_until_asked_in_vain(self) -> None:
        """Wait until somebody asks for a conversation that another one runs."""
        with redis.Redis.from_url(self.cli.url, socket_timeout=DEADLINE_S) as raw, raw.monitor() as monitor:
            for command in monitor.listen():
                if "EVALSHA" in command["command"].upper() and self.cli.namespace in command["command"]:
                    return

    def leased(self, key: str = KEY) -> bool:
        return bool(self.cli.raw.exists(self.cli.keys.lease(key)))

    @property
    def result(self) -> Any:
        assert self.result_file.stat().st_mode & 0o777 == 0o600
        return json.loads(self.result_file.read_text())


@contextlib.contextmanager
def staged(directory: Path, cli: Cli, starter: Starter) -> Iterator[Stage]:
    """A stage, closed at the end."""
    stage = Stage(directory / "stage", cli, starter)
    try:
        yield stage
    finally:
        stage.close()
