"""`run` with every runtime and every verdict: what is then in Redis, what was run, and what output was passed on."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from redis_sessions.agents import get_agent
from tests.run.stage import AGENTS, COMMANDS, Done, R, Stage, resumed

LINES = (Path(__file__).parents[1] / "observations.jsonl").read_text("utf-8").splitlines()
# Those of the runtimes that have a command on the stage, and that ended by themselves.
OBSERVATIONS = [
    each
    for each in map(json.loads, LINES)
    if each["agent"] in AGENTS and each["exit_code"] is not None and each["exit_code"] >= 0
]
ASKED = dict.fromkeys(AGENTS, R) | {"opencode": "ses_dfe04e541ffeGgqffElOqS2Kku"}
REFUSED = ("gone", "invalid_id", "unusable")


def asked(observation: dict[str, Any]) -> str:
    """The session that was asked for, or one that could have been."""
    requested = observation["requested"]
    agent = observation["agent"]
    return requested if requested and get_agent(agent).can_be(requested) else ASKED[agent]


JSON = COMMANDS | {
    "gemini": ["gemini", "-o", "json", "-p", "go on"],
    "copilot": ["copilot", "--output-format", "json", "-p", "go on"],
}
TEXT = COMMANDS | {
    "claude": ["claude", "-p", "go on"],
    "codex": ["codex", "exec", "go on"],
    "opencode": ["opencode", "run", "go on"],
}


def command(observation: dict[str, Any]) -> list[str]:
    """A command that asks for what was printed: JSON or text."""
    if observation["verdict"] in REFUSED:
        # It is that of the turn that follows.
        observation = fresh(observation["agent"])
    json_seen = observation["stdout"].lstrip()[:1] in ("{", "[") or re.search("json|stream", observation["case"])
    return (JSON if json_seen else TEXT)[observation["agent"]]


def said_by_run(done: Done) -> Done:
    """The same without what `run` itself said, on lines of its own."""
    lines = [line for line in done.err.splitlines(keepends=True) if not line.startswith(b"redis-sessions: ")]
    return Done(done.code, done.out, b"".join(lines))


def chosen() -> list[dict[str, Any]]:
    """The oldest and the newest observation of every runtime and verdict, before and after a turn had begun."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for each in OBSERVATIONS:
        raw = {part: each[part] for part in ("exit_code", "stdout", "stderr")}
        judged = get_agent(each["agent"]).judge(**raw, requested=asked(each), command=command(each))
        # A refusal that names another session than one that can be stored is not of this one; nor is an answer.
        if judged.verdict == each["verdict"] and judged.session_id in (each["session_id"], None):
            found.setdefault((each["agent"], each["verdict"], each["turn_began"]), []).append(each)
    return [each for many in found.values() for each in (many[0], many[-1])[: len(many)]]


def fresh(agent: str) -> dict[str, Any]:
    """A turn of this runtime that succeeded and named its session."""
    return next(o for o in OBSERVATIONS if o["agent"] == agent and o["verdict"] == "ok" and o["session_id"])


def steps(observation: dict[str, Any]) -> list[Any]:
    parts = [[name, observation[part].encode().decode("latin-1")] for name, part in (("err", "stderr"), ("out", "stdout"))]
    return [*parts, ["exit", observation["exit_code"]]]


@dataclass
class Case:
    """An observation that was played: as the answer to a resume, or to a fresh start."""

    observation: dict[str, Any]
    resuming: bool
    stage: Stage
    done: Done


PLAYED = [(each, resuming) for each in chosen() for resuming in ((True, False) if each["verdict"] != "busy" else (True,))]


def name(played: tuple[dict[str, Any], bool]) -> str:
    each, resuming = played
    began = " after it began" if each["turn_began"] else ""
    how = "resuming" if resuming else "fresh"
    return f"{each['agent']} {each['version']} {each['verdict']}{began}, {how}: {each['case']}"


@pytest.fixture
def case(request: pytest.FixtureRequest, stage: Stage) -> Case:
    each, resuming = request.param
    if resuming:
        stage.plant(asked(each))
        stage.script(fresh=steps(fresh(each["agent"])), resumed=steps(each))
    else:
        stage.script(fresh=steps(each), resumed=[["exit", 99]])
    done = stage.run("--result", str(stage.result_file), command=command(each), given=b"the prompt\n")
    return Case(each, resuming, stage, done)


def of(*verdicts: str, resuming: bool = True, began: bool | None = None) -> Any:
    played = [
        (each, how)
        for each, how in PLAYED
        if how is resuming and each["verdict"] in verdicts and began in (None, each["turn_began"])
    ]
    assert played
    return pytest.mark.parametrize("case", played, indirect=True, ids=name)


