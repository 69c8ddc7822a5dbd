"""Scripts flushed all the time, and a client's clock that jumps: nothing fails, and no time in Redis is the client's.

Every deadline of a client is monotonic; every time of last use is the server's, or comes from an imported file: the entry's
own, or what `assume_used_at` names. fakeredis is left out, since its server lives by our clock.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest
import redis
import time_machine

from redis_sessions import Held, Lease, LeaseHeld, SessionStoreError, Turn
from redis_sessions.keys import LEASE_GRACE_MS, Keys
from redis_sessions.settings import DAY_MS
from tests.servers import wait_until

KEY = "acme/shop#42"
HOUR_MS = 3_600_000
HOURS = (-20 * 365 * 24, -5, 5, 400 * 24)
REAL = pytest.mark.parametrize("place", ["valkey", "cluster", "redis"], indirect=True)


@contextmanager
def flushing(place):
    """Every node's scripts are flushed without a pause; gives a list of how often."""
    flushed, over = [0], threading.Event()
    nodes = [(node.host, node.port) for node in place.raw.get_primaries()] if hasattr(place.raw, "get_primaries") else []
    with ExitStack() as stack:
        clients = [redis.Redis(host, port, retry=None) for host, port in nodes] or [redis.Redis.from_url(place.url)]
        for client in clients:
            stack.enter_context(client)

        def flush():
            while not over.is_set():
                for client in clients:
                    client.script_flush()
                    flushed[0] += 1

        with ThreadPoolExecutor(1) as pool:
            flusher = pool.submit(flush)
            try:
                yield flushed
            finally:
                over.set()
                flusher.result()


