"""Messages of `run`: whatever keeps a turn from being resumed later is reported; --quiet leaves only failures."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from redis_sessions.agents import known_agents
from redis_sessions.cli.output import logged_warnings
from redis_sessions.operations.text import exact_duration, parse_duration_ms
from redis_sessions.server import EmbeddedServer
from tests import test_cli_support
from tests.run.stage import COMMANDS, KEY, SAID, TURN, E, R, Stage

NOWHERE = ["--url", "unix:///nowhere/redis.sock"]
READY = [["tell", "ready"], ["await", "go"], *SAID, ["exit", 0]]


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    """A server that asks for a password, and the URL of somebody who hasn't got the right one."""
    with EmbeddedServer(extra={"requirepass": "right-s3cret"}) as server:
        yield server.url.replace("redis://", "redis://:wrong-s3cret@")


# -- without Redis


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("code", [0, 9])
def test_without_redis_one_line_says_what_that_costs(stage: Stage, code: int) -> None:
    stage.script(fresh=[*SAID, ["exit", code]])
    done = stage.run(*NOWHERE)
    assert (done.code, done.out) == (code, TURN.encode())
    [said] = done.said
    assert "/nowhere/redis.sock can't be reached (No such file or directory)" in said
    assert said.endswith("the turn runs fresh, without a lease, and unless that changes by its end nothing is saved")


@pytest.mark.usefixtures("hasty")
def test_an_outage_is_reported_before_the_agent_has_ended(stage: Stage) -> None:
    stage.script(fresh=READY)
    process = stage.start(*NOWHERE)
    stage.hear("ready")
    assert process.stderr is not None
    assert b"without a lease" in process.stderr.readline()
    stage.go("go")
    assert stage.finish(process).code == 0


def test_a_store_that_refuses_access_is_not_an_outage(stage: Stage, guarded: str) -> None:
    done = stage.run("--url", guarded, "--result", str(stage.result_file))
    assert (done.code, done.out) == (0, TURN.encode())
    [said] = done.said
    assert "the store refuses access" in said
    assert "refuses this user's password (WRONGPASS): check user and password of the URL" in said
    assert "the turn runs fresh, without a lease" in said
    for text in (said, stage.result["reason"]):
        assert "unavailable" not in text
        assert "s3cret" not in text


@pytest.mark.parametrize("quiet", [False, True])
def test_access_refused_and_on_outage_raise(stage: Stage, guarded: str, *, quiet: bool) -> None:
    done = stage.run("--url", guarded, "--on-outage", "raise", *["--quiet"] * quiet)
    assert (done.code, done.out, len(done.said)) == (69, b"", 1)
    assert "WRONGPASS" in done.said[0]
    assert stage.starts == []


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("quiet", [False, True])
def test_redis_goes_away_during_a_turn(stage: Stage, *, quiet: bool) -> None:
    stage.script(fresh=READY)
    with EmbeddedServer() as server:
        process = stage.start("--url", server.url, *["--quiet"] * quiet)
        stage.hear("ready")
        server.kill()
    stage.go("go")
    done = stage.finish(process)
    assert (done.code, done.out) == (0, TURN.encode())
    if quiet:
        assert done.err == b""
    else:
        [said] = done.said
        assert "not saved: " in said
        assert "can't be reached" in said
        assert said.endswith(f"session {E} may never be resumed")


def test_a_failed_renewal_is_reported_while_the_agent_runs(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_cli_support, "PROGRAM", test_cli_support.program_with(lease_ms=30, deadline_ms=10))
    stage.script(fresh=READY)
    with EmbeddedServer() as server:
        process = stage.start("--url", server.url)
        stage.hear("ready")
        server.kill()
    assert process.stderr is not None
    said = process.stderr.readline().decode()
    assert f"lease of {KEY!r} was not renewed: 127.0.0.1:" in said
    stage.go("go")
    assert stage.finish(process).code == 0


def test_a_repeated_warning_is_reported_once() -> None:
    said: list[str] = []
    log = logging.getLogger("redis_sessions")
    with logged_warnings(said.append, once=True):
        for what in ("away", "away", "back"):
            log.warning("the store is %s", what)
        log.info("no warning")
    log.warning("said by nobody any more")
    assert said == ["the store is away", "the store is back"]


@pytest.mark.usefixtures("hasty")
def test_quiet_leaves_out_everything_but_failures(stage: Stage) -> None:
    assert stage.run(*NOWHERE, "--quiet").err == b""
    stage.script(fresh=[["out", "hi\n"]])
    assert stage.run("--quiet", command=["claude", "-p", "hi"]).err == b""
    stage.script()
    stage.plant("5f2c9a")
    assert stage.run("--quiet").err == b""


def test_quiet_keeps_the_reason_of_the_exit_code(stage: Stage) -> None:
    done = stage.run("--quiet", command=["/nowhere/claude", "-p"])
    assert (done.code, len(done.said)) == (127, 1)
    assert "can't be run" in done.said[0]


def test_a_message_starts_on_a_new_line(stage: Stage) -> None:
    stage.script(fresh=[["out", "hi\n"], ["err", "no line yet"]])
    text = ["claude", "-p", "hi"]
    assert stage.run(command=text).err.startswith(b"no line yet\nredis-sessions: no session ID")
    assert stage.run("--quiet", command=text).err == b"no line yet"


# -- without a session ID


