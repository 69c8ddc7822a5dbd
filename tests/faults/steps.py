"""Random steps on many keys, to be interrupted; their values show which key they belong to. No tests."""

from __future__ import annotations

import contextlib
import random
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any, Final, Self
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.maint_notifications import MaintNotificationsConfig

from redis_sessions import (
    AsyncSessionStore,
    Held,
    Lease,
    LeaseHeld,
    SessionStore,
    SessionStoreError,
    StoreSettings,
    StoreUnavailable,
    Turn,
)
from redis_sessions.client.execute import Link
from redis_sessions.client.pool import AsyncDirectRedis, AsyncSentinelPool, DirectRedis, SentinelPool
from redis_sessions.operations.conversation import Peek
from tests.stores import Place

KEYS: Final = 40
CONNECTIONS: Final = 6
WEAKREF_CALLBACKS: Final = [
    "WeakSet.__init__.<locals>._remove",
    "WeakKeyDictionary.__init__.<locals>.remove",
    "WeakValueDictionary.__init__.<locals>.remove",
]


class Interrupted(BaseException):
    """What the signal handler raises, as it would KeyboardInterrupt."""


class Alarm:
    """Raises Interrupted once after it was armed, unless it is disarmed before."""

    def __init__(self) -> None:
        self.fired = 0
        self._armed = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._ring)
        return self

    def __exit__(self, *_: object) -> None:
        self.disarm()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def arm(self, within_s: float) -> None:
        self._armed = True
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, within_s))

    def disarm(self) -> None:
        self._armed = False

    def _ring(self, _: int, frame: FrameType | None) -> None:
        while frame is not None and self._armed:
            name = frame.f_code.co_qualname
            # Where Python would swallow it, with a warning: hypothesis has a callback of the garbage collector, too.
            if name.endswith(("__del__", "gc_callback")) or name in WEAKREF_CALLBACKS:
                signal.setitimer(signal.ITIMER_REAL, 20e-6)
                return
            frame = frame.f_back
        if self._armed:
            self._armed = False
            self.fired += 1
            raise Interrupted


class Steps:
    """What is done and looked at: each key's session IDs begin with its own number, so that no reply fits another key."""

    def __init__(self, tally: Any) -> None:
        self.tally = tally
        self.counts = [0, 0]  # increments asked for, and answered
        self._turn = 0

    def fresh(self, number: int) -> str:
        self._turn += 1
        return f"s{number}.{self._turn}"

    def look(self, number: int, value: object) -> None:
        self.agree(isinstance(value, str) and value.startswith(f"s{number}."))

    def agree(self, holds: object) -> None:
        self.tally.wrong += not holds

    def all_there(self, session_ids: frozenset[str]) -> None:
        self.agree({each.partition(".")[0] for each in session_ids} == {f"s{number}" for number in range(KEYS)})

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        self.tally.operations += 1
        try:
            yield
        except StoreUnavailable:
            self.tally.refused += 1
        except SessionStoreError:
            self.tally.wrong += 1  # a value that was never written, such as one of another type
        except Exception:  # noqa: BLE001
            self.tally.untyped += 1

    def step(self, store: SessionStore, number: int) -> None:
        key = f"key{number}"
        match random.randrange(7):
            case 0:
                self.look(number, store.get(key))
            case 1:
                self.agree(store.set(key, self.fresh(number)) is None)
            case 2:
                peek = store.peek(key)
                self.agree(isinstance(peek, Peek) and type(peek.expires_in_ms) is int)
                self.look(number, peek and peek.session_id)
            case 3:
                # A signal at the very end of a turn leaves a lease, which would lapse.
                if isinstance(lease := store.acquire(key, f"claim{number}"), Held):
                    store.release(Lease(key, lease.holder))
                else:
                    self.look(number, lease.session_id)
                    self.agree(store.save(lease, self.fresh(number)) is True)
            case 4:
                store.release(Lease(key, f"claim{number}"))
                try:
                    self.agree(store.resume(key, lambda found: self.look(number, found) or self.turn(number)).saved)
                except LeaseHeld as error:
                    store.release(Lease(key, error.holder))
            case 5:
                self.all_there(store.live_session_ids())
            case _:
                self.counts[0] += 1
                self.agree(type(store.increment_resume_failures()) is int)
                self.counts[1] += 1

    async def astep(self, store: AsyncSessionStore, number: int) -> None:
        key = f"key{number}"

        async def run(found: str | None) -> Turn[None]:
            self.look(number, found)
            return self.turn(number)

        match random.randrange(7):
            case 0:
                self.look(number, await store.get(key))
            case 1:
                self.agree(await store.set(key, self.fresh(number)) is None)
            case 2:
                peek = await store.peek(key)
                self.agree(isinstance(peek, Peek) and type(peek.expires_in_ms) is int)
                self.look(number, peek and peek.session_id)
            case 3:
                lease = await store.acquire(key, f"claim{number}")
                self.look(number, lease.session_id)
                self.agree(await store.save(lease, self.fresh(number)) is True)
            case 4:
                await store.release(Lease(key, f"claim{number}"))
                self.agree((await store.resume(key, run)).saved)
            case 5:
                self.all_there(await store.live_session_ids())
            case _:
                self.counts[0] += 1
                self.agree(type(await store.increment_resume_failures()) is int)
                self.counts[1] += 1

    def turn(self, number: int) -> Turn[None]:
        return Turn(self.fresh(number), None)

    def end(self, values: list[str | None], counted: int, clients: int) -> None:
        """What must hold at the end: each key has its own ID, counts moved by 0 or 1 each, no connection is left."""
        for number, value in enumerate(values):
            self.look(number, value)
        asked, answered = self.counts
        self.tally.lost += not answered <= counted <= asked
        assert clients <= CONNECTIONS
        self.tally.check()


def clients_of(place: Place) -> int:
    """How many connections the busiest server of a place has."""
    if isinstance(place.raw, redis.RedisCluster):
        return max(
            int(place.raw.info("clients", target_nodes=node)["connected_clients"]) for node in place.raw.get_primaries()
        )
    return int(place.raw.info("clients")["connected_clients"])


class Watchers:
    """What a pool asks of Sentinel, and its answer."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)

    def discover_master(self, _: str) -> tuple[str | None, int | None]:
        return self._address


class AsyncWatchers(Watchers):
    async def discover_master(self, _: str) -> tuple[str | None, int | None]:
        return self._address


QUIET = MaintNotificationsConfig(enabled=False)
POOL = {"maint_notifications_config": QUIET, "max_connections": CONNECTIONS, "protocol": 2, "driver_info": None}
LINK = Link(deadline_s=3)


def sync_store(kind: str, place: Place, settings: StoreSettings) -> SessionStore:
    if kind != "sentinel":
        return SessionStore.from_url(place.url, settings)
    return SessionStore(DirectRedis.from_pool(SentinelPool("main", Watchers(place.url), **POOL)), settings, _link=LINK)


def async_store(kind: str, place: Place, settings: StoreSettings) -> AsyncSessionStore:
    if kind != "sentinel":
        return AsyncSessionStore.from_url(place.url, settings)
    pool = AsyncSentinelPool("main", AsyncWatchers(place.url), **POOL)
    return AsyncSessionStore(AsyncDirectRedis.from_pool(pool), settings, _link=LINK)
