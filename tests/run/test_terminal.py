"""`run` at a terminal: the agent reads from it and is in its foreground."""

from __future__ import annotations

import os
import pty
import termios
from contextlib import ExitStack

import pytest

from tests.run.stage import FAMILY, REFUSED, RESTARTED, SAID, TURN, E, Stage
from tests.run.terminal import Terminal
from tests.servers import wait_until


@pytest.mark.parametrize("planted", [False, True])
def test_an_agent_reads_from_the_terminal(stage: Stage, *, planted: bool) -> None:
    if planted:
        stage.plant()
    stage.script(resumed=REFUSED, fresh=[["line"], *SAID])
    with Terminal(stage.start_by) as screen:
        while len(stage.told("start")) < 1 + planted:
            stage.hear("start")
        screen.type(b"yes\n")
        assert stage.hear("read")["size"] == 4
        # At a terminal it is one stream.
        assert (screen.wait(), screen.shown) == (0, f"{RESTARTED * planted}yes\n{TURN}")
    assert stage.saved(E)


def test_ctrl_c_at_a_terminal(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=FAMILY)
    with Terminal(stage.start_by) as screen:
        for _ in range(2):
            stage.hear("ready")
        # The wrapper gives the terminal away once the agent runs.
        wait_until(lambda: screen.in_front() != screen.process.pid, "the agent in the foreground")
        screen.type(termios.tcgetattr(screen.ours)[6][termios.VINTR])
        assert (screen.wait(), screen.shown) == (130, "^C")
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()


def test_a_terminal_that_is_not_the_controlling_one(stage: Stage) -> None:
    """As a supervisor may give it: without job control."""
    stage.script()
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        stack.callback(os.close, theirs)
        done = stage.run(stdin=theirs)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
