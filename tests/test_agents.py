"""Every observation gets its verdict; look-alikes do not; only a refusal deletes an ID or repeats a run."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_sessions import StoreSettings, Turn, Verdict
from redis_sessions.agents import Agent, Refusal, UnknownAgent, get_agent, known_agents, register
from redis_sessions.agents.judge import RunObserver
from redis_sessions.testing import fake_store
from tests.over import over

LINES = (Path(__file__).parent / "observations.jsonl").read_text("utf-8").splitlines()
OBSERVATIONS = [json.loads(line) for line in LINES]
# Of those that have a command, the session that was requested counts, too.
for each in OBSERVATIONS:
    if "command" not in each:
        del each["requested"]
PARTS = ("exit_code", "stdout", "stderr", "requested", "command")
R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
CLIS = ["claude", "codex", "gemini", "opencode", "copilot"]
PHRASES = [
    f"No conversation found with session ID: {R}",
    f"Error: thread/resume: thread/resume failed: no rollout found for thread id {R} (code -32600)",
    f'Error resuming session: Invalid session identifier "{R}".',
    "Error: Session not found",
    f"Error: No session, task, or name matched '{R}'.",
    "Prompt is too long",
    "Codex ran out of room in the model's context window. Start a new thread.",
    "Error: --resume requires a valid session ID",
    f"Error: thread/resume: thread/resume failed: thread {R} already has an active writer (code -32600)",
]


def name(observation):
    return f"{observation['agent']} {observation['version']} {observation['case']}"


def judge(observation):
    return get_agent(observation["agent"]).judge(**{part: observation[part] for part in PARTS if part in observation})


@over("observation", OBSERVATIONS)
def test_every_observation_gets_its_verdict(observation):
    judgement = judge(observation)
    assert judgement.verdict == observation["verdict"]
    assert judgement.session_id == observation["session_id"]
    assert judgement.turn_began is observation["turn_began"]
    assert judgement.cut_short is observation.get("cut_short", False)
    assert judgement.previous_gone is observation.get("previous_gone", False)


@over("observation", OBSERVATIONS)
def test_the_verdict_does_not_depend_on_the_pieces(observation):
    observer = get_agent(observation["agent"]).observer(observation.get("requested"), observation.get("command"))
    for part, take in (("stdout", observer.stdout), ("stderr", observer.stderr)):
        raw = observation[part].encode()
        for start in range(0, len(raw), 7):
            take(raw[start : start + 7])
    assert observer.judge(observation["exit_code"]) == judge(observation)


def test_only_a_refusal_deletes_and_only_an_early_one_repeats(capsys):
    """Prints the table of what was recognized and done."""
    done = Counter()
    for observation in OBSERVATIONS:
        judgement = judge(observation)
        deleted = judgement.verdict.refused
        again = deleted and not judgement.turn_began
        saved = "saved" if judgement.verdict is Verdict.ok else "saved, incomplete"
        what = "deleted, run again" if again else "deleted" if deleted else saved if judgement.session_id else "kept"
        done[observation["agent"], judgement.verdict, what] += 1
    with capsys.disabled():
        print(f"\n{'runtime':10} {'recognized':12} {'the ID was':20} observations")
        for (agent, verdict, what), count in sorted(done.items()):
            print(f"{agent:10} {verdict:12} {what:20} {count:5}")
    # Amp needs a login, and Cursor was not run.
    runtimes = {agent.name for agent in known_agents() if agent.executables}
    assert {agent for agent, _, _ in done} == runtimes - {"amp", "cursor"}


def claude_result(**values):
    record = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 1, "session_id": E, "result": "Done."}
    return json.dumps({"type": "system", "subtype": "init", "session_id": E}) + "\n" + json.dumps(record | values) + "\n"


class TestConfusable:
    @over("phrase", PHRASES)
    @over("agent", CLIS)
    def test_a_phrase_from_the_assistant_with_exit_0(self, agent, phrase):
        for stdout in (phrase + "\n", claude_result(result=phrase) if agent == "claude" else phrase):
            assert get_agent(agent).judge(exit_code=0, stdout=stdout).verdict is Verdict.ok

    @over("phrase", PHRASES)
    @over("agent", CLIS)
    def test_a_phrase_on_stdout_of_a_run_that_failed(self, agent, phrase):
        assert get_agent(agent).judge(exit_code=1, stdout=f"{phrase}\n").verdict is Verdict.other

    @over("phrase", PHRASES)
    def test_a_phrase_in_tool_output_before_a_failure_of_another_kind(self, phrase):
        tool = {"type": "user", "message": {"content": [{"type": "tool_result", "content": phrase}]}, "errors": [phrase]}
        failed = claude_result(is_error=True, result="API Error: 500 internal", tool=phrase)
        run = {"exit_code": 1, "stdout": json.dumps(tool) + "\n" + failed, "stderr": f"{phrase}\n"}
        assert get_agent("claude").judge(**run).verdict is Verdict.unavailable
        item = {"type": "item.completed", "item": {"type": "command_execution", "aggregated_output": phrase}}
        turn = ['{"type":"turn.started"}', json.dumps(item), '{"type":"turn.failed","error":{"message":"429"}}']
        run = {"exit_code": 1, "stdout": "\n".join(turn), "stderr": f"{phrase}\n"}
        assert get_agent("codex").judge(**run).verdict is Verdict.other

    @over(
        ("said", "verdict"),
        [
            (f"no rollout found for thread id {R}", "gone"),
            (f"thread {R} already has an active writer", "busy"),
            ("failed to load configuration: Cannot change this thread's model provider from `a` to `b` on resume.", "other"),
        ],
    )
    def test_the_same_code_for_three_reasons(self, said, verdict):
        line = f"Error: thread/resume: thread/resume failed: {said} (code -32600)\n"
        assert get_agent("codex").judge(exit_code=1, stderr=line).verdict == verdict

    def test_not_found_in_the_middle_of_a_line(self):
        for agent in CLIS:
            for phrase in PHRASES:
                run = {"exit_code": 1, "stderr": f"2026-11-22 DEBUG tool said: {phrase}\n"}
                assert get_agent(agent).judge(**run).verdict is Verdict.other

    def test_a_failed_run_that_carries_a_new_id(self):
        gone = {"subtype": "error_during_execution", "is_error": True, "num_turns": 0, "errors": [PHRASES[0]]}
        judgement = get_agent("claude").judge(exit_code=1, stdout=json.dumps({"type": "result", "session_id": E} | gone))
        assert (judgement.verdict, judgement.session_id) == (Verdict.gone, None)

    def test_subtype_success_with_is_error(self):
        judgement = get_agent("claude").judge(exit_code=1, stdout=claude_result(is_error=True, result="Not logged in"))
        assert (judgement.verdict, judgement.session_id) == (Verdict.unavailable, None)

    def test_a_refusal_of_another_session(self):
        run = {"exit_code": 1, "stderr": f"{PHRASES[0]}\n"}
        assert get_agent("claude").judge(**run, requested=R).verdict is Verdict.gone
        assert get_agent("claude").judge(**run, requested=E).verdict is Verdict.other

    def test_two_refusals_that_disagree(self):
        run = {"exit_code": 1, "stderr": f"{PHRASES[1]}\n{PHRASES[8]}\n"}
        assert get_agent("codex").judge(**run).verdict is Verdict.other

    def test_an_unknown_exit_code(self):
        claude = get_agent("claude")
        assert claude.judge(exit_code=None, stdout=claude_result()).session_id == E
        assert claude.judge(exit_code=None, stdout=claude_result(is_error=True, result="x")).verdict is Verdict.other
        assert claude.judge(exit_code=None, stderr=PHRASES[0]).verdict is Verdict.other
        assert claude.judge(exit_code=None).verdict is Verdict.other

    @over("exit_code", [0, 1])
    def test_a_record_that_an_assistant_quotes_in_text_mode(self, exit_code):
        gone = json.dumps({"type": "result", "is_error": True, "errors": [PHRASES[0]], "session_id": R})
        for text in (f"It printed:\n{gone}\n", f"Hello.\n\n{gone}"):
            judgement = get_agent("claude").judge(exit_code=exit_code, stdout=text)
            assert judgement.verdict is (Verdict.other if exit_code else Verdict.ok)
            assert judgement.session_id is None

    def test_a_line_of_text_between_records(self):
        init, result = claude_result().splitlines()
        judgement = get_agent("claude").judge(exit_code=0, stdout=f"{init}\na warning from elsewhere\n{result}\n")
        assert (judgement.verdict, judgement.session_id) == (Verdict.ok, E)

    def test_a_logged_error_on_stderr_of_a_run_that_succeeded(self):
        done = json.dumps({"session_id": E, "response": "Done."}, indent=2)
        log = '{"level": "error", "error": {"message": "cache miss"}}\n'
        judgement = get_agent("gemini").judge(exit_code=0, stdout=done, stderr=log)
        assert (judgement.verdict, judgement.session_id) == (Verdict.ok, E)

    def test_a_turn_that_was_cut_short_with_exit_0(self):
        started = f'{{"type":"thread.started","thread_id":"{E}"}}\n{{"type":"turn.started"}}\n'
        judgement = get_agent("codex").judge(exit_code=0, stdout=started)
        assert (judgement.verdict, judgement.session_id, judgement.turn_began) == (Verdict.other, None, True)

    @over("agent", CLIS)
    @over("session_id", ["--dangerously-skip-permissions", "-1", "", "5", "latest", f"{R} --yolo", f"{R}\n"])
    def test_ids_that_a_runtime_can_not_have(self, agent, session_id):
        assert not get_agent(agent).can_be(session_id)

    def test_an_invalid_id_in_the_output_is_not_saved(self):
        for session_id in ("--yolo", "", 7, None):
            assert get_agent("claude").judge(exit_code=0, stdout=claude_result(session_id=session_id)).session_id is None


class TestOutput:
    def test_ansi_codes_are_removed(self):
        line = "\x1b[91m\x1b[1mError: \x1b[0mSession not found\n"
        assert get_agent("opencode").judge(exit_code=1, stderr=line).verdict is Verdict.gone

    def test_records_in_a_list_and_over_several_lines(self):
        record = {"type": "result", "is_error": False, "session_id": E, "num_turns": 1}
        for stdout in (
            json.dumps([{"type": "system"}, record]),
            json.dumps(record, indent=2),
            json.dumps([record], indent=2),
        ):
            assert get_agent("claude").judge(exit_code=0, stdout=stdout).session_id == E

    def test_text_that_looks_like_a_document(self):
        stderr = "{ trace\nat line 3\n" + PHRASES[0]
        assert get_agent("claude").judge(exit_code=1, stderr=stderr).verdict is Verdict.gone

    def test_memory_is_bounded_by_one_line(self):
        observer = RunObserver(get_agent("claude"))
        for _ in range(40):
            observer.stdout(b"{" + b"x" * 1_000_000)
        observer.stdout(b"\n" + claude_result().encode())
        assert observer.judge(0).session_id == E


texts = st.one_of(st.text(), st.sampled_from(PHRASES), st.sampled_from([claude_result(), claude_result(is_error=True)]))
streams = st.lists(texts, max_size=6).map("\n".join)


@given(st.sampled_from(CLIS), st.none() | st.integers(-15, 255), streams, streams)
def test_any_output_gets_a_verdict(agent, exit_code, stdout, stderr):
    judgement = get_agent(agent).judge(exit_code=exit_code, stdout=stdout, stderr=stderr)
    if judgement.verdict is not Verdict.ok and judgement.session_id is not None:
        # A closing record had said that the turn succeeded.
        assert '"result"' in stdout
        assert judgement.session_id in stdout
    if exit_code == 0 and "is_error" not in stdout and "Session not found" not in stderr:
        assert not judgement.verdict.refused
    if not any(phrase[:9] in stderr + stdout for phrase in PHRASES):
        assert not judgement.verdict.refused


@given(st.sampled_from(CLIS), st.integers(0, 3), streams, streams)
def test_resume_deletes_only_after_a_refusal_and_never_repeats_a_begun_turn(agent, exit_code, stdout, stderr):
    store = fake_store(StoreSettings())
    store.set("key", R if agent != "opencode" else "ses_1")
    runs = []

    def run(session_id):
        runs.append(session_id)
        if session_id is None:
            return Turn(None, None)
        raise subprocess.CalledProcessError(exit_code or 1, agent, stdout, stderr)

    judgement = get_agent(agent).judge(exit_code=exit_code or 1, stdout=stdout, stderr=stderr)
    try:
        store.resume("key", run, judge=get_agent(agent).judge)
    except Exception as error:  # noqa: BLE001
        assert judgement.turn_began or not judgement.verdict.refused, error
        assert len(runs) == 1
    else:
        assert judgement.verdict.refused
        assert not judgement.turn_began
        assert len(runs) == 2
    assert (store.get("key") is None) is judgement.verdict.refused


class TestRegistry:
    def test_names(self):
        assert {agent.name for agent in known_agents()} >= {*CLIS, "claude-agent-sdk", "openai"}
        with pytest.raises(UnknownAgent, match="claude"):
            get_agent("nobody")

    def test_a_registered_runtime(self):
        bot = Agent(name="bot-in-test", refusals=(Refusal(Verdict.gone, r"forgot (?P<id>\S+)"),))
        register(bot)
        assert get_agent("bot-in-test").judge(exit_code=3, stderr="forgot x\n").verdict is Verdict.gone
