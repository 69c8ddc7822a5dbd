"""What one client among many does: it writes and reads keys of its own, and sees whether it gets another's. No tests."""

from __future__ import annotations

from redis_sessions import AsyncSessionStore, SessionStore


def read(store: SessionStore, who: str, times: int) -> int:
    """Write and read keys of one's own; how many reads were wrong."""
    wrong = 0
    for n in range(times):
        store.set(f"{who}-{n % 3}", f"{who}.{n}")
        wrong += store.get(f"{who}-{n % 3}") != f"{who}.{n}"
        wrong += store.peek(f"{who}-{n % 3}").session_id != f"{who}.{n}"
    return wrong


async def aread(store: AsyncSessionStore, who: str, times: int) -> int:
    wrong = 0
    for n in range(times):
        await store.set(f"{who}-{n % 3}", f"{who}.{n}")
        wrong += await store.get(f"{who}-{n % 3}") != f"{who}.{n}"
        wrong += (await store.peek(f"{who}-{n % 3}")).session_id != f"{who}.{n}"
    return wrong
