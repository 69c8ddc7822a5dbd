"""What `run` passes through: output byte for byte, input fed twice, and how little memory and time that takes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redis_sessions.agents import CLAUDE as RUNTIME
from redis_sessions.cli import child
from redis_sessions.cli.gate import Gate
from redis_sessions.recognise import Watch
from tests import test_cli_support
from tests.run_stage import CLAUDE, GONE, INIT, REFUSED, SAID, TURN, E, R, Stage, resumed, staged
from tests.servers import exists, wait_until
from tests.test_cli_support import Cli

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

MIB = 1024 * 1024
CAPACITY = 65_536
NOISE = '{"type":"system","subtype":"hook_started"}\n'
BYTES = bytes(range(256)) + b"\r\n\x00\xff\xfe\xc3\x28 no newline at the end"
FRESH, RESUMED = CLAUDE, resumed("claude")


@pytest.fixture
def stage(tmp_path: Path, cli: Cli) -> Iterator[Stage]:
    with staged(tmp_path, cli) as stage:
        yield stage


def latin(data: bytes) -> str:
    return data.decode("latin-1")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("planted", [False, True])
def test_any_bytes_in_both_streams(stage: Stage, *, planted: bool) -> None:
    steps = [["out", TURN + latin(BYTES)], ["err", latin(BYTES[::-1])], ["out", latin(BYTES)], ["err", latin(BYTES)]]
    stage.script(fresh=steps, resumed=steps)
    if planted:
        stage.plant()
    done = stage.run()
    assert (done.code, done.out, done.err) == (0, TURN.encode() + BYTES * 2, BYTES[::-1] + BYTES)
    assert stage.saved(E)


def test_output_comes_as_it_is_written(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["out", INIT], ["err", "so far"], ["await", "go"], ["out", TURN]])
    process = stage.start()
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == INIT.encode()
    assert process.stderr.read(6) == b"so far"
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")


def test_a_resume_attempt_is_held_until_a_turn_begins(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["out", NOISE], ["err", "warning\n"], ["tell", "said"], ["await", "go"], ["out", INIT + TURN]])
    process = stage.start()
    stage.hear("said")
    assert process.stdout is not None
    assert process.stderr is not None
    assert select.select([process.stdout, process.stderr], [], [], 0.3)[0] == []
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out, done.err) == (0, f"{NOISE}{INIT}{TURN}".encode(), b"warning\n")


@pytest.mark.parametrize("more", [0, 1])
def test_the_limit_of_what_is_held(stage: Stage, more: int) -> None:
    stage.plant()
    text = "x" * (MIB - len(GONE) + more - 1) + "\n"
    stage.script(resumed=[["out", text], *REFUSED])
    done = stage.run("--verbose" if more else "--result", *([] if more else [str(stage.result_file)]))
    assert stage.counters[2] == 1
    if more:
        assert (done.code, done.out) == (1, text.encode())
        assert done.err.startswith(GONE.encode())
        assert len(done.said) == 1
        assert stage.starts == [RESUMED]
        assert stage.stored() is None
    else:
        assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
        assert stage.starts == [RESUMED, FRESH]
        assert stage.saved(E)
    assert not stage.leased()


@pytest.mark.parametrize("verbose", [False, True])
def test_what_a_refused_attempt_printed(stage: Stage, *, verbose: bool) -> None:
    stage.plant()
    stage.script(resumed=[["out", "half a \x1b[2J\n"], *REFUSED])
    done = stage.run(*["--verbose"] * verbose)
    assert (done.code, done.out) == (0, TURN.encode())
    if verbose:
        assert f"redis-sessions: refused attempt: {GONE.strip()}" in done.said
        assert r"redis-sessions: refused attempt: half a \x1b[2J" in done.said
        assert f"started fresh after a refusal; saved {E}; session {R} was refused (gone)" in done.said[-1]
    else:
        assert done.err == b""


# -- input


@pytest.mark.parametrize("size", [0, 5 * MIB])
@pytest.mark.parametrize("first", [[], [["line"]], [["read"]]], ids=["reads nothing", "reads a line", "reads all"])
def test_both_attempts_get_the_same_input(stage: Stage, size: int, first: list[Any]) -> None:
    given = (b"\x00\xff prompt\n" + os.urandom(size))[:size]
    stage.plant()
    stage.script(resumed=[*first, *REFUSED], fresh=[["read"], *SAID])
    done = stage.run(given=given)
    assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")
    last = stage.told("read")[-1]
    assert (last["sha256"], last["size"]) == (sha256(given), size)
    assert len(stage.told("read")) == 1 + len(first)
    if first == [["read"]]:
        assert stage.told("read")[0]["sha256"] == sha256(given)


def test_input_from_a_file(stage: Stage, tmp_path: Path) -> None:
    given = os.urandom(3 * MIB)
    (tmp_path / "prompt").write_bytes(given)
    stage.plant()
    stage.script(resumed=[["line"], *REFUSED], fresh=[["read"], *SAID])
    with (tmp_path / "prompt").open("rb") as prompt:
        done = stage.run(stdin=prompt)
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.told("read")[-1]["sha256"] == sha256(given)


@pytest.mark.parametrize("planted", [False, True])
def test_input_that_stays_open(stage: Stage, *, planted: bool) -> None:
    """It comes to the agent line by line, and the wrapper ends when the agent does."""
    if planted:
        stage.plant()
    steps = [["line"], ["line"], *SAID]
    stage.script(resumed=steps, fresh=steps)
    process = stage.start(stdin=subprocess.PIPE)
    assert process.stdin is not None
    for line in (b"first\n", b"second\n"):
        process.stdin.write(line)
        process.stdin.flush()
        assert stage.hear("read")["sha256"] == sha256(line)
    assert process.wait(timeout=10) == 0
    assert stage.finish(process).out == TURN.encode()


def test_input_that_stays_open_over_a_refusal(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["line"], *REFUSED], fresh=[["line"], ["line"], *SAID])
    process = stage.start(stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"first\n")
    process.stdin.flush()
    assert [stage.hear("read")["sha256"] for _ in range(2)] == [sha256(b"first\n")] * 2
    process.stdin.write(b"second\n")
    process.stdin.flush()
    assert stage.hear("read")["sha256"] == sha256(b"second\n")
    assert process.wait(timeout=10) == 0
    assert stage.finish(process).out == TURN.encode()


@pytest.mark.parametrize("refused", [False, True])
def test_input_that_can_not_be_kept(stage: Stage, *, refused: bool) -> None:
    """The agent still gets all of it; only a second run is not to be had."""
    given = os.urandom(MIB)
    stage.plant()
    stage.script(resumed=[["read"], *(REFUSED if refused else SAID)])
    done = stage.finish(in_shell(stage, "", before="ulimit -f 1", stdin=subprocess.PIPE), given)
    assert stage.told("read")[0]["sha256"] == sha256(given)
    assert stage.starts == [RESUMED]
    if refused:
        assert (done.code, stage.stored(), stage.counters) == (1, None, (0, 0, 1))
        assert done.err.startswith(b"redis-sessions: standard input could not be kept for a second run (")
        assert done.err.endswith(GONE.encode())
    else:
        assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")


def in_shell(stage: Stage, redirection: str, before: str = "", **how: Any) -> subprocess.Popen[bytes]:
    """Start it by a shell that does this to its streams."""
    words = [*test_cli_support.PROGRAM, *stage.arguments("--result", str(stage.result_file))]
    script = f'{before}; exec "$@" {redirection}' if before else f'exec "$@" {redirection}'
    environment = {**os.environ, **stage.environment}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | how
    process = subprocess.Popen(["/bin/sh", "-c", script, "sh", *words], env=environment, start_new_session=True, **streams)
    stage._started.append(process)
    return process


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
    done = stage.finish(in_shell(stage, closed))
    assert done.code == 0
    assert done.out == (b"" if ">&-" in closed.replace("2>&-", "") else TURN.encode())
    assert done.err == (b"" if "2>&-" in closed else b"remark\n")
    assert stage.told("read")[-1]["size"] == 0
    assert stage.saved(E)
    assert stage.result["saved"] is True


# -- a reader that is gone, slow, or of another kind


@pytest.mark.parametrize("planted", [False, True])
def test_a_reader_that_has_seen_enough(stage: Stage, *, planted: bool) -> None:
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
    assert stage.stored() == (R if planted and ended else None if ended else E)


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


HOG = 200 * MIB
PEAK = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)"""


