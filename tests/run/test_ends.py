"""However a run ends: a session that has answered is saved, a process that hangs is ended, and silence is not success."""

from __future__ import annotations

import json
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redis_sessions.agents import get_agent
from redis_sessions.cli.run.descendants import _from_proc, _from_ps
from redis_sessions.cli.run.process import Child
from redis_sessions.cli.run.streams import OutputBuffer
from redis_sessions.cli.signals import Signals
from tests.run.stage import CLAUDE, COMMANDS, GONE, HANG, INIT, KEY, SAID, TURN, E, R, Stage, resumed
from tests.servers import wait_until

STREAM = ["claude", "-p", "--output-format", "stream-json", "--verbose", "go on"]
TEXT = ["claude", "-p", "go on"]
ANSWER = '{"type":"assistant","message":{"model":"some-model","content":[]},"session_id":"' + E + '"}\n'
ANSWERED = [["out", INIT], ["out", ANSWER]]
SYNTHETIC = ANSWER.replace("some-model", "<synthetic>")
SPURIOUS = '{"type":"result","subtype":"error_during_execution","is_error":true,"num_turns":0,"session_id":"' + R + '"}\n'
LINGERED = "redis-sessions: the agent had ended its turn and did not exit: it was ended after 200ms (--linger)"


def complete(stage: Stage) -> bool:
    [record] = stage.cli.raw.keys(f"{stage.cli.namespace}:record:*")
    return not stage.cli.raw.hexists(record, "i")  # incomplete


# -- a session that has answered


@pytest.mark.parametrize("how", ["signal", "time limit", "crash", "kill", "failure"])
def test_a_session_that_has_answered_is_saved_however_the_run_ends(
    stage: Stage, time_is_over: Callable[[], None], how: str
) -> None:
    ends = {"crash": [["await", "go"], ["die", "SIGSEGV"]], "failure": [["await", "go"], ["exit", 3]]}
    stage.script(fresh=[*ANSWERED, *ends.get(how, HANG)], resumed=SAID)
    process = stage.start("--timeout", "30m", "--result", str(stage.result_file), command=STREAM)
    # While the turn still runs.
    wait_until(lambda: stage.saved(E), "an early save")
    assert stage.leased()
    if how in ends:
        stage.go("go")
    elif how == "time limit":
        time_is_over()
    else:
        process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    codes = {"signal": 143, "time limit": 124, "crash": 128 + signal.SIGSEGV, "kill": -signal.SIGKILL, "failure": 3}
    assert stage.finish(process).code == codes[how]
    assert stage.saved(E)
    assert not complete(stage)
    if how != "kill":
        assert not stage.leased()
        assert stage.counters == (0, 1, 0)
        assert (stage.result["saved"], stage.result["session_id"], stage.result["complete"]) == (True, E, False)
        assert stage.run(command=STREAM).code == 0
        assert stage.starts[-1] == resumed("claude", E, STREAM)
        assert complete(stage)


@pytest.mark.parametrize("said", [[["out", INIT]], [["out", INIT], ["out", SYNTHETIC]], [["err", "working\n"]]])
def test_nothing_is_saved_before_an_answer(stage: Stage, said: list[Any]) -> None:
    stage.script(fresh=[*said, *HANG])
    process = stage.start(command=STREAM)
    stage.hear("ready")
    process.terminate()
    assert stage.finish(process).code == 143
    assert stage.stored() is None
    assert stage.counters == (0, 0, 0)


# -- a process that hangs, and exit codes


@pytest.mark.parametrize("step", [["pause"], ["on", "SIGTERM", [["tell", "term"]]]], ids=["hangs", "ignores SIGTERM"])
def test_a_process_that_hangs_after_its_record_is_ended(stage: Stage, step: list[Any]) -> None:
    stage.script(fresh=[["orphan", [["pause"]]], *([step] if step[0] == "on" else []), *SAID, *HANG])
    done = stage.run("--linger", "200ms", "--result", str(stage.result_file))
    assert (done.code, done.out, done.said) == (0, TURN.encode(), [LINGERED])
    assert stage.all_gone()
    assert stage.saved(E)
    assert complete(stage)
    assert not stage.leased()
    assert (stage.result["verdict"], stage.result["complete"], stage.result["exit_code"]) == ("ok", True, 0)


