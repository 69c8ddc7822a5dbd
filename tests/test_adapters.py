"""Python clients of agents: what they return becomes a Turn, what they raise a verdict. Stand-ins have the real names."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from subprocess import CalledProcessError

import pytest

from redis_sessions import StoreUnavailable, Verdict
from redis_sessions.adapters import claude_turn, openai_turn
from redis_sessions.agents import get_agent
from redis_sessions.agents.evidence import RunFailed
from redis_sessions.testing import fake_async_store, fake_store
from tests.over import over

R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
GONE = f"No conversation found with session ID: {R}"


@dataclass
class SystemMessage:
    subtype: str = "init"
    data: dict[str, str] | None = None


@dataclass
class AssistantMessage:
    text: str = ""
    model: str = "claude-opus-4-8"
    error: str | None = None
    session_id: str | None = None
    usage: dict[str, int] | None = None


@dataclass
class ResultMessage:
    session_id: str = E
    is_error: bool = False
    num_turns: int = 1
    result: str | None = "Done."
    errors: list[str] | None = None
    usage: dict[str, int] | None = None
    subtype: str = "success"


class ProcessError(Exception):
    """As claude-agent-sdk raises it: the CLI's own words went to the stderr callback."""

    def __init__(self, stderr="Check stderr output for details"):
        self.exit_code = 1
        self.stderr = stderr
        super().__init__("Command failed with exit code 1")


class ResultError(ProcessError):
    def __init__(self, *, errors=None, result=None, num_turns=0, **data):
        super().__init__(stderr=None)
        self.errors, self.result, self.data = errors, result, {"num_turns": num_turns, **data}


class APIError(Exception):
    pass


class APIConnectionError(APIError):
    pass


class APITimeoutError(APIConnectionError):
    pass


class APIStatusError(APIError):
    def __init__(self, code, status_code=400, message=""):
        self.code, self.status_code, self.message = code, status_code, message
        super().__init__(f"Error code: {status_code} - {code}")


def play(*messages, stderr=(), error=None):
    """A query that yields messages, calls back with lines of stderr, and ends or raises."""

    def start(callback):
        async def stream():
            for line in stderr:
                callback(line)
            for message in messages:
                yield message
            if error is not None:
                raise error

        return stream()

    return start


def failed(start):
    with pytest.raises(RunFailed) as caught:
        asyncio.run(claude_turn(start))
    judgement = get_agent("claude-agent-sdk").judge(caught.value)
    return judgement.verdict, judgement.turn_began


BEGAN = (SystemMessage(), AssistantMessage())
DONE = ResultMessage()
# Overloaded in mid-stream.
CUT = ResultMessage(subtype="error_during_execution", num_turns=2, result=None)
# After a success it means nothing.
SPURIOUS = ResultMessage(E, is_error=True, subtype="error_during_execution", num_turns=0, result=None)
SPURIOUS_ERROR = ResultError(errors=[], subtype="error_during_execution")


