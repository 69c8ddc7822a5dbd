"""What `run` is given on its standard input: the agent gets all of it as it comes, and a second run all of it again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from redis_sessions.agents import get_agent
from redis_sessions.cli.run import attempts
from tests import test_cli_support
from tests.run.stage import CLAUDE, DEADLINE_S, GONE, MIB, REFUSED, RESTARTED, SAID, TURN, E, R, Stage, resumed, sha256


@pytest.mark.parametrize("size", [0, 5 * MIB])
@pytest.mark.parametrize("first", [[], [["line"]], [["read"]]], ids=["reads nothing", "reads a line", "reads all"])
def test_both_attempts_get_the_same_input(stage: Stage, size: int, first: list[Any]) -> None:
    given = (b"\x00\xff prompt\n" + os.urandom(size))[:size]
    stage.plant()
    stage.script(resumed=[*first, *REFUSED], fresh=[["read"], *SAID])
    done = stage.run(given=given)
    assert (done.code, done.out, done.err.decode()) == (0, TURN.encode(), RESTARTED)
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
    assert process.wait(timeout=DEADLINE_S) == 0
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
    assert process.wait(timeout=DEADLINE_S) == 0
    assert stage.finish(process).out == TURN.encode()


@pytest.mark.parametrize("refused", [False, True])
def test_input_that_cannot_be_kept(stage: Stage, *, refused: bool) -> None:
    """The agent still gets all of it; only a second run is not to be had."""
    given = os.urandom(MIB)
    stage.plant(R if refused else E)
    stage.script(resumed=[["read"], *(REFUSED if refused else SAID)])
    process = stage.start_in_shell('ulimit -f 1; exec "$@"', stdin=subprocess.PIPE)
    done = stage.finish(process, given)
    assert stage.told("read")[0]["sha256"] == sha256(given)
    assert stage.starts == [resumed("claude", R if refused else E)]
    if refused:
        assert (done.code, stage.stored(), stage.counters) == (1, None, (0, 0, 1))
        assert done.err.startswith(b"redis-sessions: standard input could not be kept for a second run (")
        assert done.err.endswith(GONE.encode())
    else:
        assert (done.code, done.out, done.err) == (0, TURN.encode(), b"")


def test_a_spool_that_cannot_be_created(stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """The agent still runs, on the input itself, and only once."""

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(attempts, "InputSpool", full)
    stage.put_on(monkeypatch)
    stage.script(resumed=[["read"], *REFUSED])
    reading, writing = os.pipe()
    os.write(writing, b"prompt")
    os.close(writing)
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        with open(0, "rb", closefd=False) as source:
            monkeypatch.setattr("sys.stdin", source)
            it = attempts.Attempts(runtime=get_agent("claude"), command=CLAUDE, timeout_s=None, verbose=False)
            with pytest.raises(attempts.AgentFailed) as failed:
                it(R)
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(reading)
    assert failed.value.exit_code == 1
    assert failed.value.judgement.turn_began
    assert stage.told("read")[0]["size"] == 6
    assert stage.starts == [resumed("claude")]
    assert "could not be kept for a second run (No space left on device)" in capfd.readouterr().err


def test_what_the_agent_does_not_ask_for_is_left_to_others(stage: Stage, tmp_path: Path) -> None:
    """As to the shell whose loop reads from the same file."""
    (tmp_path / "keys").write_bytes(bytes(8 * MIB))
    stage.plant()
    stage.script(resumed=[["tell", "ready"], ["await", "go"], *SAID])
    with (tmp_path / "keys").open("rb") as keys:
        process = stage.start(stdin=keys)
        stage.hear("ready")
        stage.go("go")
        assert stage.finish(process).code == 0
        assert os.lseek(keys.fileno(), 0, os.SEEK_CUR) < MIB


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="a file in memory is of Linux")
def test_no_directory_for_temporary_files(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose file system is read-only."""
    said = "import tempfile; tempfile._candidate_tempdir_list = lambda: []; from redis_sessions.cli import main; main()"
    monkeypatch.setattr(test_cli_support, "PROGRAM", [sys.executable, "-c", said])
    stage.plant()
    stage.script(resumed=[["line"], *REFUSED], fresh=[["read"], *SAID])
    done = stage.run(given=b"first\nsecond\n")
    assert (done.code, done.out, done.err.decode()) == (0, TURN.encode(), RESTARTED)
    assert stage.told("read")[-1]["size"] == 13


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="seen in /proc")
@pytest.mark.parametrize("planted", [False, True])
def test_descriptors_of_the_caller_reach_the_agent_and_no_others(stage: Stage, tmp_path: Path, *, planted: bool) -> None:
    """As of `<(…)` in a shell. The connection to Redis, the spool and all pipes are not the agent's."""
    (tmp_path / "notes").touch()
    if planted:
        stage.plant()
    steps = [["descriptors"], *SAID]
    stage.script(fresh=steps, resumed=steps)
    script = f'exec 9<"{tmp_path}/notes"; exec "$@"'
    process = stage.start_in_shell(script, "--result", str(stage.result_file), stdin=subprocess.PIPE)
    assert stage.finish(process, b"prompt").code == 0
    assert stage.hear("descriptors")["given"] == {"9": f"{tmp_path}/notes"}
