"""The runtimes beside the first five: how each is called, what looks like its errors and is none, and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from redis_sessions import Verdict
from redis_sessions.agents import Refusal, get_agent
from redis_sessions.agents.command_line import PlaceUnknown, guess, with_resume
from tests.over import over

LINES = (Path(__file__).parent / "observations.jsonl").read_text("utf-8").splitlines()
R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
# Runtime: a session ID of it, another one, a command, and the same with the arguments that resume that session.
CALLS = {
    "amp": (f"T-{R}", f"T-{E}", "amp -x hi --stream-json", f"amp threads continue T-{R} -x hi --stream-json"),
    "auggie": (R, E, "auggie --print hi", f"auggie --resume {R} --print hi"),
    "cursor": (R, E, "cursor-agent -p hi", f"cursor-agent --resume={R} -p hi"),
    "droid": (R, E, "droid exec -o json hi", f"droid exec --session-id {R} -o json hi"),
    "goose": (R, E, "goose run -q -t hi", f"goose run --resume --name {R} -q -t hi"),
    "grok": (R, E, "grok --always-approve -p hi", f"grok --resume={R} --always-approve -p hi"),
    "hermes": (
        "20261126_134420_7313a8",
        "20261126_134421_7313a8",
        "hermes chat --quiet -q hi",
        "hermes chat --resume=20261126_134420_7313a8 --quiet -q hi",
    ),
    "kilo": (
        "ses_c4b86607569affeAbCdEfGhIjK",
        "ses_c4b86607569affeAbCdEfGhIjL",
        "kilo run --format json hi",
        "kilo run --session=ses_c4b86607569affeAbCdEfGhIjK --format json hi",
    ),
    "kimi": (f"session_{R}", f"session_{E}", "kimi -p hi", f"kimi --session session_{R} -p hi"),
    "pi": (R, E, "pi -p --mode json hi", f"pi --session {R} -p --mode json hi"),
    "qwen": (R, E, "qwen -p hi", f"qwen --resume={R} -p hi"),
}
GONE = {
    "goose": "Error: No session found with name '{}'",
    "grok": 'Session "{}" not found locally, restoring conversation from remote...',
    "hermes": "Session not found: {}",
    "kimi": 'error: failed to run prompt: Session "{}" not found.',
    "pi": "No session found matching '{}'",
    "qwen": "No saved session found with ID {}. Run `qwen --resume` without an ID to choose from existing sessions.",
}
MINTS = {"goose": f"--name {R}", "grok": f"--session-id {R}", "qwen": f"--session-id {R}"}
# What ends a turn well, with the ID where its JSON has one, and {} for what the model says.
TURNS = {
    "amp": '{{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":{},"session_id":"{id}"}}',
    "auggie": '{{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":{},"session_id":"{id}"}}',
    "cursor": '{{"type":"result","subtype":"success","is_error":false,"result":{},"session_id":"{id}"}}',
    "droid": '{{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":{},"session_id":"{id}"}}',
    "grok": '{{"text":{},"stopReason":"end_turn","sessionId":"{id}","num_turns":1}}',
    "kimi": '{{"role":"assistant","content":{}}}\n{{"role":"meta","type":"session.resume_hint","session_id":"{id}"}}',
    "pi": '{{"type":"session","id":"{id}"}}\n{{"type":"turn_start"}}\n'
    '{{"type":"turn_end","message":{{"role":"assistant","content":[{{"type":"text","text":{}}}],"stopReason":"stop"}}}}',
}
# What each says of its session in an API error, which no model's answer begins with.
OWN_ERRORS = {"goose": "Ran into this error: ", "qwen": "[API Error: "}


def observed(name):
    return [each for each in map(json.loads, LINES) if each["agent"] == name]


@over("name", CALLS)
def test_where_the_resume_arguments_go(name):
    agent = get_agent(name)
    session_id, _, fresh, resumed = CALLS[name]
    arguments = [word.replace("{id}", session_id) for word in agent.resume]
    assert agent.can_be(session_id)
    assert guess(fresh.split(), agent.executables) == fresh.split()[0]
    assert with_resume(fresh.split(), agent.executables, agent.place, arguments) == resumed.split()
    # What resumes by itself is refused (amp has a word for it, not an option).
    if name != "amp":
        with pytest.raises(PlaceUnknown):
            with_resume(resumed.split(), agent.executables, agent.place, [])


@over("name", MINTS)
def test_where_the_arguments_go_that_set_an_id_ahead(name):
    agent = get_agent(name)
    fresh = CALLS[name][2].split()
    arguments = [word.replace("{id}", R) for word in agent.mint]
    assert arguments == MINTS[name].split()
    with_it = with_resume(fresh, agent.executables, agent.place, arguments)
    assert [word for word in with_it if word not in arguments] == fresh


@over("name", CALLS)
def test_ids_of_others(name):
    others = {call[0] for call in CALLS.values()} - {CALLS[name][0]}
    # A session of Goose is called as one likes.
    if name != "goose":
        assert [each for each in others if get_agent(name).can_be(each)] == []


@pytest.mark.parametrize("name", GONE)
class TestGone:
    def test_only_the_requested_session(self, name):
        session_id, another, *_ = CALLS[name]
        run = {"exit_code": 1, "stderr": GONE[name].format(session_id) + "\n"}
        judgement = get_agent(name).judge(**run, requested=session_id)
        assert (judgement.verdict, judgement.session_id, judgement.turn_began) == (Verdict.gone, None, False)
        assert get_agent(name).judge(**run, requested=another).verdict is Verdict.other

    def test_not_in_the_middle_of_a_line(self, name):
        line = f"2026-11-26 DEBUG tool said: {GONE[name].format(CALLS[name][0])}\n"
        assert get_agent(name).judge(exit_code=1, stderr=line).verdict is Verdict.other

    def test_not_once_the_model_has_answered(self, name):
        """A tool may print such a line: nothing is run again, and nothing deleted."""
        agent = get_agent(name)
        if not agent.answered:
            return
        for each in observed(name):
            if each["verdict"] == "ok" and each["turn_began"]:
                run = {"exit_code": 1, "stdout": each["stdout"], "stderr": GONE[name].format(CALLS[name][0]) + "\n"}
                judgement = agent.judge(**run)
                assert not judgement.verdict.refused
                assert judgement.turn_began


@over("name", TURNS)
def test_a_model_may_say_what_it_likes(name):
    """The words of any runtime's errors, in an answer, are no errors."""
    session_id = CALLS[name][0]
    for words in (*(phrase.format(session_id) for phrase in GONE.values()), *OWN_ERRORS.values(), "401 Unauthorized"):
        stdout = TURNS[name].format(json.dumps(words), id=session_id) + "\n"
        judgement = get_agent(name).judge(exit_code=0, stdout=stdout, requested=session_id)
        assert (judgement.verdict, judgement.session_id) == (Verdict.ok, session_id)


