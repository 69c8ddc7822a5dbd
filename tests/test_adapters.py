"""Python clients of agents: what they return becomes a Turn, what they raise a verdict. Stand-ins have the real names."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from redis_sessions import Verdict
from redis_sessions.adapters import claude_turn, openai_turn
from redis_sessions.agents import get_agent
from redis_sessions.agents.evidence import RunFailed
from redis_sessions.testing import fake_async_store, fake_store

R = "11111111-2222-4333-8444-555555555555"
E = "aaaaaaaa-2222-4333-8444-555555555555"
GONE = f"No conversation found with session ID: {R}"


@dataclass
class SystemMessage:
    subtype: str = "init"


@dataclass
class AssistantMessage:
    text: str = ""


@dataclass
class ResultMessage:
    session_id: str = E
    is_error: bool = False
    num_turns: int = 1
    result: str | None = "Done."
    errors: list[str] | None = None


class ProcessError(Exception):
    """As claude-agent-sdk raises it: the CLI's own words went to the stderr callback."""

    def __init__(self, stderr="Check stderr output for details"):
        self.exit_code = 1
        self.stderr = stderr
        super().__init__("Command failed with exit code 1")


class ResultError(ProcessError):
    def __init__(self, *, errors=None, result=None, num_turns=0):
        super().__init__(stderr=None)
        self.errors, self.result, self.data = errors, result, {"num_turns": num_turns}


class APIStatusError(Exception):
    def __init__(self, code):
        self.code = code
        super().__init__(f"Error code: 400 - {code}")


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


class TestClaude:
    def test_a_turn(self):
        result = ResultMessage()
        turn = asyncio.run(claude_turn(play(*BEGAN, result)))
        assert (turn.session_id, turn.value) == (E, result)

    @pytest.mark.parametrize(
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

    def test_errors_of_the_package_are_read_without_the_adapter(self):
        judge = get_agent("claude-agent-sdk").judge
        assert judge(ResultError(errors=[GONE])).verdict is Verdict.gone
        assert judge(ProcessError()).verdict is Verdict.other
        assert judge(ValueError(GONE)).verdict is Verdict.other

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

    def test_every_turn_has_its_own_id(self):
        store = fake_store()
        store.set("key", "resp_1")
        result = store.resume("key", lambda _: openai_turn(self.Response()), judge=get_agent("openai").judge)
        assert (result.how, store.get("key")) == ("resumed", "resp_2")

    @pytest.mark.parametrize(
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