def test_a_process_that_hangs_after_a_failed_record_has_failed(stage: Stage) -> None:
    stage.plant(E)
    failed = TURN.replace('"is_error":false', '"is_error":true').replace('"hi"', '"Prompt is too long"')
    stage.script(resumed=[["out", failed], *HANG])
    assert stage.run("--linger", "200ms").code == 1
    assert stage.stored() is None
    assert stage.counters[2] == 1


def test_a_time_limit_while_it_hangs_after_its_record(stage: Stage, time_is_over: Callable[[], None]) -> None:
    stage.script(fresh=[*SAID, *HANG])
    process = stage.start("--timeout", "30m", "--linger", "2h")
    assert process.stdout is not None
    out = process.stdout.read(len(TURN))
    time_is_over()
    done = stage.finish(process)
    assert (done.code, out) == (0, TURN.encode())
    assert stage.saved(E)
    assert complete(stage)


def test_an_agent_that_goes_on_speaking_is_not_ended(stage: Stage) -> None:
    stage.script(fresh=[*SAID, ["flood", "err", "more\n", 200_000], ["exit", 0]])
    assert stage.run("--linger", "1m").said == []


def test_a_further_turn_takes_the_end_back(stage: Stage, time_is_over: Callable[[], None]) -> None:
    """As of several prompts by --input-format stream-json. It may then be silent for as long as it likes."""
    child = Child(
        command=STREAM,
        environment={},
        spool=None,
        observer=get_agent("claude").observer(None, STREAM),
        output=OutputBuffer(hold=False),
        signals=Signals(),
    )
    lingers = []
    for said in (INIT, ANSWER, TURN, INIT, ANSWER, TURN):
        child.observer.stdout(said.encode())
        child._take_note()
        lingers.append(child._lingers_until_s is not None)
    assert lingers == [False, False, True, False, False, True]
    stage.script(fresh=[*SAID, ["out", INIT], ["await", "go"], *SAID])
    process = stage.start("--linger", "30m", command=STREAM)
    out = process.stdout.readline() + process.stdout.readline()  # what was passed on was noted
    time_is_over()
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, (out + done.out).decode(), done.said) == (0, TURN + INIT + TURN, [])


def test_a_failure_after_success_is_passed_through_and_the_turn_saved(stage: Stage) -> None:
    stage.script(fresh=[["out", TURN], ["out", SPURIOUS], ["exit", 1]])
    done = stage.run(command=STREAM)
    assert (done.code, done.said) == (1, [])
    assert stage.saved(E)
    assert stage.counters == (0, 1, 0)


@pytest.mark.parametrize(
    ("command", "steps"),
    [(TEXT, []), (CLAUDE, []), (CLAUDE, [["out", "hi\n"]]), (COMMANDS["codex"], [["out", "hi\n"]])],
)
@pytest.mark.parametrize("quiet", [False, True])
def test_silence_is_not_success(stage: Stage, command: list[str], steps: list[Any], *, quiet: bool) -> None:
    stage.plant()
    stage.script(resumed=[*steps, ["exit", 0]])
    done = stage.run(*["--quiet"] * quiet, "--result", str(stage.result_file), command=command)
    assert done.code == stage.result["exit_code"] == 1
    [said] = done.said
    assert "ended with 1 (other) instead of 0" in said
    assert stage.kept()
    assert stage.counters == (0, 0, 0)


# -- what is said