class TestClaude:
    def test_a_turn(self):
        result = ResultMessage()
        turn = asyncio.run(claude_turn(play(*BEGAN, result)))
        assert (turn.session_id, turn.value) == (E, result)

    @over(
        ("start", "verdict", "began"),
        [
            (play(stderr=[GONE], error=ProcessError()), "gone", False),
            (play(error=ProcessError(GONE)), "gone", False),
            (play(error=ResultError(errors=[GONE])), "gone", False),
            (play(stderr=["Error: --resume requires a valid session ID"], error=ProcessError()), "invalid_id", False),
            (play(error=ProcessError()), "other", False),
            (play(*BEGAN, error=ResultError(result="Prompt is too long", num_turns=1)), "unusable", True),
            (
                play(*BEGAN, ResultMessage(is_error=True, result="Prompt is too long"), error=Exception("x")),
                "unusable",
                True,
            ),
            (play(*BEGAN, ResultMessage(is_error=True, result="API Error: 429")), "unavailable", True),
            (play(*BEGAN, stderr=[GONE], error=ProcessError()), "other", True),
            (play(*BEGAN), "other", True),
        ],
    )
    def test_failures(self, start, verdict, began):
        assert failed(start) == (verdict, began)

    @over(
        "start",
        [
            play(*BEGAN, DONE, SPURIOUS),
            play(*BEGAN, DONE, SPURIOUS, SPURIOUS),
            play(*BEGAN, DONE, error=SPURIOUS_ERROR),
            play(*BEGAN, DONE, SPURIOUS, error=SPURIOUS_ERROR),
            play(*BEGAN, DONE, SPURIOUS, error=ProcessError()),
            play(SPURIOUS, *BEGAN, DONE),
            play(*BEGAN, CUT, *BEGAN, DONE, SPURIOUS),
        ],
    )
    def test_a_turn_that_succeeded_whatever_the_runtime_says_that_means_nothing(self, start):
        turn = asyncio.run(claude_turn(start))
        assert (turn.session_id, turn.value, turn.complete) == (E, DONE, True)

    @over(
        "start",
        [
            play(*BEGAN, CUT),
            play(*BEGAN, CUT, SPURIOUS),
            play(*BEGAN, SPURIOUS),
            play(*BEGAN, CUT, error=ProcessError()),
            play(*BEGAN, DONE, CUT),
            play(*BEGAN, DONE, error=ProcessError()),
            play(*BEGAN, DONE, *BEGAN),
            play(*BEGAN, DONE, *BEGAN, SPURIOUS),
        ],
    )
    def test_a_turn_that_failed_whatever_else_the_runtime_says(self, start):
        assert failed(start) == ("other", True)

    @over(
        ("results", "left"),
        [
            ((CUT,), (E, {"turns": 1, "complete": False, "failures": 1})),
            ((SPURIOUS, CUT), (E, {"turns": 1, "complete": False, "failures": 1})),
            ((DONE, SPURIOUS), (E, {"turns": 1, "complete": True, "failures": 0})),
            ((CUT, SPURIOUS), (E, {"turns": 1, "complete": False, "failures": 1})),
        ],
    )
    def test_a_turn_leaves_what_the_same_records_of_the_command_line_leave(self, results, left):
        async def scene(agent, run):
            async with fake_async_store() as store:
                await store.set("key", E)
                with suppress(RunFailed, CalledProcessError):
                    await store.resume("key", run, agent=agent)
                session_id, _, record = await store.peek("key")
                assert (await store.counters())["resumes_total"] == 1
                return session_id, {name: getattr(record, name) for name in left[1]}

        async def by_adapter(_):
            return await claude_turn(play(*BEGAN, *results))

        async def by_command(_):
            answer = {"type": "assistant", "message": {"model": "claude-opus-4-8"}, "session_id": E}
            ends = [{"type": "result"} | asdict(each) for each in results]
            printed = [{"type": "system", "subtype": "init"}, answer, *ends]
            raise CalledProcessError(int(results[-1].is_error), "claude", "\n".join(map(json.dumps, printed)), "")

        assert asyncio.run(scene("claude", by_command)) == left
        assert asyncio.run(scene("claude-agent-sdk", by_adapter)) == left

    def test_errors_of_the_package_are_read_without_the_adapter(self):
        judge = get_agent("claude-agent-sdk").judge
        assert judge(ResultError(errors=[GONE])).verdict is Verdict.gone
        assert judge(ProcessError()).verdict is Verdict.other
        assert judge(ValueError(GONE)).verdict is Verdict.other

    def test_the_size_of_the_context(self):
        usage = {"input_tokens": 3, "cache_read_input_tokens": 20, "cache_creation_input_tokens": 100, "output_tokens": 7}
        for messages, tokens in (
            ((*BEGAN, AssistantMessage(usage=usage), ResultMessage(num_turns=3, usage=usage)), 123),
            ((*BEGAN, ResultMessage(usage=usage)), 123),
            # Added up over several requests.
            ((*BEGAN, ResultMessage(num_turns=3, usage=usage)), None),
            ((*BEGAN, ResultMessage()), None),
            ((*BEGAN, ResultMessage(usage={"input_tokens": -1, "cache_read_input_tokens": 10**18})), None),
        ):
            assert asyncio.run(claude_turn(play(*messages))).context_tokens == tokens

    @over("named_by", ["init", "answer"])
    def test_the_session_is_saved_early(self, named_by):
        named = (SystemMessage(data={"session_id": E if named_by == "init" else None}),)
        answer = AssistantMessage(session_id=E if named_by == "answer" else None)
        synthetic = AssistantMessage(model="<synthetic>", session_id=E, error="rate_limit")

        async def scene(saved, *messages):
            store, log = fake_async_store(), []

            async def run(_):
                async def save(session_id):
                    log.append(await store.save_early("key", session_id))

                return await claude_turn(play(*named, *messages, error=ProcessError()), save)

            with pytest.raises(RunFailed):
                await store.resume("key", run, judge=get_agent("claude-agent-sdk").judge)
            assert await store.get("key") == saved
            return log

        assert asyncio.run(scene(E, answer, answer)) == [True]
        assert asyncio.run(scene(None, synthetic)) == []

    def test_a_session_that_can_not_be_saved_early(self, caplog):
        def away(_):
            raise StoreUnavailable("Redis is away")

        turn = asyncio.run(
            claude_turn(play(SystemMessage(data={"session_id": E}), AssistantMessage(), ResultMessage()), away)
        )
        assert turn.session_id == E
        assert "not saved early: Redis is away" in caplog.text

    def test_a_run_that_failed_after_the_model_had_answered(self):
        judge = get_agent("claude-agent-sdk").judge
        for error, verdict, cut_short in ((ProcessError(), "other", False), (TimeoutError(), "other", True)):
            with pytest.raises(RunFailed) as caught:
                asyncio.run(claude_turn(play(SystemMessage(data={"session_id": E}), AssistantMessage(), error=error)))
            judgement = judge(caught.value)
            assert (judgement.verdict, judgement.session_id, judgement.cut_short) == (verdict, E, cut_short)

    def test_a_dead_session_is_restarted(self):
        async def scene():
            store = fake_async_store()
            await store.set("key", R)

            async def run(session_id):
                return await claude_turn(
                    play(stderr=[GONE], error=ProcessError()) if session_id else play(*BEGAN, ResultMessage())
                )

            result = await store.resume("key", run, judge=get_agent("claude-agent-sdk").judge)
            return result.how, await store.get("key"), await store.resume_failures_total()

        assert asyncio.run(scene()) == ("restarted", E, 1)


