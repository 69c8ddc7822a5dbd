"""Wrong arguments of `resume`: refused before anything is run, with an error that says what to fix."""

from __future__ import annotations

import pytest

from redis_sessions import AsyncSessionStore, InvalidSettings, Judgement, SessionStore, StoreSettings, Turn, Verdict
from redis_sessions.agents import get_agent
from redis_sessions.testing import fake_async_store
from tests.over import over
from tests.resume.stand_in import KEY, AgentError, says


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
    ],
)
def test_an_invalid_option_is_refused_before_anything_is_run(store, options):
    [name] = options
    with pytest.raises(InvalidSettings, match=name) as caught:
        store.resume(KEY, lambda _: pytest.fail("must not run"), **options)
    assert caught.value.remedy
    assert store.get(KEY) is None


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
