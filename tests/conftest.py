"""Fixtures: the servers of the matrix, stores on them in both flavors, and cleaning up."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis

from redis_sessions import SessionStore, StoreSettings
from redis_sessions.keys import LEASE_GRACE_MS, Keys
from tests.faults.ledger import LEDGER
from tests.servers import Cluster, find_redis_server, other_servers, standalone
from tests.stores import PATIENCE, AclPlace, Blocking, DecodingPlace, FakePlace, Loop, Place

# The duration of one example depends more on the machine than on the code.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


# If the tests run in several processes, each sends its part of the table to the first.
def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["faults"] = LEDGER.dump()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    LEDGER.take(getattr(node, "workeroutput", {}).get("faults", []))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if lines := LEDGER.lines():
        terminalreporter.section("faults injected")
        for line in lines:
            terminalreporter.write_line(line)


PLACES = ("fakeredis", "valkey", "cluster", "redis")
# Where only the tests marked `everywhere` run, and all of them with `-m long`.
MORE_PLACES = (
    *("valkey-decoding", "valkey-acl", "cluster-acl", "redis-acl"),
    *(f"{name}{users}" for name in other_servers() for users in ("", "-acl")),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if params.get("place") in MORE_PLACES and not item.get_closest_marker("everywhere"):
            item.add_marker("long")


class Places:
    """The servers of the matrix, each started when a test first asks for it."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._open: dict[str, Place] = {}

    def get(self, name: str) -> Place:
        if name not in self._open:
            self._open[name] = place = self._make(name)
            self._stack.callback(place.close)
        return self._open[name]

    def close(self) -> None:
        self._stack.close()

    def _make(self, name: str) -> Place:
        if name == "fakeredis":
            return FakePlace()
        if name.endswith("-acl"):
            same = self.get(name.removesuffix("-acl"))
            return AclPlace(same.url, same.raw)
        if name == "cluster":
            url = self._stack.enter_context(Cluster()).url
            first = url.removeprefix("redis+cluster://").split(",")[0]
            return Place(url, redis.RedisCluster.from_url(f"redis://{first}"))
        if name == "valkey-decoding":
            return DecodingPlace(self.get("valkey").url, redis.Redis.from_url(self.get("valkey").url))
        url = self._redis_url() if name == "redis" else self._started(other_servers().get(name))
        return Place(url, redis.Redis.from_url(url))

    def _redis_url(self) -> str:
        if url := os.environ.get("REDIS_URL"):
            return url
        if binary := find_redis_server():
            return self._started(binary)
        pytest.skip("no redis-server on the PATH, and REDIS_URL is not set")

    def _started(self, binary: Path | None) -> str:
        return self._stack.enter_context(standalone(binary)).url


@pytest.fixture(scope="session", autouse=True)
def _signals_as_in_a_terminal() -> None:
    """A signal that nohup or a shell's `&` ignores would stay ignored in every process that a test starts."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def places() -> Iterator[Places]:
    places = Places()
    yield places
    places.close()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="session", params=["valkey", "redis", *other_servers()])
def binary(request: pytest.FixtureRequest) -> Path | None:
    """The program of each kind of server, for tests that start their own; None is the embedded Valkey."""
    if request.param == "redis":
        return find_redis_server() or pytest.skip("no redis-server on the PATH")
    return other_servers().get(request.param)


@pytest.fixture(params=[*PLACES, *MORE_PLACES])
def place(request: pytest.FixtureRequest, places: Places) -> Place:
    return places.get(request.param)


@pytest.fixture
def namespace() -> str:
    return f"test-{uuid.uuid4().hex}"


@pytest.fixture(params=["sync", "async"])
def make_store(
    request: pytest.FixtureRequest, place: Place, loop: Loop, namespace: str
) -> Iterator[Callable[..., SessionStore]]:
    """Stores on one server, one namespace and one flavor, by their settings. Afterwards every session has a TTL."""
    opened: list[Any] = []

    def make(**settings: Any) -> Any:
        chosen = StoreSettings(**{"namespace": namespace, "deadline_ms": 30_000, **PATIENCE} | settings)
        store = place.sync(chosen) if request.param == "sync" else Blocking(place.asynchronous(chosen), loop)
        opened.append(store)
        return store

    yield make
    leftover = list(place.raw.scan_iter(f"{namespace}*"))
    # A round trip for all: an import leaves thousands.
    with place.raw.pipeline(transaction=False) as pipeline:
        for key in leftover:
            pipeline.pttl(key).delete(key)
        left_ms = dict(zip(leftover, pipeline.execute()[::2], strict=True))
    immortal = [key for key in leftover if b":id:" in key and left_ms[key] == -1]
    for store in opened:
        store.close()
    assert not immortal or request.node.get_closest_marker("plants_immortal_keys")


@pytest.fixture
def store(make_store: Callable[..., SessionStore]) -> SessionStore:
    return make_store()


@pytest.fixture
def raw(place: Place) -> Any:
    """A plain redis-py client on the same server, to read and write keys."""
    return place.raw


@pytest.fixture(scope="session")
def valkey(places: Places) -> Place:
    """The embedded Valkey, for tests that are about one real server."""
    return places.get("valkey")


@pytest.fixture
def lapse(raw: Any, namespace: str) -> Callable[[str], Any]:
    """Let the lease of a conversation lapse, as if its time had passed; its key stays."""
    return lambda key: raw.pexpire(Keys(namespace).lease(key), LEASE_GRACE_MS - 1)
