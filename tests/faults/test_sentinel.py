"""A primary that dies, or is stopped and comes back after it was replaced: Sentinel's failover, under load."""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_sessions import NotReplicated, StoreUnavailable, Turn
from redis_sessions.errors import AccessDenied
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer, _valkey_binary
from tests.faults.ledger import Tally
from tests.faults.load import PATIENCE_MS, Findings, Load, both, patience
from tests.sentinels import SERVICE, Watched, Watcher, role
from tests.servers import find_redis_7, standalone, stopped, wait_until
from tests.stores import PATIENCE, Loop

LONG = [pytest.mark.long, pytest.mark.timeout(1800)]
USER, PASSWORD = "worker", "s3cret"
# What a primary has acknowledged and not yet passed on when it dies is lost, unless replicas are waited for.
PASSING_ON_S = 0.5


@pytest.fixture(scope="module", params=["valkey", "redis"])
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    binary = None if request.param == "valkey" else find_redis_7()
    if binary is None and request.param == "redis":
        pytest.skip("no redis-server since 7 on the PATH")
    with Watched(binary, replicas=2) as watched:
        for server in watched.servers:
            with redis.Redis.from_url(server.url) as client:
                client.acl_setuser(USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"])
        yield watched


def with_user(url: str) -> str:
    return url.replace("://", f"://{USER}:{PASSWORD}@")


def users(watcher: Any) -> set[str]:
    """Who has asked this sentinel for the primary, of those that are connected."""
    with watcher.client() as client:
        return {one["user"] for one in client.client_list() if one["cmd"] == "sentinel|masters"}


def test_the_primarys_password_is_not_sent_to_the_sentinels_and_closing_closes_all(watched, loop, namespace):
    with both(with_user(watched.url), loop, namespace) as stores:
        for store in stores:
            store.set("one", "ID-1")
            assert store.get("one") == "ID-1"
        with redis.Redis.from_url(watched.primary().url) as client:
            assert USER in {one["user"] for one in client.client_list()}
        assert set().union(*map(users, watched.watchers)) == {"default"}
    wait_until(lambda: not any(map(users, watched.watchers)), "both stores have left the sentinels")


def test_the_primary_refuses_a_wrong_password(watched, loop, namespace):
    with both(watched.url.replace("://", "://nobody:wr0ng@"), loop, namespace) as stores:
        for store in stores:
            with pytest.raises(StoreUnavailable, match="password") as caught:
                store.get("one")
            assert "wr0ng" not in str(caught.value)


@pytest.fixture
def guarded(watched):
    """Sentinels that ask for a password; beside their default user, one may only ask for the primary, and one nothing."""
    rights = {"default": "+@all", "asking": "-@all +sentinel|masters", "nobody": "-@all"}
    lines = [f"ACL SETUSER {user} on resetpass >{PASSWORD} {rules}" for user, rules in rights.items()]
    with ExitStack() as stack:
        for watcher in watched.watchers:
            raw = stack.enter_context(redis.Redis(port=watcher.port, single_connection_client=True))
            stack.callback(raw.execute_command, "ACL", "SETUSER", "default", "nopass")
            for line in lines[::-1]:
                raw.execute_command(*line.split())
        yield watched


def logins(tmp_path: Path) -> dict[str, str | None]:
    """What of a URL gives the sentinels a user and a password, each with what is said if that is refused."""
    (tmp_path / "password").write_text(f"{PASSWORD}\n")
    return {
        "": r"asks for a user and a password \(NOAUTH\): .*sentinel_password=",
        "sentinel_password=wr0ng": r"refuses this user's password \(WRONGPASS\): check sentinel_username and",
        f"sentinel_username=nobody&sentinel_password={PASSWORD}": r"does not grant .* sentinel\|masters \(NOPERM\): grant",
        f"sentinel_password={PASSWORD}": None,
        f"sentinel_username=asking&sentinel_password={PASSWORD}": None,
        f"sentinel_password_file={tmp_path / 'password'}": None,
    }


def test_sentinels_with_a_password_of_their_own(guarded, loop, namespace, tmp_path):
    for login, said in logins(tmp_path).items():
        # The primary's own are never tried there.
        with both(with_user(f"{guarded.url}?{login}".rstrip("?")), loop, namespace) as stores:
            for store in stores:
                assert PASSWORD not in repr(store)
                if said is None:
                    store.set("one", "ID-1")
                    assert store.get("one") == "ID-1"
                    continue
                with pytest.raises(AccessDenied, match=rf"^the sentinel 127\.0\.0\.1:\d+ {said}") as caught:
                    store.get("one")
                assert not {PASSWORD, "wr0ng"} & set(re.split(r"\W", str(caught.value)))


def test_no_sentinel_is_forgotten_when_several_workers_ask_at_a_time(watched, loop, namespace):
    """The first of them is not up, so that each worker finds another one to be better."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = watched.url.replace("://", f"://127.0.0.1:{mute.getsockname()[1]},")
        with both(url, loop, namespace) as stores:
            for store in stores:
                with ThreadPoolExecutor(8) as pool:
                    assert list(pool.map(store.get, ["one"] * 8)) == [None] * 8
                known = store.client.connection_pool.sentinel_manager.sentinels
                assert len(set(known)) == len(watched.watchers) + 1


def test_a_sentinel_during_a_failover_is_not_trusted(watched, loop, namespace, ledger):
    """It names the old primary until every replica follows the new one; the old one may be up, and lose what it takes."""
    tally = ledger("Sentinel's failover half-way")
    old, leader = watched.primary(), watched.watchers[0]
    with redis.Redis.from_url(old.url) as raw, both(only(leader), loop, namespace) as stores:
        raw.config_set("min-replicas-to-write", 0)
        promoted = watched.fail_over(leader)
        tally.injected += 1
        assert "failover_in_progress" in watched.state(leader)["flags"]
        for number, store in enumerate(stores):
            store.set(f"{number}", "ID-1")
            tally.operations += 1
        new = watched.primary(besides=old)
        assert new is promoted
        with redis.Redis.from_url(new.url) as client:
            tally.lost += sum(not client.exists(Keys(namespace).session_id(f"{number}")) for number in range(len(stores)))
        watched.rejoin(new)
    tally.check()


def test_a_connection_in_use_while_a_new_primary_is_named_is_not_used_again(loop, namespace):
    """Its server may answer for long, and what that acknowledges is lost."""
    with ExitStack() as stack:
        old, new = (stack.enter_context(standalone()) for _ in range(2))
        old_raw, new_raw = (stack.enter_context(redis.Redis.from_url(server.url)) for server in (old, new))
        stack.callback((watcher := Watcher(_valkey_binary())).stop)
        sentinel = stack.enter_context(watcher.client())
        workers = stack.enter_context(ThreadPoolExecutor())
        for number, store in enumerate(stack.enter_context(both(only(watcher), loop, namespace, **PATIENCE))):
            watch(sentinel, old)
            holding = workers.submit(call, loop, store.client.execute_command, "BLPOP", "queue", 0)
            wait_until(lambda: old_raw.info("clients")["blocked_clients"] == 1, "a call holds a connection")
            watch(sentinel, new)
            store.get("one")  # by another connection, which asks Sentinel
            old_raw.lpush("queue", "end")
            holding.result()
            for saved in range(3):
                store.set(key := f"{number}-{saved}", "ID-1")
                assert new_raw.exists(Keys(namespace).session_id(key))


def watch(sentinel: redis.Redis, primary: EmbeddedServer) -> None:
    """Have a sentinel name this server, which nobody else watches."""
    with suppress(redis.ResponseError):  # it watches none yet
        sentinel.execute_command("SENTINEL REMOVE", SERVICE)
    sentinel.execute_command("SENTINEL MONITOR", SERVICE, "127.0.0.1", primary.port, 1)


def call(loop: Loop, command: Any, *args: Any) -> Any:
    """Call a client's command, of either flavor."""
    return loop.run(command(*args)) if inspect.iscoroutinefunction(command) else command(*args)


def only(watcher: Any) -> str:
    return f"redis+sentinel://127.0.0.1:{watcher.port}/{SERVICE}"


CASES = [(1, 1), pytest.param(1, 20, marks=LONG), pytest.param(0, 20, marks=LONG)]


def row(fault: str, replicas: int) -> str:
    return f"Sentinel's primary {fault}{', saves waited for a replica' if replicas else ''}"


def settle(load: Load, store: Any, tally: Tally, replicas: int) -> Findings:
    return load.settle(store, tally, young_s=0 if replicas else PASSING_ON_S, young_counts_s=PASSING_ON_S)


def refused(load: Load) -> set[str]:
    """What was refused, other than by a lack of replicas during the failover."""
    return {what for what, error in load.refusals if not isinstance(error, NotReplicated)}


@pytest.mark.parametrize(("replicas", "rounds"), CASES)
def test_the_primary_is_killed(watched, replicas, rounds, loop, namespace, ledger):
    tally, before = ledger(row("killed", replicas)), watched.failovers()
    with both(watched.url, loop, namespace, replicas=replicas, **patience(rounds)) as stores:
        with Load(stores) as load:
            for _ in range(rounds):
                load.goes_on()
                primary = watched.primary()
                fault_s = load.fault()
                primary.kill()
                load.goes_on(fault_s)
                # It comes back empty: while a sentinel or a replica still held it for the primary, it would empty that, too.
                watched.rejoin(watched.primary(besides=primary))
        findings = settle(load, stores[0], tally, replicas)
    # More failovers than faults: Sentinel took a primary that this machine held up for a dead one.
    assert not findings.errors, f"{watched.failovers() - before} failovers"
    # Only a count is refused: it is sent once. What may be sent again rides the failover out.
    assert refused(load) <= {"count"}
    tally.check()


@pytest.mark.parametrize(("replicas", "rounds"), CASES)
def test_the_primary_is_stopped_and_comes_back_replaced(watched, replicas, rounds, loop, namespace, ledger):
    tally = ledger(row("stopped, back after the failover", replicas))
    settings = {"replicas": replicas, **patience(rounds)}
    for number in range(rounds):
        # Some stores are at work all the time; some were idle since before it was stopped, and still have connections to it.
        where = (watched.url, loop, f"{namespace}-{number}")
        with both(*where, **settings) as stores, both(*where, **settings) as idle:
            stop_and_go_on(watched, stores, idle, tally)
    tally.check()


def stop_and_go_on(watched: Watched, stores: tuple[Any, Any], idle: tuple[Any, Any], tally: Tally) -> None:
    primary = watched.primary()
    for number, store in enumerate(idle):
        store.set(f"idle{number}", "before")
    with Load(stores) as load:
        load.goes_on()
        fault_s = load.fault()
        with stopped(primary.pid):
            load.goes_on(fault_s)
        for number, store in enumerate(idle):
            store.set(f"idle{number}", "after")
        assert role(primary, 20) == "master", "it was demoted too early"
        load.goes_on()
        assert role(primary, 20) == "master"
    new = watched.primary(besides=primary)
    with redis.Redis.from_url(new.url) as raw:
        keys = Keys(stores[0].settings.namespace)
        tally.lost += sum(raw.get(keys.session_id(f"idle{number}")) != b"after" for number in range(len(idle)))
    watched.rejoin(new)
    findings = settle(load, stores[0], tally, stores[0].settings.replicas)
    assert not findings.errors
    assert refused(load) <= {"count"}


def test_a_lease_lost_in_a_failover_is_reported_and_overwrites_nothing(watched, loop, namespace, ledger):
    """The promise of one run at a time ends there. Neither replica has heard of the lease when one of them takes over."""
    tally = ledger("Sentinel's failover loses a lease")
    old, key = watched.primary(), "acme/shop#42"
    with both(watched.url, loop, namespace, deadline_ms=PATIENCE_MS) as (one, other):
        watched.cut_off(old)
        one.set(key, "ID-0")

        def run(asked: str | None) -> Turn[Any]:
            assert asked == "ID-0"
            watched.fail_over(watched.watchers[0])
            old.kill()
            return Turn("late", other.resume(key, lambda asked: Turn("ID-1", asked)))

        late = one.resume(key, run)
        tally.injected += 1
        tally.operations += 2
        tally.reported += not late.saved and "took the conversation over" in (late.reason or "")
        tally.wrong += not late.value.saved or one.get(key) != "ID-1"
        watched.rejoin(watched.primary(besides=old))
    assert tally.reported == tally.injected
    tally.check()


def test_a_primary_that_refuses_writes_is_looked_up_again(watched, loop, namespace, monkeypatch):
    """As one does that was cut off from its replicas: a further try asks Sentinel first, however busy the connection is."""
    with (
        both(watched.url, loop, namespace, deadline_ms=PATIENCE_MS) as stores,
        redis.Redis.from_url(watched.primary().url) as raw,
    ):
        for store in stores:
            store.set("one", "ID-1")
            sentinel = store.client.connection_pool.sentinel_manager
            asked: list[str] = []
            ask = sentinel.discover_master

            def discover(name, ask=ask, asked=asked):
                asked.append(name)
                raw.config_set("min-replicas-to-write", 1)  # which ends the refusals
                return ask(name)

            monkeypatch.setattr(sentinel, "discover_master", discover)
            raw.config_set("min-replicas-to-write", len(watched.servers))
            try:
                store.set("one", "ID-2")
            finally:
                raw.config_set("min-replicas-to-write", 1)
            assert asked
