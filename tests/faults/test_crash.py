"""A server that is killed or stopped under load: what it acknowledged is there afterwards, and no caller waits too long."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from redis_sessions import SessionStore, StoreSettings, Turn
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from redis_sessions.settings import DAY_MS
from tests.faults.load import AWAY, Load, both
from tests.servers import find_redis_7, stopped, wait_until

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]
SHORT_MS = 200
# A server that syncs its file each second puts off writing to it while a sync is under way, for up to two seconds, and
# acknowledges all the same: that much of its memory a crash may take with it.
POSTPONED_S = 3.0
DEADLINE_MS = 1_500
# Servers count whole milliseconds, and a key is still there in the one in which it expires.
STILL_ALIVE_MS = 1
# How long a thread may wait for a processor before it can read the clock, on a small machine with all workers busy.
SLACK_S = 5.0  # a busy machine may take that long for nothing at all


@pytest.fixture(params=["valkey", "redis"])
def binary(request: pytest.FixtureRequest) -> Path | None:
    if request.param == "valkey":
        return None
    return find_redis_7() or pytest.skip("no redis-server since 7 on the PATH")


@pytest.fixture
def durable(binary: Path | None, sync: str, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """A server that keeps its data, as `serve` runs it."""
    # By default it is synced always.
    extra = {} if sync == "always" else {"appendfsync": sync}
    with EmbeddedServer(binary=binary, directory=tmp_path / "data", extra=extra) as server:
        yield server


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("sync", ["always", pytest.param("everysec", marks=LONG)])
def test_a_server_killed_under_load_has_all_that_it_acknowledged(durable, sync, rounds, loop, namespace, ledger):
    tally = ledger(f"serve killed, file synced {sync}")
    keys = Keys(namespace)
    short = SessionStore.from_url(durable.url, StoreSettings(namespace=namespace, session_max_age_ms=SHORT_MS))
    with both(durable.url, loop, namespace, lease_ms=1_000) as stores, short, redis.Redis.from_url(durable.url) as raw:
        stores[0].set("untouched", "ID-0")
        expires_at_ms = raw.pexpiretime(keys.session_id("untouched"))
        # Whatever comes between the two makes it too small.
        clock_s = max(time.time() - time.monotonic() for _ in range(100))
        with Load(stores) as load:
            for number in range(rounds):
                load.goes_on()
                short.set(f"short{number}", "ID-1")
                gone_at_ms = raw.pexpiretime(keys.session_id(f"short{number}"))
                load.fault()
                durable.kill()
                if number % 2:
                    wait_until(
                        lambda gone_at_ms=gone_at_ms: time.time() * 1000 > gone_at_ms + STILL_ALIVE_MS,
                        "it has expired while the server was away",
                    )
                durable.start()
                assert raw.pexpiretime(keys.session_id("untouched")) == expires_at_ms
                if number % 2 == 0:
                    wait_until(
                        lambda gone_at_ms=gone_at_ms: time.time() * 1000 > gone_at_ms + STILL_ALIVE_MS,
                        "it has expired since",
                    )
                tally.wrong += short.get(f"short{number}") is not None
            load.goes_on()
        findings = load.settle(stores[0], tally, young_s=POSTPONED_S if sync == "everysec" else 0.0)
        for key, saves in load.saves.items() if sync == "always" else ():
            acked = next((save for save in reversed(saves) if save.acked_s), None)
            if acked is None:
                continue
            # Written by the last save that was acknowledged, or by one that was tried after it.
            latest_s = acked.acked_s if saves[-1] is acked else time.monotonic()
            used_at_ms = raw.pexpiretime(keys.session_id(key)) - DAY_MS
            tally.wrong += not (acked.began_s + clock_s) * 1000 - 5 <= used_at_ms <= (latest_s + clock_s) * 1000 + 5
    assert not findings.errors
    tally.check()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=LONG)])
def test_no_caller_waits_past_the_deadline_and_no_late_reply_harms(rounds, loop, namespace, ledger):
    tally = ledger("server stopped beyond the deadline")
    settings = {"deadline_ms": DEADLINE_MS, "socket_timeout_ms": 300, "connect_timeout_ms": 300, "lease_ms": 1_000}
    with EmbeddedServer() as server, both(server.url, loop, namespace, **settings) as stores:
        with Load(stores) as load:
            for _ in range(rounds):
                load.goes_on()
                load.fault()
                with stopped(server.pid):
                    for store in stores:
                        stopped_s = time.monotonic()
                        result = store.resume("alone", lambda asked: Turn("ID-1", asked))
                        assert (result.value, result.how, result.saved) == (None, "fresh", False)
                        assert AWAY in result.reason
                        assert time.monotonic() - stopped_s < 2 * DEADLINE_MS / 1000 + SLACK_S
                    refused = len(load.refusals)
                    wait_until(
                        lambda refused=refused: {what for what, _ in load.refusals[refused:]} == {"set", "get", "count"},
                        "each kind of operation was refused",
                    )
                load.goes_on()
        findings = load.settle(stores[0], tally)
    assert not findings.errors
    # Claim and save may each take the deadline; a turn waits for nothing else.
    assert findings.longest_s < 2 * DEADLINE_MS / 1000 + SLACK_S
    assert any(AWAY in (run.reason or "") for runs in load.runs.values() for run in runs)
    tally.check()
