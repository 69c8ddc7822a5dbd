"""The types of the public names. Checked by mypy --strict, never run."""

from typing import assert_type

from redis_sessions import (
    AsyncSessionStore,
    Held,
    ImportResult,
    Judge,
    Judgement,
    Lease,
    Progress,
    Report,
    ResumeResult,
    SessionRow,
    SessionStore,
    StoreSettings,
    Turn,
    Verdict,
)
from redis_sessions.agents import get_agent


def judge(error: Exception) -> Judgement:
    return Judgement(Verdict.other)


def progress(done: int, about: int) -> None: ...


judges: list[Judge] = [judge, get_agent("codex").judge, lambda error: Judgement(Verdict.gone)]
tellers: list[Progress] = [progress, lambda done, about: None]


def sync_store(store: SessionStore) -> None:
    assert_type(SessionStore.from_url("redis://127.0.0.1", StoreSettings(session_max_age_ms=1)), SessionStore)
    assert_type(store.get("a"), str | None)
    assert_type(store.delete("a"), bool)
    assert_type(store.counters(), dict[str, int | None])
    assert_type(store.report(progress), Report)
    assert_type(store.live_session_ids(), frozenset[str])
    assert_type(store.import_legacy("sessions.json", assume_used_at="mtime"), ImportResult)
    assert_type(next(store.sessions()), SessionRow)
    claim = store.acquire("a")
    assert_type(claim, Lease | Held)
    if isinstance(claim, Lease):
        assert_type(store.save(claim, "id"), bool)

    def run(session_id: str | None) -> Turn[int]:
        return Turn(session_id, 7)

    result = store.resume("a", run, judge=judge, accepts=str.isalnum, wait_ms=30_000, on_outage="raise")
    assert_type(result, ResumeResult[int])
    assert_type(result.value, int)
    store.set("a", 7)  # type: ignore[arg-type]
    store.settings.lease_ms = 5  # type: ignore[misc]
    SessionStore.from_url("redis://127.0.0.1", {"namespace": "x"})  # type: ignore[arg-type]
    StoreSettings(max_age_ms=5)  # type: ignore[call-arg]
    store.resume("a", run, on_outage="never")  # type: ignore[arg-type]
    store.resume("a", lambda session_id: session_id)  # type: ignore[arg-type, return-value]


async def async_store(store: AsyncSessionStore) -> None:
    assert_type(AsyncSessionStore.from_url("redis://127.0.0.1"), AsyncSessionStore)
    assert_type(await store.get("a"), str | None)
    async for row in store.sessions():
        assert_type(row, SessionRow)

    async def run(session_id: str | None) -> Turn[str]:
        return Turn(session_id, "value")

    assert_type(await store.resume("a", run), ResumeResult[str])
