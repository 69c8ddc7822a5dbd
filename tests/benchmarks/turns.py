"""A dispatch with its lease, and a whole turn that does nothing, next to a bare GET and SET."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from typing import Any

from redis_sessions import AsyncSessionStore, Lease, SessionStore, Turn
from tests.benchmarks import bare
from tests.benchmarks.calls import APART, KEY, REDIS_KEY, SESSION_ID
from tests.benchmarks.lab import Lab, Server
from tests.benchmarks.machine import placed, placements
from tests.benchmarks.pairs import arepeated, repeated, tails
from tests.benchmarks.rows import Row, tail, timed

PEER = "redis-py get + set"


def dispatch(lab: Lab) -> Iterator[Row]:
    """Acquire a conversation, then save: the minimum for a turn."""

    def ours(store: SessionStore) -> None:
        lease = store.acquire(KEY)
        assert isinstance(lease, Lease)
        store.save(lease, SESSION_ID)

    async def aours(store: AsyncSessionStore) -> None:
        lease = await store.acquire(KEY)
        assert isinstance(lease, Lease)
        await store.save(lease, SESSION_ID)

    yield from _beside_get_and_set(lab, "acquire + save", ours, aours, trips=2, at_most=1.10)


def resume(lab: Lab) -> Iterator[Row]:
    """A whole turn: acquire, run while the lease is renewed, save, count."""

    async def turn(_: str | None) -> Turn[None]:
        return Turn(SESSION_ID, None)

    yield from _beside_get_and_set(
        lab,
        "resume of an empty turn",
        lambda store: store.resume(KEY, lambda _: Turn(SESSION_ID, None)),
        lambda store: store.resume(KEY, turn),
        trips=2,
        at_most=1.5,
    )


def _beside_get_and_set(
    lab: Lab,
    name: str,
    ours: Callable[[SessionStore], Any],
    aours: Callable[[AsyncSessionStore], Coroutine[Any, Any, Any]],
    *,
    trips: int,
    at_most: float,
) -> Iterator[Row]:
    server = lab.server()
    calls, cpu = lab.scale.calls, server.cpu_s

    def theirs() -> None:
        client.get(REDIS_KEY)
        client.set(REDIS_KEY, SESSION_ID, px=bare.MAX_AGE_MS)

    async def atheirs() -> None:
        await aclient.get(REDIS_KEY)
        await aclient.set(REDIS_KEY, SESSION_ID, px=bare.MAX_AGE_MS)

    with SessionStore.from_url(server.url) as store, closing(bare.client(server.url)) as client:
        yield _counted(name, server, lambda: ours(store), trips)
        for apart in placements():
            with placed(server.pid, apart=apart):
                sides = {"ours": repeated(lambda: ours(store), calls, cpu), PEER: repeated(theirs, calls, cpu)}
                where = APART if apart else ""
                contest = lab.contest(f"{name}{where}", sides)
                slowest = tails({"ours": lambda: ours(store), PEER: theirs}, calls * lab.scale.rounds)
            yield timed(f"{name}{where}", contest, "ours", PEER, None if apart else at_most)
            yield tail(f"{name}{where}: 99 % within", slowest, "ours", PEER)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        astore, aclient = AsyncSessionStore.from_url(server.url), bare.aclient(server.url)
        yield _counted(f"{name}, async", server, lambda: loop.run_until_complete(aours(astore)), trips)
        for apart in placements():
            with placed(server.pid, apart=apart):
                sides = {
                    "ours": arepeated(loop, lambda: aours(astore), calls, cpu),
                    PEER: arepeated(loop, atheirs, calls, cpu),
                }
                where = APART if apart else ""
                contest = lab.contest(f"{name}, async{where}", sides)
            yield timed(f"{name}, async{where}", contest, "ours", PEER, None if apart else at_most)
        runner.run(astore.aclose())
        runner.run(aclient.aclose())


def _counted(name: str, server: Server, call: Callable[[], Any], trips: int) -> Row:
    """How many commands of clients reach the server per call, without those inside scripts."""
    times = 50
    call()  # connects, and asks what a store asks once
    with closing(bare.client(server.url)) as marker:
        marker.ping()
        with server.raw.monitor() as seen:
            for _ in range(times):
                call()
            marker.echo("end")
            count = _commands(seen)
    each = count / times
    return Row(f"{name}: round trips", f"{each:g}", "counted by MONITOR", to_reach=f"exactly {trips}", reached=each == trips)


def _commands(seen: Any) -> int:
    """How many commands clients have sent before the mark."""
    count = 0
    while (command := seen.next_command())["command"] != "ECHO end":
        count += command["client_type"] != "lua"
    return count
