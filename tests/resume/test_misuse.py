"""Wrong arguments of `resume`: refused before anything is run, with an error that says what to fix."""

from __future__ import annotations

import inspect

import pytest

from redis_sessions import AsyncSessionStore, InvalidSettings, Judgement, Lease, SessionStore, StoreSettings, Turn, Verdict
from redis_sessions.agents import get_agent
from redis_sessions.testing import fake_async_store, fake_store
from tests.over import over
from tests.resume.stand_in import KEY, Agent, AgentError, says

BOTH = pytest.mark.parametrize("make", [fake_store, fake_async_store])


def fail(session_id):
    raise AgentError


async def answer(session_id):
    return Turn("E", session_id)


@over(
    "options",
    [
        {"on_outage": "rais"},
        {"on_outage": None},
        {"wait_ms": -5},
        {"wait_ms": 0.5},
        {"wait_ms": "30"},
        {"wait_ms": True},
        {"wait_ms": None},
        {"judge": Verdict.gone},
        {"lease": None},
        {"lease": Lease(KEY, "token")},
    ],
)
def test_an_invalid_option_is_refused_before_anything_is_run(store, options):
    [name] = options
    with pytest.raises(InvalidSettings, match=name) as caught:
        store.resume(KEY, lambda _: pytest.fail("must not run"), **options)
    assert caught.value.remedy
    assert store.get(KEY) is None


@over("wrong", [object(), get_agent, b"claude", 5])
def test_an_agent_that_is_none_is_refused_with_what_is_one(store, wrong):
    says_so = "an agent must be the name of a runtime, such as 'claude', or .* redis_sessions.agents.Agent, not "
    with pytest.raises(TypeError, match=says_so + type(wrong).__name__):
        store.resume(KEY, lambda _: pytest.fail("must not run"), agent=wrong)


@BOTH
@over("wrong", [None, Turn("E"), "claude"])
def test_what_can_not_be_run_is_not_a_failure_of_the_agent(make, loop, wrong):
    store = make()

    def call(name, *args):
        value = getattr(store, name)(*args)
        return loop.run(value) if inspect.isawaitable(value) else value

    call("set", KEY, "R")
    with pytest.raises(TypeError, match=f"run must be a function .*, not {type(wrong).__name__}"):
        call("resume", KEY, wrong)
    assert call("peek", KEY).record is None  # in which failures are counted


@over("wrong", [5, "lost", None, ["gone"]])
def test_a_verdict_that_is_none_hides_no_error(store, wrong):
    store.set(KEY, "R")
    with pytest.raises(TypeError, match=r"verdict of a Judgement must be one of ok, gone, .*, other, not ") as caught:
        store.resume(KEY, fail, judge=lambda error: Judgement(wrong))
    assert isinstance(caught.value.__context__, AgentError)
    assert not caught.value.__suppress_context__
    assert store.get(KEY) == "R"


def test_a_verdict_may_be_given_by_its_word(store):
    assert Judgement("gone") == Judgement(Verdict.gone)
    store.set(KEY, "R")
    assert store.resume(KEY, Agent(AgentError(), "E"), judge=says("gone")).how == "restarted"


@over("wrong", [5, b"ID"])
def test_a_session_id_of_a_judgement_that_is_not_text(wrong):
    with pytest.raises(TypeError, match="session_id of a Judgement must be a str or None"):
        Judgement(Verdict.other, wrong)


@over("wrong", [45123.0, "45123", True, -1, 10**18])
def test_a_size_of_the_context_that_no_record_could_hold(wrong):
    with pytest.raises(TypeError, match="context_tokens of a Turn must be an int, 0 or more, or None, not "):
        Turn("E", context_tokens=wrong)


@over("given", [0, 45123, 10**18 - 1])
def test_a_size_of_the_context_is_read_back(store, given):
    assert store.resume(KEY, lambda _: Turn("E", context_tokens=given)).saved
    assert store.peek(KEY).record.context_tokens == given


@over("judge", [get_agent("claude"), "claude"])
def test_a_runtime_is_no_judge(store, judge):
    with pytest.raises(InvalidSettings) as caught:
        store.resume(KEY, lambda _: pytest.fail("must not run"), judge=judge)
    assert str(caught.value) == "judge can't be called: pass agent= instead"
    assert (caught.value.setting, caught.value.problem) == ("judge", "can't be called")


@over("given", [True, None, Verdict.gone, "gone"])
def test_a_judge_that_returns_something_else_is_named_and_hides_no_error(store, given):
    def my_judge(error):
        return given

    store.set(KEY, "R")
    with pytest.raises(TypeError, match=rf"judge .*my_judge must return .*Judgement, not {type(given).__name__}") as caught:
        store.resume(KEY, fail, judge=my_judge)
    assert isinstance(caught.value.__cause__, AgentError)
    assert store.get(KEY) == "R"
    assert store.resume(KEY, lambda _: Turn("E", None)).how == "resumed"  # the lease was released


def test_an_async_judge_is_refused_and_leaves_no_coroutine(store):
    async def my_judge(error):
        return Judgement(Verdict.gone)

    store.set(KEY, "R")
    with pytest.raises(TypeError, match=r"my_judge must return .*, not coroutine"):
        store.resume(KEY, fail, judge=my_judge)


def test_a_run_of_the_other_flavor_is_not_a_failure_of_the_agent(namespace, valkey, loop):
    """It is a TypeError and the judge is not called: this one would have deleted the ID."""
    settings = StoreSettings(namespace=namespace)
    with SessionStore.from_url(valkey.url, settings) as store:
        store.set(KEY, "R")
        with pytest.raises(TypeError, match=r"run must return a redis_sessions.Turn, not coroutine"):
            store.resume(KEY, answer, judge=says(Verdict.gone))

        async def misused():
            async with AsyncSessionStore.from_url(valkey.url, settings) as other:
                await other.resume(KEY, lambda _: Turn("E", None), judge=says(Verdict.gone))

        with pytest.raises(TypeError, match=r"run must be async and .*; it returned Turn at once"):
            loop.run(misused())
        assert store.resume(KEY, lambda _: Turn(None, None)).previous == "R"
        assert store.resume_failures_total() == 0
    valkey.raw.delete(*valkey.raw.keys(f"{namespace}:*"))


def test_invalid_async_options_are_refused_when_awaited(loop):
    async def misused():
        async with fake_async_store() as store:
            await store.resume(KEY, answer, on_outage="rais")

    with pytest.raises(InvalidSettings, match="on_outage"):
        loop.run(misused())