@pytest.mark.parametrize("gone", [None, "lost track"])
def test_an_undecided_failure_says_what_was_tried(stage: Stage, gone: str | None) -> None:
    stage.plant()
    stage.script(resumed=[["err", "what a day\n"], ["exit", 3]])
    own = [] if gone is None else ["--resume-argument=--resume={id}", "--gone", gone]
    [said] = stage.run(*own, command=["claude", "{resume}", "-p"]).said
    assert (f"--gone '{gone}'" if gone else "patterns of claude") in said
    remedy = "add its words by --gone REGEX" if gone else "add a refusal to the runtime's file: see redis-sessions agents"
    assert said.endswith(f"if it is, {remedy}")


@pytest.mark.parametrize("gone", ["lost track of", "(?i)LOST track", "^2026.*lost", "a|lost"])
def test_gone_is_looked_for_in_the_whole_line(stage: Stage, gone: str) -> None:
    stage.plant()
    stage.script(resumed=[["err", "2026-11-26 ERROR lost track of it\n"], ["exit", 3]])
    done = stage.run("--resume-argument=--resume={id}", "--gone", gone, command=["claude", "{resume}", "-p"])
    assert (done.code, stage.counters[2]) == (0, 1)


LOGGED = '{"level":"info","msg":"starting"}\n'
ERROR = '{"level":"error","msg":"no such session b-1"}'


@pytest.mark.parametrize(
    "says", [f"{ERROR}\n", ERROR, f"{LOGGED}no such session b-1\n", LOGGED + ERROR, json.dumps(json.loads(ERROR), indent=2)]
)
def test_gone_is_found_in_json_and_behind_it(stage: Stage, says: str) -> None:
    """Whatever an agent writes to its log on stderr."""
    stage.plant("b-1")
    stage.script(resumed=[["err", says], ["exit", 1]], fresh=[["out", '{"session":{"id":"b-2"}}\n']])
    own = ["--resume-argument=--session={id}", "--id-field", "session.id", "--gone", "no such session"]
    done = stage.run(*own, "--result", str(stage.result_file), command=["claude", "{resume}", "ask"])
    assert (done.code, stage.result["how"], stage.stored()) == (0, "restarted", "b-2")


@pytest.mark.parametrize("says", [ERROR, LOGGED + ERROR])
def test_a_runtimes_refusal_is_found_in_a_line_of_json(stage: Stage, tmp_path: Path, says: str) -> None:
    stage.plant("b-1")
    file = tmp_path / "claude.toml"
    file.write_text("""
        name = "bot"
        executables = ["claude"]
        resume = ["--session={id}"]
        session_id_at = [{ path = "session.id" }]
        turn_began = [{ type = "begin" }]
        turn_ended = [{ session = "..." }]
        refusals = [{ verdict = "gone", pattern = '.*"no such session {id}"' }]
    """)
    stage.script(resumed=[["err", says + "\n"], ["exit", 1]], fresh=[["out", '{"session":{"id":"b-2"}}\n']])
    done = stage.run("--agent-file", str(file), "--result", str(stage.result_file), command=["claude", "{resume}", "ask"])
    assert (done.code, stage.result["how"], stage.stored()) == (0, "restarted", "b-2")


def test_another_session_that_came_is_named(stage: Stage) -> None:
    stage.plant()
    done = stage.run("--result", str(stage.result_file))
    assert done.said == [f"redis-sessions: session {R} was gone, and claude started {E} without saying so"]
    assert (stage.result["how"], stage.counters) == ("restarted", (0, 1, 1))


@pytest.mark.parametrize(("limit", "fails"), [("2", 2), (None, 3), ("0", 5)])
def test_giving_up(stage: Stage, limit: str | None, fails: int) -> None:
    stage.plant()
    stage.script(resumed=[["err", "what a day\n"], ["exit", 3]])
    options = [*([] if limit is None else ["--give-up-after", limit]), "--result", str(stage.result_file)]
    # The first one makes the record that failures are counted in.
    while len(stage.starts) < fails:
        assert stage.run(*options).code == 3
        assert stage.kept()
    done = stage.run(*options)
    if limit == "0":
        assert (done.code, stage.kept()) == (3, True)
        return
    [said] = done.said
    assert f"session {R} failed {fails} times in a row: started fresh" in said
    assert (stage.result["how"], stage.result["gave_up"], stage.result["previous"]) == ("gave_up", True, R)
    assert stage.saved(E)


