"""Stores for the contract suite: every server in both flavors, all called the same way. No tests."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any, Final
from urllib.parse import quote

import fakeredis
import redis
import redis.asyncio

from redis_sessions import AsyncSessionStore, SessionStore, StoreSettings
from redis_sessions.keys import Keys
from redis_sessions.operations.acl import USERS, acl_lines
from tests.servers import wait_until


class Loop:
    """An event loop in its own thread, so that async code can be called from sync tests, callbacks included."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class Blocking:
    """An AsyncSessionStore that is called like a SessionStore; a sync `run` is run in a thread."""

    def __init__(self, store: AsyncSessionStore, loop: Loop) -> None:
        self._store = store
        self._loop = loop
        self.settings = store.settings

    def resume(self, key: str, run: Callable[[str | None], Any], **options: Any) -> Any:
        async def arun(session_id: str | None) -> Any:
            return await asyncio.to_thread(run, session_id)

        return self._loop.run(self._store.resume(key, arun, **options))

    def sessions(self, **options: Any) -> Any:
        return self._collected(self._store.sessions(**options))

    def leases(self) -> Any:
        return self._collected(self._store.leases())

    def _collected(self, rows: Any) -> Any:
        async def collect() -> list[Any]:
            return [row async for row in rows]

        return iter(self._loop.run(collect()))

    @contextmanager
    def lease(self, key: str) -> Iterator[Any]:
        stack = AsyncExitStack()
        lease = self._loop.run(stack.enter_async_context(self._store.lease(key)))
        try:
            yield lease
        except BaseException as error:
            self._loop.run(stack.__aexit__(type(error), error, error.__traceback__))
            raise
        self._loop.run(stack.aclose())

    def close(self) -> None:
        self._loop.run(self._store.aclose())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        def call(*args: Any, **options: Any) -> Any:
            return self._loop.run(method(*args, **options))

        return call if inspect.iscoroutinefunction(method) else method


# On a busy machine a late reply says nothing, and what is sent again then counts differently.
PATIENCE: Final[dict[str, Any]] = {"socket_timeout_ms": 10_000, "connect_timeout_ms": 10_000}
PATIENT: Final = StoreSettings(**PATIENCE)


@contextmanager
def opened(kind: Any, url: str, loop: Loop, **settings: Any) -> Iterator[Any]:
    """A store of either kind, called like a SessionStore. It waits long for a reply: on a busy machine that says nothing."""
    store = kind.from_url(url, StoreSettings(**PATIENCE | settings))
    store = store if kind is SessionStore else Blocking(store, loop)
    try:
        yield store
    finally:
        store.close()


class Place:
    """One server of the matrix: makes stores on it, and a raw client that sees what they did."""

    def __init__(self, url: str, raw: Any) -> None:
        self.url = url
        self.raw = raw

    def sync(self, settings: StoreSettings) -> SessionStore:
        return SessionStore.from_url(self.url, settings)

    def asynchronous(self, settings: StoreSettings) -> AsyncSessionStore:
        return AsyncSessionStore.from_url(self.url, settings)

    def close(self) -> None:
        self.raw.close()


class DecodingPlace(Place):
    """Clients that the caller built, and that decode replies; redis-py's defaults for the rest."""

    def sync(self, settings: StoreSettings) -> SessionStore:
        return SessionStore(redis.Redis.from_url(self.url, decode_responses=True), settings)

    def asynchronous(self, settings: StoreSettings) -> AsyncSessionStore:
        return AsyncSessionStore(redis.asyncio.Redis.from_url(self.url, decode_responses=True), settings)


class ByUser:
    """One store made of three, each connected as one of the users of `acl.py`: methods go to the user that may call them."""

    SCANS: Final = ("report", "sessions", "leases", "near_namespaces", "live_session_ids", "export")
    MEANT_FOR: Final = dict.fromkeys(SCANS, "report") | dict.fromkeys(("import_legacy", "retime", "doctor"), "admin")

    def __init__(self, connect: Callable[[str], Any]) -> None:
        self._stores = {user: connect(user) for user in USERS}
        self.settings = self._stores["worker"].settings

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stores[self.MEANT_FOR.get(name, "worker")], name)

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    async def aclose(self) -> None:
        for store in self._stores.values():
            await store.aclose()


class AclPlace(Place):
    """Users of least privilege; each namespace has its own three."""

    PASSWORD: Final = "s3cret/x"

    def sync(self, settings: StoreSettings) -> Any:
        return self._by_user(SessionStore, settings)

    def asynchronous(self, settings: StoreSettings) -> Any:
        return self._by_user(AsyncSessionStore, settings)

    def user_url(self, user: str, namespace: str) -> str:
        return self.url.replace("://", f"://{user}.{namespace}:{quote(self.PASSWORD, safe='')}@")

    def set_users(self, namespace: str) -> None:
        on_a_cluster = isinstance(self.raw, redis.RedisCluster)
        options = {"target_nodes": redis.RedisCluster.ALL_NODES} if on_a_cluster else {}
        hashes = dict.fromkeys(USERS, hashlib.sha256(self.PASSWORD.encode()).hexdigest())
        since_7 = on_a_cluster or int(self.raw.info("server")["redis_version"].split(".")[0]) >= 7
        for line in acl_lines(namespace, password_hashes=hashes, cluster=on_a_cluster, read_only_keys=since_7)[1:]:
            _, user, *rules = line.split()
            self.raw.execute_command("ACL SETUSER", f"{user}.{namespace}", *rules, **options)

    def _by_user(self, kind: type[SessionStore | AsyncSessionStore], settings: StoreSettings) -> ByUser:
        self.set_users(settings.namespace)
        return ByUser(lambda user: kind.from_url(self.user_url(user, settings.namespace), settings))


def wait_for_renewal(raw: Any, namespace: str, key: str) -> None:
    """Wait until a lease is renewed: once written longer, only that can bring the time left down to its own again."""
    lease_key = Keys(namespace).lease(key)
    raw.pexpire(lease_key, 40 * 86_400_000)
    wait_until(lambda: raw.pttl(lease_key) < 31 * 86_400_000, f"a renewal of {key}")


class FakePlace(Place):
    def __init__(self) -> None:
        self.server = fakeredis.FakeServer()
        super().__init__("", fakeredis.FakeRedis(server=self.server))

    def sync(self, settings: StoreSettings) -> SessionStore:
        return SessionStore(fakeredis.FakeRedis(server=self.server), settings)

    def asynchronous(self, settings: StoreSettings) -> AsyncSessionStore:
        return AsyncSessionStore(fakeredis.FakeAsyncRedis(server=self.server), settings)