@over("name", TURNS)
def test_a_session_that_was_replaced_without_a_word(name):
    """Cursor starts a new session for an ID that it does not know."""
    session_id, another, *_ = CALLS[name]
    stdout = TURNS[name].format('"hi"', id=another) + "\n"
    judgement = get_agent(name).judge(exit_code=0, stdout=stdout, requested=session_id)
    assert (judgement.verdict, judgement.session_id) == (Verdict.ok, another)
    assert judgement.previous_gone is get_agent(name).keeps_id


@over("name", ["amp", "auggie", "cursor", "droid"])
def test_a_failure_with_exit_code_0(name):
    stdout = TURNS[name].format('"the model is not available"', id=CALLS[name][0]).replace("false", "true", 1)
    judgement = get_agent(name).judge(exit_code=0, stdout=stdout)
    assert (judgement.verdict, judgement.session_id) == (Verdict.other, None)


class TestErrorsOfTheModelsAPI:
    @over("name", ["goose", "grok", "hermes", "kimi", "pi", "qwen"])
    def test_no_such_error_leads_to_a_second_run(self, name):
        errors = [each for each in observed(name) if each["verdict"] in ("unavailable", "unusable") and each["requested"]]
        assert {each["verdict"] for each in errors} == {"unavailable", "unusable"}
        for each in errors:
            run = {part: each[part] for part in ("exit_code", "stdout", "stderr", "requested")}
            judgement = get_agent(name).judge(**run)
            assert judgement.turn_began or "no key" in each["case"]

    def test_those_that_end_with_exit_code_0(self):
        for name in ("goose", "pi", "qwen"):
            failed = [each for each in observed(name) if each["exit_code"] == 0 and each["verdict"] != "ok"]
            assert {each["verdict"] for each in failed} >= {"unavailable", "unusable"}
            assert all(each["session_id"] is None or "tool" in each["case"] for each in failed)


def test_amp_has_another_word_for_json():
    assert get_agent("amp").wants_json(["amp", "-x", "hi", "--stream-json-thinking"])
    assert get_agent("amp").wants_json(["amp", "-x", "hi"]) is False


def test_the_size_of_a_context_of_pi():
    [resumed] = [each for each in observed("pi") if each["case"] == "resumed json"]
    observer = get_agent("pi").observer(R, ["pi", "-p", "--mode", "json", "hi"])
    observer.stdout(resumed["stdout"].encode())
    assert observer.context_tokens == 2
    assert observer.closed == "ok"


def test_a_tool_of_goose_may_take_long():
    """Between two messages it is not taken for a process that hangs after its end."""
    [turn] = [each for each in observed("goose") if each["case"].startswith("tool by --name")]
    observer = get_agent("goose").observer(None, ["goose", "run", "--output-format", "stream-json", "-t", "hi"])
    for line in turn["stdout"].encode().splitlines(keepends=True):
        observer.stdout(line)
        assert observer.closed is None
        assert observer.answered


@over("name", CALLS)
def test_every_refusal_says_which_errors_come_from_within_a_turn(name):
    """A session that is gone, or another's, is refused before the turn begins; a full context is not."""
    for refusal in get_agent(name).refusals:
        assert isinstance(refusal, Refusal)
        if refusal.verdict in (Verdict.gone, Verdict.invalid_id, Verdict.busy):
            assert not refusal.within_turn
