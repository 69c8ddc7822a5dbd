"""`run` ends when its agent does, with all that the agent printed, whatever the agent left running."""

from __future__ import annotations

import os
import subprocess

import pytest

from redis_sessions.agents import get_agent
from redis_sessions.agents.judge import RunObserver
from redis_sessions.cli.run import process as child
from redis_sessions.cli.run.streams import OutputBuffer
from redis_sessions.cli.signals import Signals
from tests.run.stage import DEADLINE_S, MIB, TURN, E, Stage
from tests.servers import exists, wait_until


def test_a_process_the_agent_left_does_not_delay_the_end(stage: Stage) -> None:
    """It still has all of the agent's own output, however slowly that is read."""
    stage.script(fresh=[["child", [["pause"]]], ["out", TURN], ["flood", "out", "yyyyyyyyy\n", MIB], ["out", "the end"]])
    process = stage.start()
    stage.hear("child")
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.wait(timeout=DEADLINE_S) == 0
    assert out == TURN.encode() + (b"yyyyyyyyy\n" * (MIB // 10 + 1))[:MIB] + b"the end"
    assert stage.saved(E)
    assert not stage.all_gone(within_s=0.0)


class SlowBuffer(OutputBuffer):
    """Takes the first piece only after the agent has ended."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(hold=True)
        self.stage = stage
        self.taken = b""

    def put(self, descriptor: int, piece: bytes) -> None:
        if not self.taken:
            agent = self.stage.hear("start")["pid"]
            wait_until(lambda: not exists(agent), "the end of the agent")
        self.taken += piece


def test_output_in_the_pipe_at_the_end_is_not_lost(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it is read, and whatever else holds that pipe open."""
    monkeypatch.setattr(child, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(child, "_LEFTOVERS_S", 0.0)
    stage.script(fresh=[["flood", "out", "line\n", 40_000], ["child", [["pause"]]]])
    slow = SlowBuffer(stage)
    run = child.Child(
        command=[str(stage.binaries / "claude")],
        environment={**os.environ, **stage.environment},
        spool=None,
        observer=RunObserver(get_agent("claude")),
        output=slow,
        signals=Signals(),
        deadline_s=None,
    )
    assert run.run() == child.Outcome(code=0)
    assert slow.taken == b"line\n" * 8_000


def test_a_child_that_keeps_printing_does_not_delay_the_end(stage: Stage) -> None:
    printing = [["flood", "out", "z\n", MIB], ["tell", "printing"], ["flood", "out", "z\n", 1 << 40]]
    stage.script(fresh=[["child", printing], ["await", "go"], ["out", "\n" + TURN]])
    process = stage.start(stdout=subprocess.DEVNULL)
    stage.hear("printing")
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.err) == (0, b"")
    assert stage.all_gone()