def passed_through(case: Case, observation: dict[str, Any]) -> None:
    # A failure is never an exit code of 0.
    code = observation["exit_code"] or int(observation["verdict"] != "ok")
    err = observation["stderr"].encode()
    if case.done.said and err and not err.endswith(b"\n"):
        # What is said has a line of its own.
        err += b"\n"
    assert said_by_run(case.done) == Done(code, observation["stdout"].encode(), err)


def test_every_verdict_of_every_runtime_is_here() -> None:
    assert {(each["agent"], each["verdict"]) for each, _ in PLAYED} == {(o["agent"], o["verdict"]) for o in OBSERVATIONS}


@of("ok")
def test_a_session_that_exists(case: Case) -> None:
    each, stage = case.observation, case.stage
    passed_through(case, each)
    agent, before = each["agent"], asked(each)
    after = each["session_id"] or before
    assert stage.starts == [resumed(agent, before, command(each))]
    assert stage.saved(after)
    assert not stage.leased()
    # Each of these keeps a session's ID: with another one, the old one was gone.
    assert stage.counters == ((1, 0, 0) if after == before else (0, 1, 1))
    if after != before:
        assert stage.result["how"] == "restarted"
        return
    assert {name: value for name, value in stage.result.items() if name != "context_tokens"} == {
        "how": "resumed",
        "verdict": "ok",
        "complete": True,
        "gave_up": False,
        "session_id": after,
        "previous": before,
        "session_changed": after != before,
        "moved": False,
        "saved": True,
        "replicated": None,
        "reason": None,
        "exit_code": 0,
    }


@of(*REFUSED, began=False)
def test_a_session_that_was_refused(case: Case) -> None:
    each, stage = case.observation, case.stage
    agent, before = each["agent"], asked(each)
    passed_through(case, fresh(agent))
    assert stage.starts == [resumed(agent, before, command(each)), command(each)]
    assert stage.saved(fresh(agent)["session_id"])
    assert not stage.leased()
    assert stage.counters == (0, 1, 1)
    assert {name: value for name, value in stage.result.items() if name != "context_tokens"} == {
        "how": "restarted",
        "verdict": "ok",
        "complete": True,
        "gave_up": False,
        "session_id": fresh(agent)["session_id"],
        "previous": before,
        "session_changed": False,
        "moved": False,
        "saved": True,
        "replicated": None,
        "reason": f"session {before} was refused ({each['verdict']})",
        "exit_code": 0,
    }


@of(*REFUSED, began=True)
def test_a_session_that_was_refused_after_a_turn_had_begun(case: Case) -> None:
    each, stage = case.observation, case.stage
    passed_through(case, each)
    assert stage.starts == [resumed(each["agent"], asked(each), command(each))]
    assert stage.stored() is None
    assert not stage.leased()
    assert stage.counters == (0, 0, 1)
    code = each["exit_code"] or 1
    assert (stage.result["how"], stage.result["saved"], stage.result["exit_code"]) == (None, False, code)
    assert each["verdict"] in stage.result["reason"]


@of("busy", "other", "unavailable")
def test_a_failure_that_is_not_a_refusal(case: Case) -> None:
    each, stage = case.observation, case.stage
    passed_through(case, each)
    assert stage.starts == [resumed(each["agent"], asked(each), command(each))]
    if each["session_id"] is None:
        assert stage.kept(asked(each))
    else:
        # The model had answered: it was a turn.
        assert stage.saved(each["session_id"])
    assert not stage.leased()
    assert stage.counters == (int(each["session_id"] is not None), 0, 0)
    saved = each["session_id"] is not None
    assert (stage.result["how"], stage.result["saved"], stage.result["exit_code"]) == (None, saved, each["exit_code"] or 1)
    assert (stage.result["verdict"], stage.result["complete"]) == (each["verdict"], False)


@of("ok", "other", "unavailable", *REFUSED, resuming=False)
def test_a_fresh_start(case: Case) -> None:
    each, stage = case.observation, case.stage
    if each["verdict"] == "ok" and each["session_id"] is None:
        [unnamed] = case.done.said
        assert "no session ID in the output" in unnamed
        # It has a line of its own, whatever the agent's last one ended with.
        before = each["stderr"] + "\n" * (each["stderr"][-1:] not in ("", "\n"))
        assert case.done.err == f"{before}{unnamed}\n".encode()
        case.done.err = each["stderr"].encode()
    passed_through(case, each)
    assert stage.starts == [command(each)]
    saved = None if each["verdict"] in REFUSED else each["session_id"]
    assert stage.stored() == saved
    assert stage.counters == (0, int(each["verdict"] == "ok" or saved is not None), 0)
    assert not stage.leased()
    assert stage.result["how"] == ("fresh" if each["verdict"] == "ok" else None)
    assert stage.result["saved"] is (saved is not None)
