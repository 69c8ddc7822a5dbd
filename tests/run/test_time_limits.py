"""`run --timeout`: an agent that hangs is ended with all that it started, and its session kept."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from redis_sessions.agents import get_agent
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run import process as child
from redis_sessions.cli.run.process import Child, Outcome
from redis_sessions.cli.run.streams import OutputBuffer
from redis_sessions.cli.signals import Signals
from tests.run.stage import FAMILY, HANG, MIB, REFUSED, SAID, TURN, E, Stage


@pytest.mark.parametrize("option", ["--on-outage=run", "--verbose", "--quiet"])
def test_an_agent_that_hangs(stage: Stage, time_is_over: Callable[[], None], option: str) -> None:
    stage.plant()
    stage.script(resumed=[["err", "working\n"], *FAMILY])
    process = stage.start("--timeout", "30m", option, "--result", str(stage.result_file))
    for _ in range(2):
        stage.hear("ready")
    time_is_over()
    done = stage.finish(process)
    assert (done.code, done.out) == (124, b"")
    assert done.err == b"working\nredis-sessions: the agent was ended after 30m (--timeout)\n"
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()
    assert stage.counters == (0, 0, 0)
    assert stage.result["exit_code"] == 124


def test_a_refusal_after_the_time_limit_is_ignored(stage: Stage, time_is_over: Callable[[], None]) -> None:
    stage.plant()
    stage.script(resumed=[["on", "SIGTERM", REFUSED], *HANG])
    process = stage.start("--timeout", "30m")
    stage.hear("ready")
    time_is_over()
    assert stage.finish(process).code == 124
    assert len(stage.starts) == 1
    assert stage.kept()


def test_an_agent_that_ends_its_turn_on_sigterm_has_time_to_exit(stage: Stage, time_is_over: Callable[[], None]) -> None:
    saves = [["flood", "err", "saving\n", 2 * MIB], ["tell", "flushed"], ["exit", 0]]
    stage.script(fresh=[["on", "SIGTERM", [*SAID, *saves]], *HANG])
    process = stage.start("--timeout", "30m", stderr=subprocess.DEVNULL)
    stage.hear("ready")
    time_is_over()
    done = stage.finish(process)
    assert len(stage.told("flushed")) == 1
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.saved(E)


def test_an_agent_that_hangs_and_ignores_sigterm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead_s = 0
    monkeypatch.setattr(child, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s))
    stage.put_on(monkeypatch)

    def let_time_pass() -> None:
        nonlocal ahead_s
        for event in ("ready", "term"):
            for _ in range(2):
                stage.hear(event)
            ahead_s += 3600

    deaf = [["on", "SIGTERM", [["tell", "term"]]], *HANG]
    stage.script(fresh=[["child", deaf], *deaf])
    run = Child(
        command=[str(stage.binaries / "claude")],
        environment=dict(os.environ),
        spool=None,
        observer=RunObserver(get_agent("claude")),
        output=OutputBuffer(hold=False),
        signals=Signals(),
        deadline_s=time.monotonic() + 1800.0,
    )
    clock = threading.Thread(target=let_time_pass)
    clock.start()
    assert run.run() == Outcome(code=-signal.SIGKILL, ended_for="timeout")
    clock.join()
    assert len(stage.told("term")) == 2
    assert stage.all_gone()
