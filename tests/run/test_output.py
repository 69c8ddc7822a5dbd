"""What the agent prints comes through `run` byte for byte, at once, or after a refusal not at all, and in little memory."""

from __future__ import annotations

import hashlib
import json
import select
import sys
from typing import Any

import pytest

from redis_sessions.agents.output import Reader
from redis_sessions.cli.run import streams
from redis_sessions.cli.run.streams import OutputBuffer
from tests.run.stage import CLAUDE, GONE, INIT, MIB, REFUSED, RESTARTED, TURN, E, R, Stage, resumed

NOISE = '{"type":"system","subtype":"hook_started"}\n'
BYTES = bytes(range(256)) + b"\r\n\x00\xff\xfe\xc3\x28 no newline at the end"
FRESH, RESUMED = CLAUDE, resumed("claude")


def latin(data: bytes) -> str:
    return data.decode("latin-1")


@pytest.mark.parametrize("planted", [False, True])
def test_any_bytes_in_both_streams(stage: Stage, *, planted: bool) -> None:
    steps = [["out", TURN + latin(BYTES)], ["err", latin(BYTES[::-1])], ["out", latin(BYTES)], ["err", latin(BYTES)]]
    stage.script(fresh=steps, resumed=steps)
    if planted:
        stage.plant(E)
    done = stage.run()
    assert (done.code, done.out, done.err) == (0, TURN.encode() + BYTES * 2, BYTES[::-1] + BYTES)
    assert stage.saved(E)


def test_output_comes_as_it_is_written(stage: Stage) -> None:
    stage.plant(E)
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
    stage.plant(E)
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
        assert (done.code, done.out, done.err.decode()) == (0, TURN.encode(), RESTARTED)
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
        assert done.err.decode() == RESTARTED


def test_the_buffer_keeps_the_order_of_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: Any) -> int:
        written.append((descriptor, bytes(data[:2])))
        return len(bytes(data[:2]))

    monkeypatch.setattr(streams.os, "write", write)
    it = OutputBuffer(hold=True)
    for descriptor, piece in ((1, b"abc"), (2, b"xyz"), (1, b"de")):
        it.put(descriptor, piece)
    assert (written, it.passed) == ([], False)
    it.release()
    it.put(2, b"w")
    assert it.passed
    assert b"".join(piece for to, piece in written if to == 1) == b"abcde"
    assert b"".join(piece for to, piece in written if to == 2) == b"xyzw"


HOG = 200 * MIB
PEAK = """import resource, subprocess, sys
code = subprocess.call(sys.argv[1:])
sys.stderr.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)"""


@pytest.mark.parametrize("text", ["x" * 99 + "\n", "x" * 99], ids=["many lines", "one line"])
def test_200_mib(stage: Stage, text: str) -> None:
    stage.plant(E)
    stage.script(resumed=[["out", TURN], ["flood", "out", text, HOG], ["out", "the end"]])
    process = stage.start_by(sys.executable, "-c", PEAK)
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


IMAGE = '{"type":"user","image":"' + "x" * 1000 + '"}'
QWEN = ["qwen", "-p", "go on", "--output-format", "json"]
DOCUMENTS = {
    "one line": ["[", f"{IMAGE},", TURN.strip() + "]\n"],
    "one line, not ended": ["[", f"{IMAGE},", TURN.strip() + "]"],
    "a long last record": ["[", f"{IMAGE},", TURN.strip().replace("hi", "hi" * MIB) + "]\n"],
    "many lines": ["[\n", f"  {IMAGE},\n", json.dumps(json.loads(TURN), indent=2).replace("\n", "\n  ") + "\n]\n"],
    "a long line": ["[\n  ", f"{IMAGE},", f"{IMAGE},\n  {TURN}]\n"],
}

UNREAD = ("a long last record", "many lines")


@pytest.mark.parametrize("planted", [False, True])
@pytest.mark.parametrize(
    ("document", "command"), [*((name, [*CLAUDE, "--verbose"]) for name in DOCUMENTS), ("one line", QWEN)], ids=str
)
def test_a_document_that_is_too_long_to_be_read_whole(
    stage: Stage, document: str, command: list[str], *, planted: bool
) -> None:
    """A turn that succeeded stays one; if its last record can't be read either, a fresh session has no ID."""
    start, more, end = DOCUMENTS[document]
    size = 17 * MIB // len(more) * len(more)
    steps = [["out", start], ["flood", "out", more, size], ["out", end], ["exit", 0]]
    stage.script(fresh=steps, resumed=steps)
    if planted:
        stage.plant(E)
    done = stage.run("--result", str(stage.result_file), command=command)
    assert (done.code, len(done.out)) == (0, len(start) + size + len(end))
    assert (stage.result["verdict"], stage.result["complete"]) == ("ok", True)
    if planted or document not in UNREAD:
        assert done.said == []
        assert stage.saved(E)
    else:
        [said] = done.said
        assert "more than 16 MiB of one JSON document are not read: ask for a record on each line, such as by" in said
        assert stage.stored() is None
    assert stage.counters == (int(planted), int(not planted), 0)


@pytest.mark.parametrize(
    "end", [f'"{TURN.strip()}]"}}\n', TURN.strip().replace("{", "", 1) + "]\n", f'{{"x":{TURN.strip()}}}]\n']
)
def test_what_only_looks_like_the_last_record_of_a_long_document(end: str) -> None:
    reader = Reader()
    assert [*reader.feed(b'[{"text":"'), *reader.feed(b"x" * 17 * MIB), *reader.feed(end.encode()), *reader.close()] == []


def flooded(start: bytes, text: bytes, size: int, end: bytes) -> str:
    digest = hashlib.sha256(start)
    block = text * (MIB // len(text))
    whole, rest = divmod(size, len(block))
    for _ in range(whole):
        digest.update(block)
    digest.update(block[:rest] + end)
    return digest.hexdigest()