class TestOpenAI:
    @dataclass
    class Response:
        id: str = "resp_2"
        status: str | None = "completed"
        error: object = None
        usage: object = None

    @dataclass
    class Usage:
        total_tokens: int = 1234

    def test_a_turn(self):
        turn = openai_turn(self.Response(usage=self.Usage()))
        assert (turn.session_id, turn.complete, turn.context_tokens) == ("resp_2", True, 1234)
        turn = openai_turn(self.Response(status="incomplete"))
        assert (turn.session_id, turn.complete, turn.context_tokens) == ("resp_2", False, None)
        for nonsense in (-1, 45123.0, True, 10**18):  # what a provider says must not cost the turn
            assert openai_turn(self.Response(usage=self.Usage(nonsense))).context_tokens is None

    @over(("code", "verdict"), [("rate_limit_exceeded", "unavailable"), ("server_error", "unavailable"), ("x", "other")])
    def test_a_response_that_failed(self, code, verdict):
        with pytest.raises(RunFailed) as caught:
            openai_turn(self.Response(status="failed", error=APIStatusError(code, None)))
        assert get_agent("openai").judge(caught.value).verdict == verdict

    def test_every_turn_has_its_own_id(self):
        store = fake_store()
        store.set("key", "resp_1")
        result = store.resume("key", lambda _: openai_turn(self.Response()), judge=get_agent("openai").judge)
        assert (result.how, store.get("key")) == ("resumed", "resp_2")

    @over(
        ("code", "verdict"),
        [
            ("previous_response_not_found", "gone"),
            ("conversation_locked", "busy"),
            ("context_length_exceeded", "unusable"),
            ("rate_limit_exceeded", "unavailable"),
            (None, "other"),
        ],
    )
    def test_failures(self, code, verdict):
        assert get_agent("openai").judge(APIStatusError(code)).verdict == verdict

    @over(
        ("error", "verdict"),
        [
            (APIConnectionError(), "unavailable"),
            (APITimeoutError(), "unavailable"),
            (APIStatusError("invalid_api_key", 401), "unavailable"),
            (APIStatusError(None, 403), "unavailable"),
            (APIStatusError("insufficient_quota", 429), "unavailable"),
            (APIStatusError(None, 503), "unavailable"),
            (APIStatusError("previous_response_not_found", 404), "gone"),
            (APIStatusError(None, 400, "No tool output found for function call call_1."), "unusable"),
            (APIStatusError(None, 404), "other"),
            (APIError(), "other"),
            (ValueError(), "other"),
        ],
    )
    def test_by_class_status_and_words(self, error, verdict):
        judgement = get_agent("openai").judge(error)
        assert (judgement.verdict, judgement.turn_began, judgement.session_id) == (verdict, False, None)
