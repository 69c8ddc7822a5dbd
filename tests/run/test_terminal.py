"""`run` at a terminal: the agent reads from it and is in its foreground."""

from __future__ import annotations

import os
import pty
import sys
import termios
import threading
from contextlib import ExitStack

import pytest

from tests.run.stage import FAMILY, REFUSED, SAID, TURN, E, Stage
from tests.servers import wait_until


class Screen:
    """A terminal that `run` is started on, as the leader of its session."""

    def __init__(self, stage: Stage) -> None:
        self.ours, theirs = pty.openpty()
        # Opening it again makes it the controlling terminal of the new session.
        program = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
        self.process = stage.start_by(sys.executable, "-c", program, **streams)
        os.close(theirs)
        self.shown = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self.ours, 65_536)
            except OSError:  # on Linux the end of a terminal is an error
                return
            if not piece:
                return
            self.shown += piece

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=20)
        self.reader.join(timeout=10)
        os.close(self.ours)
        return code, self.shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("planted", [False, True])
def test_an_agent_reads_from_the_terminal(stage: Stage, *, planted: bool) -> None:
    if planted:
        stage.plant()
    stage.script(resumed=REFUSED, fresh=[["line"], *SAID])
    screen = Screen(stage)
    while len(stage.told("start")) < 1 + planted:
        stage.hear("start")
    os.write(screen.ours, b"yes\n")
    assert stage.hear("read")["size"] == 4
    code, shown = screen.end()
    assert (code, shown) == (0, f"yes\n{TURN}")
    assert stage.saved(E)


def test_ctrl_c_at_a_terminal(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=FAMILY)
    screen = Screen(stage)
    for _ in range(2):
        stage.hear("ready")
    # The wrapper gives the terminal away once the agent runs.
    wait_until(lambda: os.tcgetpgrp(screen.ours) != screen.process.pid, "the agent in the foreground")
    os.write(screen.ours, termios.tcgetattr(screen.ours)[6][termios.VINTR])
    code, shown = screen.end()
    assert code == 130
    assert shown == "^C"
    assert stage.all_gone()
    assert stage.kept()
    assert not stage.leased()


def test_a_terminal_that_is_not_its_own(stage: Stage) -> None:
    """As a supervisor may give it: without job control."""
    stage.script()
    with ExitStack() as stack:
        ours, theirs = pty.openpty()
        stack.callback(os.close, ours)
        stack.callback(os.close, theirs)
        done = stage.run(stdin=theirs)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