TEXT = {
    "claude": (["claude", "-p", "hi"], ": add --output-format json"),
    "codex": (["codex", "exec", "hi"], ": add --json"),
    "gemini": (["gemini", "-p", "hi"], ": add --output-format json"),
    "opencode": (["opencode", "run", "hi"], ": add --format json"),
    "copilot": (["copilot", "-p", "hi"], ": add --output-format json"),
    "amp": (["amp", "-x", "hi"], ": add --stream-json --no-archive-after-execute"),
    "auggie": (["auggie", "-p", "hi"], ": add --output-format json"),
    "cursor": (["cursor-agent", "-p", "hi"], ": add --output-format json"),
    "droid": (["droid", "exec", "hi"], ": add --output-format json"),
    # Nothing that it prints names a session.
    "goose": (["goose", "run", "-t", "hi"], ": add --mint"),
    "grok": (["grok", "-p", "hi"], ": add --output-format json"),
    # A line of text names it.
    "hermes": (["hermes", "chat", "--quiet", "-q", "hi"], ""),
    "kilo": (["kilo", "run", "hi"], ": add --format json"),
    "kimi": (["kimi", "-p", "hi"], ": add --output-format stream-json"),
    "pi": (["pi", "-p", "hi"], ": add --mode json"),
    "qwen": (["qwen", "-p", "hi"], ": add --output-format json"),
}
NONE = "no session ID in the output of {}, so nothing was saved and the next turn starts fresh"


def test_every_runtime_has_a_remedy_for_text_mode() -> None:
    assert set(TEXT) == {agent.name for agent in known_agents() if agent.executables}


@pytest.mark.parametrize("agent", TEXT)
def test_a_turn_in_text_mode(stage: Stage, agent: str) -> None:
    """The most natural first command: what is missing from it is said."""
    command, remedy = TEXT[agent]
    stage.script(fresh=[["out", "hi\n"]])
    done = stage.run(command=command)
    assert (done.code, done.out) == (0, b"hi\n")
    assert done.said == [f"redis-sessions: {NONE.format(agent)}{remedy}"]
    assert stage.stored() is None


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS.values(),
        ["claude", "-p", "--output-format=stream-json"],
        ["codex", "exec", "--experimental-json", "x"],
        ["gemini", "-o", "json"],
    ],
)
def test_json_without_a_session_id(stage: Stage, command: list[str]) -> None:
    """What was added already is not asked for."""
    ends = {"codex": {"type": "turn.completed"}, "opencode": {"type": "step_finish"}}
    stage.script(fresh=[["out", json.dumps(ends.get(command[0], {"type": "result", "subtype": "success"})) + "\n"]])
    remedy = ": add --output-format json" if "json" not in " ".join(command) else ""
    assert stage.run(command=command).said == [f"redis-sessions: {NONE.format(command[0])}{remedy}"]


def test_an_own_runtime_without_an_id_field(stage: Stage) -> None:
    stage.script(fresh=[["out", "hi\n"]])
    done = stage.run("--resume-argument=-s={id}", command=["claude", "{resume}"])
    assert done.said == [f"redis-sessions: {NONE.format('claude')}: say where it is with --id-field"]


def test_a_resumed_session_that_names_no_id_is_kept(stage: Stage) -> None:
    stage.plant()
    stage.script(resumed=[["out", "hi\n"]])
    assert stage.run(command=["claude", "-p", "hi"]).err == b""
    assert stage.saved(R)


@pytest.mark.parametrize(
    ("named", "shown", "why"),
    [
        ("--evil", "'--evil'", "is not a valid session ID"),
        ("s-1", "'s-1'", "this agent can't resume"),
        ("\x1b[2J" + "x" * 300, rf"'\x1b[2J{'x' * 56}'…", "is not a valid session ID"),
    ],
)
@pytest.mark.parametrize("planted", [None, R])
def test_a_refused_id_is_named(stage: Stage, planted: str | None, named: str, shown: str, why: str) -> None:
    if planted:
        stage.plant()
    turn = [["out", json.dumps(json.loads(TURN) | {"session_id": named}) + "\n"]]
    stage.script(fresh=turn, resumed=turn)
    done = stage.run("--result", str(stage.result_file))
    reason = f"the turn gave {shown} as its session, which {why}: not saved"
    assert done.code == 0
    assert done.said == [f"redis-sessions: conversation {KEY!r}: {reason}"]
    assert stage.stored() == planted
    assert (stage.result["session_id"], stage.result["reason"]) == (planted, reason)


def test_a_refused_id_in_redis_is_named(stage: Stage) -> None:
    stage.plant("5f2c9a")
    [said] = stage.run().said
    assert said.endswith("Redis held '5f2c9a', which this agent can't resume: started fresh")


def test_an_invalid_value_in_redis_is_reported(stage: Stage) -> None:
    stage.plant("two words")
    [said] = stage.run().said
    assert said.endswith("what Redis held was not a valid session ID")


# -- a conversation that somebody else runs, and times


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ([], "try later, or wait for it with --wait 30s"),
        (["--wait", "10ms"], "try later, or wait for it with more than --wait 10ms"),
    ],
)
def test_the_second_worker_learns_of_the_wait_option(stage: Stage, options: list[str], remedy: str) -> None:
    stage.cli.raw.set(stage.cli.keys.lease(KEY), "another:1:x", px=30 * 86_400_000 + 30_000)
    done = stage.run(*options, "--result", str(stage.result_file))
    [said] = done.said
    assert done.code == 75
    assert "is leased by another:1 for " in said
    assert said.endswith(remedy)
    assert stage.result["reason"] in said
    assert "wait_ms" not in said


@pytest.mark.parametrize("text", ["1ms", "1500ms", "90s", "1s", "2h", "1d", "0ms"])
def test_durations_are_printed_exactly(text: Any) -> None:
    milliseconds = parse_duration_ms(text, "--timeout")
    assert parse_duration_ms(exact_duration(milliseconds), "--timeout") == milliseconds
    assert exact_duration(60_000) == "1m"
