"""Redis away: an operation says so within its deadline, and no agent is stopped or turn lost for it."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import nullcontext

import pytest
import redis

from redis_sessions import (
    AsyncSessionStore,
    Judgement,
    Lease,
    SessionStore,
    SessionStoreError,
    StoreSettings,
    StoreUnavailable,
    Turn,
    Verdict,
)
from redis_sessions.client import execute
from redis_sessions.keys import RESUME_FAILURES, Keys
from redis_sessions.server import EmbeddedServer
from tests.servers import wait_until
from tests.stores import Blocking

KEY = "acme/shop#42"


@pytest.fixture
def server():
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def store(request, server, loop):
    settings = StoreSettings(deadline_ms=200, socket_timeout_ms=20_000)
    kind = SessionStore if request.param == "sync" else AsyncSessionStore
    store = kind.from_url(server.url, settings)
    store = store if request.param == "sync" else Blocking(store, loop)
    yield store
    store.close()


def test_every_operation_raises_within_its_deadline(store, server, tmp_path):
    store.set(KEY, "R")
    lease = store.acquire(KEY)
    server.kill()
    (tmp_path / "in.json").write_text('{"a": "ID-1"}')
    for operation in (
        lambda: store.get(KEY),
        lambda: store.set(KEY, "E"),
        lambda: store.delete(KEY),
        lambda: store.delete(KEY, "R"),
        lambda: store.acquire(KEY),
        lambda: store.renew(lease),
        lambda: store.save(lease, "E"),
        lambda: store.reject(lease),
        lambda: store.release(lease),
        store.report,
        lambda: list(store.sessions()),
        store.live_session_ids,
        store.increment_resume_failures,
        store.resume_failures_total,
        store.counters,
        lambda: store.import_legacy(tmp_path / "in.json"),
        lambda: store.export(tmp_path / "out.json"),
    ):
        began_s = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            operation()
        assert time.monotonic() - began_s < 10  # far above the deadline: this does not test timing, only "not forever"
        assert caught.value.remedy
        assert server.url.split("/")[2] in str(caught.value)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])
@pytest.mark.parametrize("scheme", ["redis", "redis+cluster"])
@pytest.mark.parametrize("connected", [True, False], ids=["", "at first use"])
def test_what_is_never_sent_twice_waits_for_a_server_that_refuses_connections(
    kind, scheme, connected, loop, monkeypatch, caplog
):
    """Nothing was sent. The server is started when the first try has failed; only the log level INFO tells of it."""
    caplog.set_level(logging.INFO, "redis_sessions")
    monkeypatch.setattr(execute, "_TELL_AFTER_S", 0.0)
    translate, redis_key = execute.translate, Keys("sessions").counter(RESUME_FAILURES)
    with EmbeddedServer(extra={"cluster-enabled": "yes"} if scheme == "redis+cluster" else {}) as server:
        if scheme == "redis+cluster":
            with redis.Redis.from_url(server.url) as raw:
                raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
        store = kind.from_url(f"{scheme}://127.0.0.1:{server.port}", StoreSettings(deadline_ms=30_000))
        store = store if kind is SessionStore else Blocking(store, loop)
        if connected:
            store.get("a")
        server.kill()

        def start(*args, **options):
            if not server.is_running:
                server.start()
            return translate(*args, **options)

        monkeypatch.setattr(execute, "translate", start)
        try:
            counted = store.increment_resume_failures()
        except StoreUnavailable as error:  # a cluster answers before it serves
            assert "CLUSTERDOWN" in str(error)
            assert scheme == "redis+cluster"
            counted = 0
        with redis.Redis.from_url(server.url) as raw:
            wait_until(lambda: raw.exists(redis_key) >= 0, "it serves")
            assert int(raw.get(redis_key) or 0) == counted
        assert counted == 1 or scheme == "redis+cluster"
        store.close()
    assert "can't be reached (Connection refused): trying for up to 30 s" in caplog.text


class TestResume:
    def test_it_runs_fresh_and_reports_it(self, store, server, caplog):
        server.kill()
        result = store.resume(KEY, lambda session_id: Turn("E", session_id))
        assert (result.value, result.how, result.saved) == (None, "fresh", False)
        assert "store unavailable" in result.reason
        assert "store unavailable" in caplog.text

    def test_it_raises_if_asked_to(self, store, server):
        server.kill()
        with pytest.raises(StoreUnavailable):
            store.resume(KEY, lambda _: pytest.fail("must not run"), on_outage="raise")

    def test_a_turn_is_not_lost_to_a_server_that_died_meanwhile(self, store, server):
        store.set(KEY, "R")

        def run(session_id):
            server.kill()
            return Turn("E", f"resumed {session_id}")

        result = store.resume(KEY, run, on_outage="raise")
        assert (result.value, result.how, result.saved) == ("resumed R", "resumed", False)
        assert "not saved" in result.reason

    def test_the_agents_error_is_raised_even_if_the_lease_cannot_be_released(self, store, server):
        def run(session_id):
            server.kill()
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            store.resume(KEY, run)

    def test_a_server_back_by_the_end_of_the_turn_gets_the_session_id(self, store, server):
        server.kill()

        def run(session_id):
            server.start()
            return Turn("E", None)

        result = store.resume(KEY, run)
        assert (result.how, result.saved) == ("fresh", True)
        assert store.get(KEY) == "E"
        assert isinstance(store.acquire(KEY), Lease)

    @pytest.mark.parametrize("leased", [False, True])
    def test_a_server_back_by_the_end_of_the_turn_keeps_what_it_has(self, store, server, leased):
        server.kill()

        def run(session_id):
            server.start()
            if leased:
                store.acquire(KEY)
            else:
                store.set(KEY, "S")
            return Turn("E", "value")

        result = store.resume(KEY, run)
        assert (result.value, result.saved) == ("value", False)
        assert "not saved" in result.reason
        assert store.get(KEY) == (None if leased else "S")

    @pytest.mark.parametrize("turn_began", [False, True])
    def test_a_refusal_during_an_outage(self, store, server, turn_began):
        store.set(KEY, "R")
        asked = []

        def run(session_id):
            asked.append(session_id)
            if session_id:
                server.kill()
                raise ZeroDivisionError
            return Turn("E", None)

        def judge(error):
            return Judgement(Verdict.gone, turn_began=turn_began)

        if turn_began:
            with pytest.raises(ZeroDivisionError):
                store.resume(KEY, run, judge=judge)
            assert asked == ["R"]
        else:
            result = store.resume(KEY, run, judge=judge)
            assert (result.how, result.saved) == ("restarted", False)
            assert asked == ["R", None]

    def test_a_refusal_during_an_outage_raises_if_asked_to(self, store, server):
        store.set(KEY, "R")

        def run(session_id):
            server.kill()
            raise ZeroDivisionError

        with pytest.raises(StoreUnavailable) as caught:
            store.resume(KEY, run, judge=lambda _: Judgement(Verdict.gone), on_outage="raise")
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("error", [None, ValueError("the block's own")])
def test_a_block_that_holds_a_lease_ends_as_it_would_though_the_lease_can_not_be_released(store, server, error, caplog):
    ended = nullcontext() if error is None else pytest.raises(ValueError, match="the block's own")
    with ended, store.lease(KEY):
        server.kill()
        if error is not None:
            raise error
    [said] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"lease of {KEY!r} was not released, it will expire: ")


def test_a_block_that_is_cancelled_while_its_lease_can_not_be_released_says_so(server, loop, caplog):
    async def scene():
        async with AsyncSessionStore.from_url(server.url, StoreSettings(deadline_ms=200)) as store:

            async def hold():
                async with store.lease(KEY):
                    server.kill()
                    asyncio.get_running_loop().call_soon(task.cancel)

            task = asyncio.create_task(hold())
            with pytest.raises(asyncio.CancelledError):
                await task

    loop.run(scene())
    [said] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert said.startswith(f"lease of {KEY!r} was not released, it will expire: ")


def test_a_short_restart_goes_unnoticed(server):
    """A server that is back before the deadline is noticed by nobody: a turn that begins meanwhile keeps its session."""
    with SessionStore.from_url(server.url) as store:
        store.set(KEY, "R")
        server.kill()
        server.start()
        store.set(KEY, "S")
        assert store.get(KEY) == "S"


@pytest.mark.parametrize("kind", ["redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_worker_can_start_while_cluster_or_sentinel_is_away(kind, flavour, server, loop):
    host = server.url.split("/")[2]
    server.kill()
    url = f"{kind}://{host}" + ("/main" if kind == "redis+sentinel" else "")
    settings = StoreSettings(deadline_ms=700, socket_timeout_ms=200)
    if flavour == "sync":
        store = SessionStore.from_url(url, settings)
    else:
        store = Blocking(AsyncSessionStore.from_url(url, settings), loop)
    try:
        with pytest.raises(StoreUnavailable):
            store.get(KEY)
        assert store.resume(KEY, lambda _: Turn("E", "ran")).value == "ran"
    finally:
        store.close()


class TestRefusals:
    def test_an_unknown_host_name(self):
        with (
            SessionStore.from_url("redis://no-such-host.invalid", StoreSettings(deadline_ms=100)) as store,
            pytest.raises(StoreUnavailable, match="no such host name"),
        ):
            store.get(KEY)

    def test_full_memory_refuses_writes_but_not_reads(self, loop):
        full = {"maxmemory-policy": "noeviction"}
        with EmbeddedServer(extra=full) as server, SessionStore.from_url(server.url) as store:
            store.set(KEY, "R")
            lease = store.acquire(KEY)
            store.client.config_set("maxmemory", 1)
            assert store.get(KEY) == "R"
            for operation in (lambda: store.set(KEY, "E"), lambda: store.save(lease, "E")):
                with pytest.raises(StoreUnavailable, match="OOM"):
                    operation()

    def test_a_wrong_password_fails_at_once_and_is_not_shown(self):
        with EmbeddedServer(extra={"requirepass": "right-s3cret"}) as server:
            for url in (server.url, server.url.replace("redis://", "redis://:wrong-s3cret@")):
                with SessionStore.from_url(url) as store:
                    with pytest.raises(StoreUnavailable) as caught:
                        store.get(KEY)
                    assert "s3cret" not in str(caught.value)
                    assert "password" in str(caught.value)
            with SessionStore.from_url(server.url.replace("redis://", "redis://:right-s3cret@")) as store:
                store.set(KEY, "R")
                assert store.get(KEY) == "R"

    def test_a_missing_acl_right(self, valkey):
        valkey.raw.acl_setuser("narrow", enabled=True, passwords=["+p"], keys=["*"], commands=["+get", "+hello"])
        try:
            with SessionStore.from_url(valkey.url.replace("redis://", "redis://narrow:p@")) as store:
                assert store.get(KEY) is None
                with pytest.raises(SessionStoreError, match="NOPERM"):
                    store.set(KEY, "R")
        finally:
            valkey.raw.acl_deluser("narrow")
