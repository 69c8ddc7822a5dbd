"""What keeps a store from working is named with its true reason and a remedy, at once where waiting can't help."""

from __future__ import annotations

import pytest
import redis
from redis.cache import CacheConfig

from redis_sessions import (
    AccessDenied,
    AsyncSessionStore,
    CommandRefused,
    SessionStore,
    StoreSettings,
    StoreUnavailable,
    Turn,
)
from redis_sessions.client.url import parse, read_password
from redis_sessions.errors import InvalidSettings
from redis_sessions.keys import Keys
from redis_sessions.server import EmbeddedServer
from tests.doctor.support import found
from tests.servers import find_redis_server, wait_until
from tests.stores import Blocking, opened

KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])
LONG = {"deadline_ms": 600_000}  # what is not told at once would run into the time limit of the test


def lacking(command, directory, binary=None):
    """A server on which an operator has removed a command."""
    (file := directory / "more.conf").write_text(f'rename-command {command} ""\n')
    return EmbeddedServer(binary=binary, extra={"include": str(file)})


def debians():
    """The program of Debian's Redis; skips the test where there is none."""
    return find_redis_server() or pytest.skip("no redis-server on the PATH")


@pytest.fixture(scope="module", params=["EVALSHA", "EVAL", "TIME", "HSET", "SCAN", "INFO", "TIME of redis"])
def without(request, tmp_path_factory):
    command, _, redis_too = request.param.partition(" of ")
    with lacking(command, tmp_path_factory.mktemp("without"), debians() if redis_too else None) as server:
        yield server, command


@KINDS
def test_a_server_without_a_command(without, kind, loop, namespace):
    server, command = without
    with opened(kind, server.url, loop, namespace=namespace, **LONG) as store:
        if command not in ("SCAN", "INFO"):
            result = store.resume("k", lambda session_id: Turn("E", session_id))
            assert (result.value, result.saved) == (None, False)
            unknown = "a command of a script" if command in ("TIME", "HSET") else command
            assert f"does not know {unknown}: allow it" in result.reason
        if command in ("EVALSHA", "EVAL"):
            with pytest.raises(CommandRefused, match=f"does not know {command}: allow it") as caught:
                store.resume("k", lambda _: pytest.fail("must not run"), on_outage="raise")
            assert caught.value.key == "k"
        # What is refused at the save alone must not leave the lease behind.
        assert store.resume("k", lambda _: Turn("E", "ran"), wait_ms=0).value == "ran"
        finding = found(store.doctor(), "commands")
        assert finding.status == ("warning" if command in ("SCAN", "INFO") else "broken")
        assert finding.found.endswith(f"scripts can't call {command}" if command == "HSET" else f"does not know {command}")
        assert "allow it" in finding.remedy


@pytest.fixture(scope="module", params=["valkey", "redis"])
def guarded(request):
    """A server, and the URL of its user that may not write records."""
    binary = debians() if request.param == "redis" else None
    with EmbeddedServer(binary=binary) as server, redis.Redis.from_url(server.url) as raw:
        raw.execute_command("ACL SETUSER w on >p ~* +@all -hset")
        yield raw, server.url.replace("://", "://w:p@")


@KINDS
def test_a_save_that_is_refused_leaves_neither_a_lease_nor_a_session(guarded, kind, loop, namespace):
    raw, url = guarded
    keys = Keys(namespace)
    with opened(kind, url, loop, namespace=namespace, **LONG) as store:
        for turn in range(2):
            result = store.resume("k", lambda session_id: Turn("E", session_id))
            assert (result.value, result.saved, raw.exists(*keys.leased("k"))) == (None, False, 0)
            assert "(NOPERM)" in result.reason
            assert store.counters()["fresh_starts_total"] == turn + 1
        raw.set(keys.session_id("k"), "OLD")
        assert store.resume("k", lambda session_id: Turn("E", session_id)).value == "OLD"
        assert store.get("k") == "OLD"


@KINDS
def test_a_server_that_is_full_by_the_end_of_a_turn_still_releases_the_lease(kind, loop):
    with EmbeddedServer(extra={"maxmemory-policy": "noeviction"}) as server, redis.Redis.from_url(server.url) as raw:

        def fill(_):
            raw.config_set("maxmemory", 1)
            return Turn("E")

        with opened(kind, server.url, loop, **LONG) as store:
            result = store.resume("k", fill)
            assert (result.saved, raw.keys("*:lease:*")) == (False, [])
            assert "OOM" in result.reason