# -- IDs that are set ahead, and sessions that nobody can resume


def test_mint_saves_what_no_output_names(stage: Stage) -> None:
    stage.script(fresh=[["out", "hi\n"]], resumed=[["out", "hi again\n"]])
    done = stage.run("--mint", command=TEXT)
    assert (done.code, done.out, done.said) == (0, b"hi\n", [])
    [[_, option, *_]] = stage.starts
    assert option == f"--session-id={stage.stored()}"
    assert stage.run("--mint", command=TEXT).code == 0
    assert stage.starts[1] == resumed("claude", stage.stored() or "", TEXT)


def test_mint_and_a_run_that_fails_before_an_answer(stage: Stage) -> None:
    stage.script(fresh=[["err", "no\n"], ["exit", 1]])
    for _ in range(2):
        assert stage.run("--mint", command=TEXT).code == 1
        assert stage.stored() is None
    first, second = stage.starts
    assert first[1] != second[1]


def test_mint_where_it_cannot_be(stage: Stage) -> None:
    done = stage.run("--mint", command=COMMANDS["codex"])
    assert (done.code, stage.starts) == (2, [])
    assert "codex takes no session ID" in done.said[0]
    assert "it is for claude, " in done.said[0]


@pytest.mark.parametrize(
    ("hang", "before", "joined"),
    [(False, [], False), (True, [], False), (False, ["bash", "-c"], True), (False, ["nice", "--"], False)],
)
def test_a_session_that_nobody_can_resume_is_not_saved(stage: Stage, before: list[str], *, hang: bool, joined: bool) -> None:
    stage.script(fresh=[*ANSWERED, *(HANG if hang else SAID)])
    command = [*STREAM, "--no-session-persistence"]
    process = stage.start(command=[*before, *([shlex.join(command)] if joined else command)])
    if hang:
        stage.hear("ready")
        process.terminate()
    done = stage.finish(process)
    assert done.code == (143 if hang else 0)
    assert done.said == [
        "redis-sessions: --no-session-persistence leaves nothing that could be resumed later: no session is saved"
    ]
    assert stage.stored() is None


# As Goose says it.
NO_RESUME = """#!/bin/sh
echo "$*" >> "$STAGE/given"
case " $* " in *" --resume "*) echo "error: the argument '--resume' cannot be used with '--no-session'" >&2; exit 2 ;; esac
echo hi
exit "$(cat "$STAGE/code")"
"""


@pytest.mark.parametrize("code", [0, 1])
def test_an_option_that_excludes_resuming_is_respected(stage: Stage, code: int) -> None:
    """The session stands, and no failure of such a run counts against it."""
    stage.plant()
    (stage.directory / "code").write_text(str(code))
    agent = stage.binaries / "goose"
    agent.unlink()
    agent.write_text(NO_RESUME)
    agent.chmod(0o700)
    for _ in range(4):
        done = stage.run("--result", str(stage.result_file), command=["goose", "run", "--no-session", "-t", "hi"])
        assert (done.code, done.out) == (code, b"hi\n")
        assert done.said == [
            "redis-sessions: --no-session leaves nothing that could be resumed later: no session is saved or resumed",
            f"redis-sessions: conversation '{KEY}': Redis held '{R}', which this agent can't resume: started fresh",
        ]
        assert (stage.result["how"], stage.result["saved"]) == (None if code else "fresh", False)
    assert (stage.directory / "given").read_text() == "run --no-session -t hi\n" * 4
    assert stage.kept()
    assert stage.counters == (0, 0 if code else 4, 0)
    assert not stage.leased()