@pytest.mark.parametrize("text", ["x" * 99 + "\n", "x" * 99], ids=["many lines", "one line"])
def test_200_mib(stage: Stage, text: str) -> None:
    stage.plant()
    stage.script(resumed=[["out", TURN], ["flood", "out", text, HOG], ["out", "the end"]])
    command = [sys.executable, "-c", PEAK, *test_cli_support.PROGRAM, *stage.arguments()]
    process = subprocess.Popen(
        command,
        env={**os.environ, **stage.environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    stage._started.append(process)
    assert process.stdout is not None
    digest, size = hashlib.sha256(), 0
    while piece := process.stdout.read1(MIB):
        digest.update(piece)
        size += len(piece)
    done = stage.finish(process)
    assert done.code == 0
    assert size == len(TURN) + HOG + len("the end")
    assert digest.hexdigest() == flooded(TURN.encode(), text.encode(), HOG, b"the end")
    assert int(done.err) * 1024 < 150 * MIB, "kilobytes, as Linux has them"
    assert stage.saved(E)


def waiting_bytes(pipe: Any) -> int:
    [waiting] = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(waiting)


def flooded(start: bytes, text: bytes, size: int, end: bytes) -> str:
    digest = hashlib.sha256(start)
    block = text * (MIB // len(text))
    whole, rest = divmod(size, len(block))
    for _ in range(whole):
        digest.update(block)
    digest.update(block[:rest] + end)
    return digest.hexdigest()


def test_what_an_agent_left_running_does_not_keep_the_wrapper(stage: Stage) -> None:
    """It still has all of the agent's own output, however slowly that is read."""
    stage.script(fresh=[["child", [["pause"]]], ["out", TURN], ["flood", "out", "yyyyyyyyy\n", MIB], ["out", "the end"]])
    process = stage.start()
    stage.hear("child")
    assert process.stdout is not None
    out = process.stdout.read()
    assert process.wait(timeout=10) == 0
    assert out == TURN.encode() + (b"yyyyyyyyy\n" * (MIB // 10 + 1))[:MIB] + b"the end"
    assert stage.saved(E)
    assert not stage.all_gone(within_s=0.0)


class SlowGate(Gate):
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


def test_what_stood_in_the_pipe_is_the_agents_own(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly it is read, and whoever else holds that pipe open."""
    monkeypatch.setattr(child, "_PIECE_BYTES", 1000)
    monkeypatch.setattr(child, "_LEFTOVERS_S", 0.0)
    stage.script(fresh=[["flood", "out", "line\n", 40_000], ["child", [["pause"]]]])
    slow = SlowGate(stage)
    run = child.Child(
        command=[str(stage.binaries / "claude")],
        environment={**os.environ, **stage.environment},
        spool=None,
        watch=Watch(RUNTIME),
        gate=slow,
        signals=child.Signals(),
        deadline_s=None,
    )
    assert run.run() == (0, False)
    assert slow.taken == b"line\n" * 8_000


def test_a_child_that_goes_on_printing_does_not_keep_the_wrapper(stage: Stage) -> None:
    stage.script(fresh=[["child", [["flood", "out", "z\n", 1 << 40]]], ["out", "\n" + TURN]])
    process = stage.start(stdout=subprocess.DEVNULL)
    assert process.wait(timeout=10) == 0
    assert stage.finish(process).err == b""
    assert stage.all_gone()
