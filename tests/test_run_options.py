"""What `run` is told: where the resume argument goes, which runtime it is, what to do without Redis; and what it tells."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from redis_sessions.agents import CLAUDE as RUNTIME
from redis_sessions.cli import gate, turns
from redis_sessions.cli.app import app
from redis_sessions.cli.gate import Gate
from redis_sessions.server import EmbeddedServer
from tests import test_cli_support
from tests.run_stage import CLAUDE, COMMANDS, DEADLINE_S, KEY, REFUSED, SAID, TURN, E, R, Stage, resumed, staged
from tests.test_cli_support import Cli

url, cli, no_variables = test_cli_support.url, test_cli_support.cli, test_cli_support.no_variables

NOWHERE = ["--url", "unix:///nowhere/redis.sock"]


@pytest.fixture
def stage(tmp_path: Path, cli: Cli) -> Iterator[Stage]:
    with staged(tmp_path, cli) as stage:
        stage.script()
        yield stage


def untouched(stage: Stage) -> bool:
    return stage.starts == [] and stage.kept() and not stage.leased() and stage.counters == (0, 0, 0)


# -- where the resume argument goes


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["codex", "exec", "go on"], ["codex", "exec", "resume", R, "go on"]),
        (["codex", "exec"], ["codex", "exec", "resume", R]),
        (["codex", "exec", "--", "-x"], ["codex", "exec", "resume", R, "--", "-x"]),
        (["claude", "-p", "--", "{resume}x"], ["claude", f"--resume={R}", "-p", "--", "{resume}x"]),
        (["env", "claude", "-p"], None),
        (["env", "claude", "{resume}", "-p", "{resume}"], ["claude", f"--resume={R}", "-p"]),
        (["codex", "{resume}", "--odd"], ["codex", "resume", R, "--odd"]),
        (["sh", "-c", 'exec "$0" "$@"', "gemini", "-p"], ["gemini", f"--resume={R}", "-p"]),
    ],
)
def test_the_resume_argument_has_its_place(stage: Stage, command: list[str], expected: list[str] | None) -> None:
    stage.plant()
    assert stage.run("--verbose", command=command).code == 0
    assert stage.starts == [expected or ["claude", f"--resume={R}", "-p"]]


@pytest.mark.parametrize("agent", ["codex", "opencode"])
def test_a_fresh_start_has_no_resume_argument(stage: Stage, agent: str) -> None:
    command = COMMANDS[agent]
    assert stage.run(command=[command[0], "{resume}", *command[1:]]).code == 0
    assert stage.starts == [command]


@pytest.mark.parametrize(
    ("options", "command", "words"),
    [
        ([], ["codex", "exec", "--unheard-of", "x", "go on"], "{resume}"),
        ([], ["codex", "go on"], "{resume}"),
        ([], ["codex", "exec", "resume", R], "{resume}"),
        ([], ["claude", "--continue", "-p"], "{resume}"),
        ([], ["claude", "--resume", E, "-p"], "{resume}"),
        ([], ["opencode", "serve"], "{resume}"),
        ([], ["bot", "-p"], "--agent"),
        ([], ["env", "claude", "codex"], "--agent"),
        (["--agent", "claude"], ["env", "claude", "claude"], "{resume}"),
        (["--agent", "nobody"], CLAUDE, "claude, codex, gemini, opencode, copilot"),
        (["--agent", "openai"], ["claude", "{resume}"], "claude, codex, gemini, opencode, copilot)"),
        (["--agent", "claude-agent-sdk"], CLAUDE, "claude, codex, gemini, opencode, copilot)"),
        (["--resume-argument", "--session"], ["claude"], "{id}"),
        (["--resume-argument", "--session={id}"], ["claude"], "{resume}"),
        (["--id-field", "x"], CLAUDE, "--resume-argument"),
        (["--gone", "x"], CLAUDE, "--resume-argument"),
        (["--resume-argument", "-s={id}", "--gone", "("], ["claude", "{resume}"], "regular expression"),
        (["--on-outage", "maybe"], CLAUDE, "run nor raise"),
        (["--timeout", "5"], CLAUDE, "--timeout has no unit"),
        (["--wait", "soon"], CLAUDE, "--wait is no number"),
        (["--result", "/nowhere/result.json"], CLAUDE, "/nowhere/result.json can't be written"),
        ([], [], "AGENT-COMMAND"),
    ],
)
def test_what_can_not_be_told_is_refused(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, options: list[str], command: list[str], words: str
) -> None:
    """Nothing is started, and nothing counted."""
    stage.plant()
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(app, stage.arguments(*options, command=command))
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.fullmatch(r"redis-sessions: [^\n]+\n", done.stderr)
    assert words in done.stderr
    assert untouched(stage)


# -- what is stored and can't be


@pytest.mark.parametrize("verbose", [False, True])
def test_an_id_that_the_runtime_never_gives_is_not_tried(stage: Stage, *, verbose: bool) -> None:
    stage.plant("abc")
    done = stage.run("--result", str(stage.result_file), *["--verbose"] * verbose)
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.starts == [CLAUDE]
    assert stage.saved(E)
    assert stage.counters == (0, 1, 1)
    assert stage.result["how"] == "restarted"
    assert stage.result["previous"] == "abc"
    assert stage.result["reason"] == "session abc was refused (invalid_id)"
    assert done.said == [f"redis-sessions: started fresh after a refusal; saved {E}; {stage.result['reason']}"] * verbose


def test_a_value_that_is_no_id_at_all(stage: Stage) -> None:
    stage.plant("--dangerously-skip-permissions")
    done = stage.run("--result", str(stage.result_file))
    assert (done.code, done.out) == (0, TURN.encode())
    assert stage.starts == [CLAUDE]
    assert stage.saved(E)
    assert stage.counters == (0, 1, 0)
    assert stage.result["reason"] == "what Redis held was no valid session ID"


# -- a command that can't be run


@pytest.mark.parametrize(
    ("program", "code", "planted"),
    [
        ("missing/claude", 127, True),
        ("missing/claude", 127, False),
        ("plain/claude", 126, True),
        ("directory/claude", 126, True),
    ],
)
def test_a_command_that_can_not_be_run(stage: Stage, tmp_path: Path, program: str, code: int, *, planted: bool) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/claude").touch(0o600)
    (tmp_path / "directory/claude").mkdir(parents=True)
    if planted:
        stage.plant()
    done = stage.run("--result", str(stage.result_file), command=[str(tmp_path / program), "-p"])
    assert (done.code, done.out) == (code, b"")
    [said] = done.said
    assert f"{tmp_path / program} can't be run (" in said
    assert stage.counters == (0, 0, 0)
    assert not stage.leased()
    assert stage.kept() if planted else stage.stored() is None
    assert (stage.result["exit_code"], stage.result["saved"]) == (code, False)


def test_a_program_that_is_not_on_the_path(stage: Stage) -> None:
    stage.plant()
    process = stage.start("--agent", "claude", command=["no-such-agent", "{resume}"])
    # What is to end the agent must not wait for one that never was.
    assert process.wait(timeout=4.0) == 127
    assert untouched(stage)


# -- environment, and a runtime of one's own


def test_what_an_agent_sets_for_its_children_is_not_passed_on(stage: Stage) -> None:
    assert stage.run(env={"CLAUDECODE": "1"}).code == 0
    assert [told["claudecode"] for told in stage.told("start")] == [None]


def test_a_runtime_of_ones_own(stage: Stage) -> None:
    own = ["--resume-argument=--session={id}", "--id-field", "session.id", "--gone", "lost track of"]
    (stage.binaries / "bot").hardlink_to(stage.binaries / "claude")
    command = ["bot", "ask", "{resume}", "why"]
    stage.script(fresh=[["out", '{"session":{"id":"s-1"}}\n']], resumed=[["out", '{"session":{"id":"s-2"}}\n']])
    assert stage.run(*own, command=command).code == 0
    assert stage.stored() == "s-1"
    assert stage.run(*own, "--result", str(stage.result_file), command=command).code == 0
    assert stage.stored() == "s-2"
    assert stage.result["session_changed"] is True
    stage.script(fresh=[["out", '{"session":{"id":"s-3"}}\n']], resumed=[["err", "lost track of that\n"], ["exit", 3]])
    done = stage.run(*own, command=command)
    assert (done.code, done.out, done.err) == (0, b'{"session":{"id":"s-3"}}\n', b"")
    assert stage.starts == [
        ["bot", "ask", "why"],
        ["bot", "ask", "--session=s-1", "why"],
        ["bot", "ask", "--session=s-2", "why"],
        ["bot", "ask", "why"],
    ]
    assert stage.counters == (1, 2, 1)


# -- Redis away


@pytest.mark.parametrize("code", [0, 9])
def test_without_redis_the_agent_still_runs(stage: Stage, code: int) -> None:
    stage.script(fresh=[["read"], *SAID, ["exit", code]])
    done = stage.run(*NOWHERE, "--result", str(stage.result_file), given=b"prompt")
    assert (done.code, done.out) == (code, TURN.encode())
    assert stage.told("read")[0]["size"] == 6
    assert stage.result["saved"] is False
    if code == 0:
        assert stage.result["how"] == "fresh"
        assert "store unavailable" in stage.result["reason"]


def test_without_redis_and_asked_to_raise(stage: Stage) -> None:
    done = stage.run(*NOWHERE, "--on-outage", "raise", "--result", str(stage.result_file))
    assert (done.code, done.out, len(done.said)) == (69, b"", 1)
    assert stage.starts == []
    assert (stage.result["exit_code"], stage.result["how"]) == (69, None)


def test_redis_goes_away_while_the_agent_runs(stage: Stage, tmp_path: Path) -> None:
    stage.script(fresh=[["tell", "ready"], ["await", "go"], *SAID, ["exit", 0]])
    with EmbeddedServer() as server:
        process = stage.start("--url", server.url, "--result", str(stage.result_file))
        stage.hear("ready")
        server.kill()
    stage.go("go")
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, TURN.encode())
    assert stage.result["saved"] is False
    assert "not saved" in stage.result["reason"]


# -- what it tells


@pytest.mark.parametrize(
    ("planted", "steps", "told"),
    [
        (None, SAID, f"started fresh; saved {E}"),
        (None, [["out", "hi\n"]], "started fresh; saved nothing; the turn gave no session ID"),
        (E, SAID, f"resumed {E}; saved {E}"),
        (None, [["exit", 3]], "the agent ended with 3 (other)"),
        (R, [["exit", 0]], f"resumed {R}; saved {R}"),
    ],
)
def test_what_it_says_when_asked(stage: Stage, planted: str | None, steps: list[Any], told: str) -> None:
    if planted:
        stage.plant(planted)
    stage.script(fresh=steps, resumed=steps)
    done = stage.run("--verbose")
    assert done.said == [f"redis-sessions: {told}"]


def test_a_fresh_run_that_fails_after_a_refusal_tells_of_both(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=REFUSED, fresh=[["exit", 3]])
    done = stage.run("--result", str(stage.result_file))
    assert done.code == 3
    assert stage.result["previous"] == R
    assert stage.result["reason"] == f"session {R} was refused; run fresh, the agent ended with 3 (other)"


def test_a_result_that_can_not_be_written_after_all(stage: Stage, tmp_path: Path) -> None:
    """The turn was run: its exit code stands."""
    (tmp_path / "taken").mkdir()
    stage.script(fresh=[*SAID, ["exit", 0]])
    done = stage.run("--result", str(tmp_path / "taken"))
    assert (done.code, done.out) == (0, TURN.encode())
    assert len(done.said) == 1
    assert stage.saved(E)


def test_no_second_run_if_the_conversation_was_taken_over(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["tell", "ready"], ["await", "go"], *REFUSED])
    process = stage.start("--verbose")
    stage.hear("ready")
    stage.cli.raw.set(stage.cli.keys.lease(KEY), "another:1:x", px=30 * 86_400_000 + 30_000)
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out) == (75, b"")
    assert "was taken over" in done.said[-1]
    assert any("refused attempt: No conversation found" in line for line in done.said)
    assert len(stage.starts) == 1
    assert stage.kept()
    assert stage.leased()


# -- the gate


def test_a_gate_keeps_the_order_of_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, bytes]] = []

    def write(descriptor: int, data: Any) -> int:
        written.append((descriptor, bytes(data[:2])))
        return len(bytes(data[:2]))

    monkeypatch.setattr(gate.os, "write", write)
    it = Gate(hold=True)
    for descriptor, piece in ((1, b"abc"), (2, b"xyz"), (1, b"de")):
        it.put(descriptor, piece)
    assert (written, it.passed) == ([], False)
    it.let_through()
    it.put(2, b"w")
    assert it.passed
    assert b"".join(piece for to, piece in written if to == 1) == b"abcde"
    assert b"".join(piece for to, piece in written if to == 2) == b"xyzw"


def test_a_spool_that_can_not_be_made(stage: Stage, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """The agent still runs, on the input itself, and only once."""

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(turns, "Spool", full)
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    stage.script(resumed=[["read"], *REFUSED])
    reading, writing = os.pipe()
    os.write(writing, b"prompt")
    os.close(writing)
    kept = os.dup(0)
    try:
        os.dup2(reading, 0)
        with open(0, "rb", closefd=False) as source:
            monkeypatch.setattr("sys.stdin", source)
            it = turns.Turns(runtime=RUNTIME, command=CLAUDE, timeout_s=None, verbose=False)
            with pytest.raises(turns.AgentFailed) as failed:
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