def test_a_session_stands_when_the_agent_would_not_resume_it(stage: Stage) -> None:
    """As pi does, without a word: what it names then is no session, and the old one is not gone."""
    stage.plant()
    answer = {"type": "message_end", "message": {"role": "assistant"}}
    records = [{"type": "session", "id": E}, {"type": "turn_start"}, answer, {"type": "turn_end"}]
    stage.script(fresh=[["out", f"{json.dumps(record)}\n"] for record in records])
    assert stage.run(command=["pi", "--no-session", "--mode", "json", "-p", "hi"]).code == 0
    assert stage.starts == [["pi", "--no-session", "--mode", "json", "-p", "hi"]]
    assert stage.kept()


# -- output that is not held back


@pytest.mark.parametrize(
    "before", [[], ["timeout", "60", "nice"], ["sh", "-c", 'exec "$@"', "sh"], ["sh", "-c", 'cd . && exec "$@"', "sh"]]
)
def test_the_first_byte_shows_that_the_session_was_taken(stage: Stage, before: list[str]) -> None:
    """In text mode, where a refusal leaves stdout empty, unless a launcher may have written it."""
    stage.plant()
    stage.script(resumed=[["out", "hel"], ["await", "go"], ["out", "lo\n"]])
    process = stage.start(command=[*before, *TEXT])
    assert process.stdout is not None
    assert process.stdout.read(3) == b"hel"
    stage.go("go")
    assert stage.finish(process).out == b"lo\n"


def test_a_refusal_after_the_first_byte_is_not_run_again(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["out", "hel"], ["err", GONE], ["exit", 1]])
    assert stage.run(command=TEXT).code == 1
    assert len(stage.starts) == 1


NOISY = ["bash", "-c", 'echo "Now using node v22.14.0"; exec "$@"', "bash"]
NOISE = b"Now using node v22.14.0\n"
STARTED = f"session id: {E}\n--------\nuser\ngo on\n"
UNAUTHORIZED = "ERROR: unexpected status 401 Unauthorized: Missing bearer\n"


def test_what_a_launcher_prints_is_no_answer(stage: Stage) -> None:
    """The ID of a start that failed before an answer is that of a session that never existed."""
    stage.script(fresh=[["err", STARTED + UNAUTHORIZED], ["exit", 1]])
    done = stage.run(command=[*NOISY, "codex", "exec", "go on"])
    assert (done.code, done.out) == (1, NOISE)
    assert stage.stored() is None


def test_what_a_launcher_prints_does_not_keep_a_refusal_from_being_one(stage: Stage) -> None:
    stage.plant()
    stage.script(
        fresh=[["err", STARTED + "codex\n"], ["out", "hi\n"]],
        resumed=[["err", f"Error: thread/resume: thread/resume failed: no rollout found for thread id {R}\n"], ["exit", 1]],
    )
    done = stage.run(command=[*NOISY, "codex", "exec", "go on"])
    assert (done.code, done.out) == (0, NOISE + b"hi\n")
    assert stage.saved(E)
    assert stage.counters == (0, 1, 1)


@pytest.mark.parametrize("before", [[], ["timeout", "60"], ["sh", "-c", 'exec "$@"', "sh"]])
def test_an_answer_in_text_mode_is_saved_at_once(stage: Stage, before: list[str]) -> None:
    stage.script(fresh=[["err", STARTED], ["out", "hi\n"], *HANG])
    process = stage.start(command=[*before, "codex", "exec", "go on"])
    wait_until(lambda: stage.saved(E), "an early save")
    process.terminate()
    assert stage.finish(process).code == 143


# -- the processes of a run


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="both ways at once only on Linux")
def test_processes_are_found_without_proc_too() -> None:
    by_proc, by_ps = ({each.pid: each[1:3] for each in found()} for found in (_from_proc, _from_ps))
    common = by_proc.keys() & by_ps.keys()
    assert len(common) > 1
    assert {pid: by_ps[pid] for pid in common} == {pid: by_proc[pid] for pid in common}