@REAL
@pytest.mark.parametrize("turns", [20, pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_scripts_flushed_all_the_time(store, place, turns, tmp_path, ledger):
    tally, path = ledger("SCRIPT FLUSH all the time"), tmp_path / "sessions.json"
    path.write_text(json.dumps({f"legacy-{n}": f"ID-{n}" for n in range(20)}))
    store.set("stays", "ID-stays")

    def turn(number):
        key = f"conversation {number}"
        lease = store.acquire(key)
        assert store.save(lease, "ID-1")
        lease = store.acquire(key)
        assert lease.session_id == "ID-1"
        assert store.renew(lease)
        assert store.reject(lease)
        assert store.release(lease)
        result = store.resume(key, lambda asked: Turn(f"ID-{number}", asked))
        assert (result.value, result.saved) == (None, True)
        assert store.get(key) == f"ID-{number}"
        store.delete(key, f"ID-{number}")  # False if its first reply came too late, as on a busy machine
        assert store.get(key) is None
        assert store.report().live >= 1
        assert "ID-stays" in store.live_session_ids()
        store.export(tmp_path / f"{number % 2}.json")
        store.import_legacy(path, assume_used_at="mtime")
        return 16

    with flushing(place) as flushed, ThreadPoolExecutor(2) as pool:
        for outcome in [pool.submit(turn, number) for number in range(turns)]:
            try:
                tally.operations += outcome.result()
            except SessionStoreError:
                tally.lost += 1  # nothing is away: whatever is refused is a failure
    tally.injected += flushed[0]
    tally.check()


@pytest.fixture
def server_now_ms(place):
    def server_now_ms():
        client = place.raw
        options = {"target_nodes": client.get_primaries()[0]} if hasattr(client, "get_primaries") else {}
        seconds, microseconds = client.time(**options)
        return seconds * 1000 + microseconds // 1000

    return server_now_ms


@pytest.fixture(params=HOURS)
def jump(request):
    """Each call moves the client's clock, which runs on: there, and then back."""
    now_s = time.time()
    with time_machine.travel(now_s, tick=True) as traveller:
        hours = [request.param, -request.param] * 10

        def jump():
            before_s = time.time()
            traveller.shift(hours.pop(0) * 3600)
            assert abs(time.time() - before_s) > 3600

        yield jump


@REAL
class TestAClockThatJumps:
    def test_leases_sessions_and_their_times(self, make_store, raw, namespace, jump, server_now_ms, tmp_path, ledger):
        tally, keys, store = ledger("client's clock jumps"), Keys(namespace), make_store(lease_ms=60_000)
        store.set(KEY, "ID-1")
        lease = store.acquire(KEY)
        jump()
        held = store.acquire(KEY)
        assert isinstance(held, Held)
        assert 0 < held.remaining_ms <= 60_000
        tally.wrong += not store.renew(lease)
        assert LEASE_GRACE_MS < raw.pttl(keys.lease(KEY)) <= LEASE_GRACE_MS + 60_000
        tally.lost += not store.save(lease, "ID-2")
        assert DAY_MS - HOUR_MS < store.peek(KEY).expires_in_ms <= DAY_MS
        [row] = store.sessions()
        assert row.idle_ms < HOUR_MS
        assert abs(row.last_used_at_ms - server_now_ms()) < HOUR_MS
        report = store.report()
        assert (report.live, report.over_max_age) == (1, 0)
        assert 0 <= report.scan_ms < HOUR_MS
        store.export(tmp_path / "out.json")
        used_at_ms = json.loads((tmp_path / "out.json").read_text())[KEY]["last_used_at"]
        assert abs(used_at_ms - server_now_ms()) < HOUR_MS
        jump()
        tally.wrong += store.get(KEY) != "ID-2"
        tally.injected += 2
        tally.operations += 9
        tally.check()

    def test_an_import_goes_by_the_servers_clock(self, store, raw, namespace, jump, server_now_ms, tmp_path, ledger):
        tally, keys, path = ledger("client's clock jumps"), Keys(namespace), tmp_path / "sessions.json"
        try:
            raw.pexpiretime("k")
        except redis.ResponseError:
            pytest.skip("this server has no EXPIRETIME")
        jump()
        now_ms = server_now_ms()
        ages_ms = {"fresh": 0, "used": HOUR_MS, "expired": DAY_MS + 1, "ahead": -HOUR_MS}
        records = {key: {"id": f"ID-{key}", "last_used_at": now_ms - age_ms} for key, age_ms in ages_ms.items()}
        path.write_text(json.dumps(records | {"bare": "ID-bare"}))
        result = store.import_legacy(path, assume_used_at=now_ms - HOUR_MS, progress=lambda *_: jump())
        assert (result.imported, result.expired, result.rejected) == (3, 1, 1)
        assert [reject.key for reject in result.rejects] == ["ahead"]
        for key, age_ms in {"fresh": 0, "used": HOUR_MS, "bare": HOUR_MS}.items():
            tally.wrong += raw.pexpiretime(keys.session_id(key)) != now_ms - age_ms + DAY_MS
        tally.injected += 2
        tally.operations += 5
        tally.check()

    def test_while_waiting_for_a_conversation(self, store, jump, ledger):
        tally = ledger("client's clock jumps")
        lease = store.acquire(KEY)
        with ThreadPoolExecutor(1) as pool:
            began_s = time.monotonic()
            waiting = pool.submit(store.resume, KEY, lambda _: pytest.fail("must not run"), wait_ms=200)
            jump()
            with pytest.raises(LeaseHeld):
                waiting.result()
            assert 0.2 <= time.monotonic() - began_s < 20  # not at once, and not for ever
            waiting = pool.submit(store.resume, KEY, lambda asked: Turn("ID-1", asked), wait_ms=60_000)
            jump()
            assert store.release(lease)
            tally.lost += not waiting.result().saved
        tally.refused += 1
        tally.injected += 2
        tally.operations += 2
        tally.check()

    def test_while_a_turn_runs(self, make_store, raw, namespace, jump, ledger):
        tally, lease_key, store = ledger("client's clock jumps"), Keys(namespace).lease(KEY), make_store(lease_ms=90)

        def run(session_id):
            for _ in range(2):
                jump()
                # Once written longer, only a renewal can bring the time left down to the lease's own again.
                raw.pexpire(lease_key, LEASE_GRACE_MS + DAY_MS)
                wait_until(lambda: raw.pttl(lease_key) < LEASE_GRACE_MS + HOUR_MS, "a renewal")
            return Turn("ID-1", None)

        tally.lost += not store.resume(KEY, run).saved
        assert isinstance(store.acquire(KEY), Lease)
        tally.injected += 2
        tally.operations += 1
        tally.check()
