"""A server that can't write to its disk refuses writes, and PING. What only reads goes on, doctor and metrics too."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import redis

from redis_sessions import AsyncSessionStore, SessionStore, StoreUnavailable
from redis_sessions.client import pool as pools
from redis_sessions.server import EmbeddedServer
from tests.servers import find_redis_server, is_redis_6, wait_until
from tests.stores import Blocking
from tests.tls.certificates import Certificates


@pytest.fixture
def failing(tmp_path):
    """Makes a server whose snapshots fail, as with a full disk; a directory in their place stands in for that."""

    def make(**options):
        (tmp_path / "data").mkdir(mode=0o700)
        (tmp_path / "data" / "taken").mkdir()
        settings = {"dbfilename": "taken"} | options.pop("extra", {})
        return EmbeddedServer(directory=tmp_path / "data", extra=settings, **options)

    return make


def fill_disk(raw):
    raw.set("sessions:id:{k}", "ID-1", px=3_600_000)
    raw.config_set("save", "1000 1000")
    raw.bgsave()
    wait_until(lambda: raw.info("persistence")["rdb_last_bgsave_status"] != "ok", "the snapshot failed")
    with pytest.raises(redis.ResponseError, match="MISCONF"):
        raw.execute_command("PING")


def stop_saving(raw):
    # Otherwise the server refuses to shut down: it would save once more, and can't.
    raw.config_set("save", "")


def look(kind, url, loop):
    store = kind.from_url(url)
    store = store if kind is SessionStore else Blocking(store, loop)
    try:
        assert [store.get("k") for _ in range(3)] == ["ID-1"] * 3
        assert store.report().live == 1
        with pytest.raises(StoreUnavailable, match="MISCONF"):
            store.set("k", "ID-2")
        assert store.get("k") == "ID-1"
        [disk] = [finding for finding in store.doctor().findings if finding.check == "disk"]
        assert disk.status == "broken"
    finally:
        store.close()


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
@pytest.mark.parametrize(
    "binary",
    [None, pytest.param(find_redis_server(), marks=pytest.mark.skipif(not find_redis_server(), reason="no redis-server"))],
    ids=["valkey", "redis"],
)
def test_connections_that_were_idle_read_on(failing, kind, binary, loop, monkeypatch):
    monkeypatch.setattr(pools, "FRESH_S", -1)
    monkeypatch.setattr(pools, "PING_AFTER_S", -1)
    with failing(binary=binary) as server, redis.Redis.from_url(server.url) as raw:
        fill_disk(raw)
        look(kind, server.url, loop)
        stop_saving(raw)


@pytest.mark.skipif(not find_redis_server(), reason="no redis-server, and Valkey's comes without TLS")
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_new_connections_over_tls_read_on(failing, kind, loop, tmp_path):
    certificates = Certificates(tmp_path)
    settings = certificates.settings("server", "no")
    if is_redis_6(find_redis_server()):
        pytest.skip("its program of the tests comes without TLS")
    with failing(binary=find_redis_server(), extra=settings) as server, redis.Redis.from_url(server.url) as raw:
        fill_disk(raw)
        host = urlsplit(server.url).hostname
        look(kind, f"rediss://{host}:{settings['tls-port']}/0{certificates.options(client=None)}", loop)
        stop_saving(raw)