def test_clients_of_another_library():
    valkey = pytest.importorskip("valkey")
    for kind, module in ((SessionStore, valkey), (AsyncSessionStore, valkey.asyncio)):
        with pytest.raises(TypeError, match="redis-py"):
            kind(module.Valkey())


def test_a_client_that_caches():
    with pytest.raises(TypeError, match="without cache and cache_config"):
        SessionStore(redis.Redis(protocol=3, cache_config=CacheConfig()))


@KINDS
def test_maxclients(kind, loop):
    with EmbeddedServer() as server, redis.Redis.from_url(server.url) as raw:
        raw.config_set("maxclients", 1)
        with opened(kind, server.url, loop, deadline_ms=100) as store:
            with pytest.raises(StoreUnavailable, match=r"no connection left.*maxclients"):
                store.get("k")
            raw.config_set("maxclients", 10)
            assert store.get("k") is None


@KINDS
def test_resp3_where_hello_is_refused(kind, loop, tmp_path):
    with lacking("HELLO", tmp_path) as server:
        module = redis if kind is SessionStore else redis.asyncio
        store = kind(module.Redis.from_url(server.url, protocol=3))
        store = store if kind is SessionStore else Blocking(store, loop)
        with pytest.raises(CommandRefused, match=r"does not speak RESP3.*protocol=2"):
            store.get("k")
        assert store.resume("k", lambda _: Turn("E")).saved is False
        store.close()


def test_a_cluster_that_announces_what_can_not_be_reached(loop):
    with EmbeddedServer(extra={"cluster-enabled": "yes", "cluster-announce-port": "1"}) as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16_383)
            wait_until(lambda: b"cluster_state:ok" in raw.execute_command("CLUSTER", "INFO"), "the cluster serves")
        for kind in (SessionStore, AsyncSessionStore):
            with (
                opened(kind, f"redis+cluster://127.0.0.1:{server.port}", loop, deadline_ms=300) as store,
                pytest.raises(StoreUnavailable) as caught,
            ):
                store.get("k")
            assert (
                f":{server.port} announces 127.0.0.1:1, which can't be reached (Connection refused" in caught.value.message
            )
            assert "cluster-announce-ip" in caught.value.remedy


@KINDS
def test_a_password_where_none_is_asked_for(kind, loop, valkey):
    url = valkey.url.replace("://", "://:s3cret@")
    with opened(kind, url, loop, **LONG) as store, pytest.raises(AccessDenied, match="asks for no password") as caught:
        store.get("k")
    assert "s3cret" not in str(caught.value)


def test_a_numbered_database_of_a_cluster():
    with pytest.raises(InvalidSettings, match="redis-py's cluster client has only 0: use a namespace"):
        parse("redis+cluster://h:1/3")


def test_a_password_file_with_a_byte_order_mark(tmp_path):
    (tmp_path / "password").write_bytes(b"\xef\xbb\xbfs3cret\r\n")
    assert read_password(tmp_path / "password") == "s3cret"


# Each holds what servers say, or how they say it.
NAMES = (
    "acme/quota#42",
    "a' quota 'b",
    "a` quota `b",
    "its request limit",
    "max number of clients reached",
    "unknown command 'CLUSTER'",
    "unknown command 'GET'",
    "DB index is out of range",
    "it is not an integer",
    "x -OOM y",
    "ACL failure in script: ",
    "Unknown Redis command called from script",
)


def test_no_key_that_a_server_quotes_decides_the_reason(binary, tmp_path):
    with lacking("EVALSHA", tmp_path, binary) as server, SessionStore.from_url(server.url) as store:
        for key in NAMES:
            with pytest.raises(CommandRefused) as caught:
                store.acquire(key)
            assert caught.value.message.endswith("does not know EVALSHA"), key
            assert caught.value.key == key


def test_no_user_that_a_server_names_decides_the_reason(binary):
    with EmbeddedServer(binary=binary) as server, redis.Redis.from_url(server.url) as raw:
        for user in ("quota", "request-quota-bot", "-OOM"):
            raw.execute_command("ACL", "SETUSER", user, "on", ">s3cret", "~*", "+@all", "-set")
            with SessionStore.from_url(server.url.replace("://", f"://{user}:s3cret@")) as store:
                for write in (lambda store=store: store.set("k", "ID-1"), lambda store=store: store.acquire("k")):
                    with pytest.raises(AccessDenied, match=r"\(NOPERM\)"):
                        write()


def test_no_place_of_a_server_decides_the_reason(tmp_path):
    with (
        SessionStore.from_url(f"unix://{tmp_path}/quota/redis.sock", StoreSettings(deadline_ms=1)) as store,
        pytest.raises(StoreUnavailable, match="can't be reached"),
    ):
        store.get("k")
