"""`run --timeout`: an agent that hangs is ended with all that it started, and its session kept."""

from __future__ import annotations

import os
import signal
import time

import pytest

from redis_sessions.agents import get_agent
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run import process as child
from redis_sessions.cli.run.process import Child, Outcome
from redis_sessions.cli.run.streams import OutputBuffer
from redis_sessions.cli.signals import Signals
from tests.run.stage import FAMILY, HANG, REFUSED, Stage


@pytest.mark.parametrize("option", ["--on-outage=run", "--verbose", "--quiet"])
def test_an_agent_that_hangs(stage: Stage, option: str) -> None:
    stage.plant()
    stage.script(resumed=[["err", "working\n"], *FAMILY])
    done = stage.run("--timeout", "1s", option, "--result", str(stage.result_file))
    assert (done.code, done.out) == (124, b"")
    assert done.err == b"working\nredis-sessions: the agent was ended after 1s (--timeout)\n"
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()
    assert stage.counters == (0, 0, 0)
    assert stage.result["exit_code"] == 124


def test_a_refusal_after_the_time_limit_is_ignored(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["on", "SIGTERM", REFUSED], *HANG])
    assert stage.run("--timeout", "1s").code == 124
    assert len(stage.starts) == 1
    assert stage.kept()


def test_an_agent_that_hangs_and_ignores_sigterm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "TERMINATED_AFTER_S", 0.2)
    stage.put_on(monkeypatch)
    deaf = [["on", "SIGTERM", [["tell", "term"]]], *HANG]
    stage.script(fresh=[["child", deaf], *deaf])
    run = Child(
        command=[str(stage.binaries / "claude")],
        environment=dict(os.environ),
        spool=None,
        observer=RunObserver(get_agent("claude")),
        output=OutputBuffer(hold=False),
        signals=Signals(),
        deadline_s=time.monotonic() + 1.0,
    )
    assert run.run() == Outcome(code=-signal.SIGKILL, ended_for="timeout")
    assert len(stage.told("term")) == 2
    assert stage.all_gone()
