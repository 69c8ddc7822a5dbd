"""Streams of `run` that are closed, full, slow, or no longer read: no turn is lost, and none wrongly reported as saved."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.run.stage import INIT, MIB, REFUSED, SAID, TURN, E, R, Stage, sha256
from tests.servers import wait_until

CAPACITY = 65_536


@pytest.mark.parametrize(
    ("closed", "planted"),
    [("<&-", True), (">&-", True), ("2>&-", True), ("<&- >&-", False), ("<&- >&- 2>&-", True), ("<&- >&- 2>&-", False)],
)
def test_streams_that_are_closed(stage: Stage, closed: str, *, planted: bool) -> None:
    """No other file, least of all the connection to Redis, may take their place."""
    if planted:
        stage.plant()
    steps = [["read"], ["err", "remark\n"], *SAID]
    stage.script(resumed=REFUSED, fresh=steps)
    done = stage.finish(stage.start_in_shell(f'exec "$@" {closed}', "--result", str(stage.result_file)))
    assert done.code == 0
    assert done.out == (b"" if ">&-" in closed.replace("2>&-", "") else TURN.encode())
    assert done.err == (b"" if "2>&-" in closed else b"remark\n")
    assert stage.told("read")[-1]["size"] == 0
    assert stage.saved(E)
    assert stage.result["saved"] is True


@pytest.mark.parametrize("planted", [False, True])
def test_a_reader_that_stops_early(stage: Stage, *, planted: bool) -> None:
    if planted:
        stage.plant()
    steps = [["out", INIT], ["flood", "out", "line\n", 1 << 40]]
    stage.script(resumed=steps, fresh=steps)
    process = stage.start()
    assert process.stdout is not None
    assert process.stdout.readline() == INIT.encode()
    process.stdout.close()
    process.stdout = None
    done = stage.finish(process)
    assert done.code != 0
    assert stage.all_gone()
    assert stage.stored() == (R if planted else None)
    assert not stage.leased()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize(("ended", "code"), [(0, 1), (5, 5)])
def test_a_full_disk(stage: Stage, ended: int, code: int, *, planted: bool) -> None:
    """What was lost must not look like success."""
    if planted:
        stage.plant()
    stage.script(*[[*SAID, ["exit", ended]]] * 2)
    with Path("/dev/full").open("wb") as full:
        done = stage.run(stdout=full)
    assert (done.code, done.err) == (code, b"redis-sessions: the output can't be written (No space left on device)\n")
    assert stage.stored() == E


@pytest.mark.parametrize("planted", [False, True])
def test_a_pipe_that_does_not_block(stage: Stage, *, planted: bool) -> None:
    """As programs on an event loop give it to what they start."""
    if planted:
        stage.plant()
    steps = [["out", INIT], ["flood", "out", "0123456789\n", 3 * MIB], ["out", "\n" + TURN]]
    stage.script(resumed=steps, fresh=steps)
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, fcntl.fcntl(writing, fcntl.F_GETFL) | os.O_NONBLOCK)
    with os.fdopen(writing, "wb") as theirs, os.fdopen(reading, "rb") as ours:
        process = stage.start(stdout=theirs)
        theirs.close()
        text = b""
        while len(text) < 2 * MIB:
            # Only when it is full does the next write to it find no room.
            wait_until(lambda: waiting_bytes(ours) >= CAPACITY // 2, "a pipe without room for the next piece")
            text += os.read(ours.fileno(), CAPACITY)
        text += ours.read()
    assert stage.finish(process).code == 0
    flood = (b"0123456789\n" * (3 * MIB // 11 + 1))[: 3 * MIB]
    assert sha256(text) == sha256(INIT.encode() + flood + b"\n" + TURN.encode())


def waiting_bytes(pipe: Any) -> int:
    [waiting] = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(waiting)
