"""A cluster whose slots move, and whose primaries die, under load."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.crc import key_slot

from redis_sessions import AsyncSessionStore, InexactScan, Lease, NotReplicated, SessionStore, StoreSettings, Turn
from redis_sessions.keys import Keys
from tests.faults.ledger import Tally
from tests.faults.load import Load, Save, both, patience
from tests.faults.slots import Slots
from tests.sentinels import role
from tests.servers import CLUSTER_SETTINGS, SLOTS, Cluster, find_redis_server, stopped, wait_until
from tests.stores import Blocking

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]
ENTRIES = 500
SMALL_PAGES = {"scan_count": 20, "batch_size": 25}
PATIENCE = redis.RedisCluster.RedisClusterRequestTTL
# What a primary has acknowledged and not yet passed on when it dies is lost, unless replicas are waited for.
PASSING_ON_S = 0.5
# Redis' replicas wait half a second to a second before they stand for election, however short the node timeout.
NODE_TIMEOUTS_MS = {"valkey": 1_000, "redis": 2_000}


@pytest.fixture(scope="module", params=["valkey", "redis"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def cluster(kind: str) -> Iterator[Cluster]:
    binary = None if kind == "valkey" else find_redis_server()
    if kind == "redis" and binary is None:
        pytest.skip("no redis-server on the PATH")
    settings = CLUSTER_SETTINGS | {"cluster-node-timeout": str(NODE_TIMEOUTS_MS[kind])}
    with Cluster(binary, replicas=1, extra=settings) as cluster:
        yield cluster


@pytest.fixture
def slots(cluster: Cluster, kind: str) -> Iterator[Slots]:
    slots = Slots(cluster)
    # No failover meanwhile, however long this machine may hold up a server.
    cluster.patience_ms(60_000)
    yield slots
    slots.bring_home()
    slots.close()
    cluster.patience_ms(NODE_TIMEOUTS_MS[kind])
    cluster.settle()


@pytest.fixture
def stores(cluster: Cluster, loop: Any, namespace: str) -> Iterator[tuple[Any, Any]]:
    with both(cluster.url, loop, namespace, **SMALL_PAGES) as stores:
        yield stores


def slot_of(namespace: str, key: str) -> int:
    return key_slot(Keys(namespace).session_id(key))


def legacy_file(path: Path, name: str) -> dict[str, str]:
    """Write a sessions.json; its session IDs by key."""
    entries = {f"{name}{number}": f"{name}-{number}" for number in range(ENTRIES)}
    used_at_ms = int(time.time() * 1000) - 60_000
    path.write_text(json.dumps({key: {"id": one, "last_used_at": used_at_ms} for key, one in entries.items()}))
    return entries


def look(store: Any, expected: set[str], over: threading.Event, tally: Tally, outcomes: set[str]) -> None:
    """Scan until stopped: a scan that says it is exact has found all."""
    while not over.is_set():
        report = store.report()
        outcomes.add("approximate" if report.approximate else "exact")
        tally.lost += not report.approximate and report.live < len(expected)
        try:
            tally.lost += not expected <= store.live_session_ids()
            outcomes.add("IDs")
        except InexactScan:
            outcomes.add("no IDs")
        tally.operations += 2


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=LONG)])
def test_slots_move_under_scans_imports_and_load(cluster, slots, rounds, loop, namespace, tmp_path, ledger):
    tally = ledger("cluster slots moved to and fro")
    for number in range(rounds):
        with both(cluster.url, loop, f"{namespace}-{number}", **SMALL_PAGES) as stores:
            work_while_slots_move(stores, slots, tmp_path, tally)
    tally.injected += slots.moves
    tally.check()


def work_while_slots_move(stores: tuple[Any, Any], slots: Slots, directory: Path, tally: Tally) -> None:
    there = {f"still{number}": f"still-{number}" for number in range(300)}
    for key, session_id in there.items():
        stores[0].set(key, session_id)
    moved = [slot_of(stores[0].settings.namespace, key) for key in there] + list(range(0, SLOTS, 500))
    entries = [legacy_file(directory / name, name) for name in ("sync", "async")]
    over, outcomes = threading.Event(), set()
    looks = [threading.Thread(target=look, args=(store, set(there.values()), over, tally, outcomes)) for store in stores]
    with Load(stores) as load, slots.moving(moved):
        for thread in looks:
            thread.start()
        try:
            for store, name in zip(stores, ("sync", "async"), strict=True):
                result = store.import_legacy(directory / name)
                assert result.imported + result.kept == result.total == ENTRIES
                tally.operations += ENTRIES
            load.goes_on()
        finally:
            over.set()
            for thread in looks:
                thread.join()
    findings = load.settle(stores[0], tally)
    for key, session_id in (there | entries[0] | entries[1]).items():
        found = stores[1].get(key)
        tally.lost += found is None
        tally.wrong += found not in (None, session_id)
    assert not findings.errors
    # A count is sent once, and redis-py may hang up on it when it refreshes its map of slots.
    assert {what for what, _ in load.refusals} <= {"count"}
    assert {"approximate", "no IDs"} <= outcomes


def test_a_scan_during_a_slot_migration_is_approximate(slots, stores, namespace):
    key, slot = "somebody", slot_of(namespace, "somebody")
    stores[0].set(key, "ID-1")
    slots.begin(slot)
    for carried in (False, True):
        if carried:
            slots.carry(slot, Keys(namespace).session_id(key))
        for store in stores:
            assert store.report().approximate
            with pytest.raises(InexactScan):
                store.live_session_ids()
    slots.end(slot)
    for store in stores:
        assert not store.report().approximate
        assert store.live_session_ids() == {"ID-1"}


def test_a_scan_during_which_a_slot_moved_away_and_back_is_approximate(slots, stores, namespace):
    for number in range(100):
        stores[0].set(f"key{number}", "ID-1")
    for store in stores:
        pages = []

        def looked(*_: int, pages=pages) -> None:
            if not pages:
                slots.begin(slot_of(namespace, "key1"))
                slots.end(slot_of(namespace, "key1"))
                slots.bring_home()
            pages.append(1)

        assert store.report(looked).approximate
        assert len(pages) > 1


@pytest.mark.parametrize("first", ["id", "lease"])
@pytest.mark.parametrize("flavor", [0, 1], ids=["sync", "async"])
def test_a_conversation_split_between_two_primaries_is_waited_for(cluster, slots, stores, namespace, first, flavor):
    """Neither of the two can run a script that needs both keys: TRYAGAIN, more often than redis-py puts up with."""
    store, key, keys = stores[flavor], "somebody", Keys(namespace)
    slot = slot_of(namespace, key)
    store.set(key, "ID-1")
    lease = store.acquire(key)
    assert isinstance(lease, Lease)
    slots.begin(slot)
    slots.carry(slot, keys.session_id(key) if first == "id" else keys.lease(key))
    refused = told(cluster, "TRYAGAIN")
    saved: list[bool] = []
    saving = threading.Thread(target=lambda: saved.append(store.save(lease, "ID-2")))
    saving.start()
    try:
        wait_until(lambda: told(cluster, "TRYAGAIN") > refused + PATIENCE, "the save was told to try again")
    finally:
        slots.end(slot)
        saving.join()
    assert saved == [True]
    assert store.get(key) == "ID-2"


@pytest.mark.parametrize("idle", [1, 2, 3, 4])
def test_a_conversation_that_has_left_for_another_primary_is_served_there(cluster, slots, stores, loop, namespace, idle):
    """At once: ASKING goes by the connection of the command behind it, however many idle ones there are."""
    for number, store in enumerate(stores):
        key = f"somebody{number}"
        slot, keys = slot_of(namespace, key), Keys(namespace)
        assert store.save(store.acquire(key), "ID-1")
        lease = store.acquire(key)
        slots.begin(slot)
        slots.carry(slot, keys.session_id(key), keys.lease(key), keys.record(key))
        if number:
            loop.run(connect_idle(store.client, idle))
        sent_back = told(cluster, "MOVED")
        for session_id in ("ID-1", "ID-2"):
            assert store.get(key) == store.peek(key).session_id == session_id
            store.set(key, "ID-2")
            assert store.renew(lease)
        assert store.acquire(key, lease.token).session_id == "ID-2"
        assert store.save(lease, "ID-3")
        assert told(cluster, "MOVED") == sent_back
        slots.end(slot)


async def connect_idle(client: Any, count: int) -> None:
    """Give each primary so many connections that are idle."""
    for node in client.get_primaries():
        connections = [node.acquire_connection() for _ in range(count)]
        for connection in connections:
            await connection.connect()
            node.release(connection)


@pytest.mark.parametrize("whose", ["ours", "callers"])
def test_the_replicas_of_the_node_that_took_the_save_are_waited_for(cluster, slots, loop, namespace, whose):
    """Also of the one that a save was redirected to, for once or for good."""
    with ExitStack() as stack:

        def stores(socket_timeout_ms: int) -> list[Any]:
            """A replica is waited for half of that time: long on a busy machine, short where it is stopped."""
            settings = StoreSettings(namespace=namespace, replicas=1, socket_timeout_ms=socket_timeout_ms)
            if whose == "ours":
                sync, other = SessionStore.from_url(cluster.url, settings), AsyncSessionStore.from_url(cluster.url, settings)
            else:
                where = ("127.0.0.1", cluster.nodes[0].port)
                sync = SessionStore(redis.RedisCluster(*where), settings)
                other = AsyncSessionStore(redis.asyncio.RedisCluster(*where), settings)
            for store in (made := [sync, Blocking(other, loop)]):
                stack.callback(store.close)
            return made

        for number, (store, quick) in enumerate(zip(stores(4_000), stores(600), strict=True)):
            key = f"somebody{number}"
            slot, keys = slot_of(namespace, key), Keys(namespace)
            assert store.resume(key, lambda _: Turn("ID-1")).replicated
            slots.begin(slot)
            slots.carry(slot, keys.session_id(key), keys.lease(key), keys.record(key))
            store.set(key, "ID-2")  # ASK
            slots.end(slot)
            store.set(key, "ID-3")  # MOVED
            with ExitStack() as stops:
                for node in cluster.nodes:
                    if role(node, 20) == "slave":
                        stops.enter_context(stopped(node.pid))
                result = quick.resume(key, lambda asked: Turn("ID-4", asked))
                assert (result.value, result.saved, result.replicated) == ("ID-3", True, False)
            slots.bring_home()


def told(cluster: Cluster, code: str) -> int:
    """How often any node has answered by this error."""
    count = 0
    for node in cluster.nodes:
        with redis.Redis.from_url(node.url) as client:
            count += int(client.info("errorstats").get(f"errorstat_{code}", {"count": 0})["count"])
    return count


@pytest.mark.parametrize(
    ("replicas", "fault", "rounds"),
    [(1, "killed", 1), *(pytest.param(*case, 20, marks=LONG) for case in ((1, "killed"), (1, "stopped"), (0, "killed")))],
)
def test_a_primary_dies_and_its_slots_are_back_within_three_node_timeouts(
    cluster, loop, kind, replicas, fault, rounds, namespace, ledger
):
    """A stopped one comes back after it was replaced, and still takes itself for the primary."""
    tally = ledger(f"cluster primary {fault}{', saves waited for a replica' if replicas else ''}")
    back_s: list[float] = []
    with both(cluster.url, loop, namespace, replicas=replicas, **patience(rounds)) as stores:
        with Load(stores) as load:
            for _ in range(rounds):
                load.goes_on()
                victim = cluster.primary_of(slot_of(namespace, next(iter(load.saves))))
                orphans, refused = cluster.slots_of(victim), len(load.refusals)

                def saved(fault_s: float, orphans=orphans, refused=refused) -> bool:
                    """Whether a save was taken there: it has no replica now, so that nothing more can be said of it."""
                    taken = {key for key, saves in list(load.saves.items()) if last_acked_s(saves) > fault_s}
                    taken |= {error.key for _, error in load.refusals[refused:] if isinstance(error, NotReplicated)}
                    return any(slot_of(namespace, key) in orphans for key in taken)

                fault_s = load.fault()
                with stopped(victim.pid) if fault == "stopped" else nullcontext():
                    if fault == "killed":
                        victim.kill()
                    wait_until(partial(saved, fault_s), "keys of its slots are saved again")
                    back_s.append(time.monotonic() - fault_s)
                    load.goes_on(fault_s)
                victim.start()
                load.goes_on()
                cluster.settle()
        findings = load.settle(stores[0], tally, young_s=0 if replicas else PASSING_ON_S, young_counts_s=PASSING_ON_S)
    assert not findings.errors
    # Each try at a primary that hangs takes a whole timeout, so that some reach their deadline.
    assert fault == "stopped" or {what for what, error in load.refusals if not isinstance(error, NotReplicated)} <= {"count"}
    # A bound in time holds on a quiet machine.
    assert rounds == 1 or max(back_s) < 3 * NODE_TIMEOUTS_MS[kind] / 1000
    tally.check()


def last_acked_s(saves: list[Save]) -> float:
    """When the last one of these that was acknowledged began; 0 if none was."""
    return max((save.began_s for save in list(saves) if save.acked_s), default=0.0)
