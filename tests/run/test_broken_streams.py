"""Streams of `run` that are closed, full, slow, or no longer read: no turn is lost, and none wrongly reported as saved."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from tests import test_cli_support
from tests.run.stage import CLOCK, DEADLINE_S, HANG, INIT, MIB, REFUSED, RESTARTED, SAID, TURN, E, R, Stage, sha256
from tests.servers import exists, wait_until

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
    assert done.err == (b"" if "2>&-" in closed else (RESTARTED * planted + "remark\n").encode())
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


@pytest.mark.parametrize("lost", ["a reader that stops early", "a full disk"])
def test_output_that_is_lost_is_no_failure_of_the_session(stage: Stage, lost: str) -> None:
    """However often: it is not given up."""
    stage.plant()
    stage.script(resumed=[["out", INIT.replace(E, R)], ["flood", "out", "line\n", 1 << 40]])
    for _ in range(4):
        process = stage.start_in_shell('exec "$@" > /dev/full' if lost == "a full disk" else '"$@" | head -1')
        assert stage.finish(process).code in (0, 141)
    assert [told["resumed"] for told in stage.told("start")] == [True] * 4
    assert stage.kept()


SHORT_GRACE = CLOCK.replace("main()", "process.GRACE_S = 0.5; main()")


@pytest.mark.parametrize("stderr", ["read", "the same pipe"])
@pytest.mark.parametrize("asked", ["signal", "time limit", "signal after the agent's end"])
def test_a_reader_that_stops_reading(stage: Stage, monkeypatch: pytest.MonkeyPatch, asked: str, stderr: str) -> None:
    """The run can be ended all the same, and what was lost is said."""
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", SHORT_GRACE])
    # More than the reader's pipe has room for, and no more than that and the agent's.
    ends = [] if asked.endswith("end") else HANG
    stage.script(fresh=[["out", TURN], ["flood", "out", "line\n", CAPACITY * 3 // 2], *ends])
    streams = {"stderr": subprocess.STDOUT if stderr == "the same pipe" else subprocess.PIPE}
    process = stage.start("--timeout", "30m", "--linger", "2h", **streams)
    agent = stage.hear("start")["pid"]
    assert process.stdout is not None
    assert process.stdout.readline() == TURN.encode()  # what is passed on has been understood
    if ends:
        stage.hear("ready")
    else:
        wait_until(lambda: not exists(agent), "the end of the agent")
    if asked == "time limit":
        (stage.directory / "over").touch()
    else:
        process.terminate()
    code = process.wait(timeout=DEADLINE_S)
    assert stage.saved(E)
    assert not stage.leased()
    done = stage.finish(process)
    assert code == 1
    lost = ["redis-sessions: the output can't be written (nobody reads it)"]
    assert done.said == (lost if stderr == "read" else [])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize(("ended", "code"), [(0, 1), (5, 5)])
def test_a_full_disk(stage: Stage, ended: int, code: int, *, planted: bool) -> None:
    """What was lost must not look like success."""
    if planted:
        stage.plant(E)
    stage.script(*[[*SAID, ["exit", ended]]] * 2)
    with Path("/dev/full").open("wb") as full:
        done = stage.run(stdout=full)
    assert (done.code, done.err) == (code, b"redis-sessions: the output can't be written (No space left on device)\n")
    assert stage.saved(E)


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
