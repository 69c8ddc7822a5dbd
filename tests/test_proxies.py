"""Behind a proxy that spreads keys over servers nothing is a part in silence, and no conversation is split."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import redis

from redis_sessions import AsyncSessionStore, InexactScan, KeysScattered, SessionStore, StoreSettings, Turn
from redis_sessions.cli import exit_codes as exits
from redis_sessions.server import EmbeddedServer
from tests.doctor.support import found
from tests.proxies import envoy, twemproxy
from tests.servers import standalone
from tests.stores import opened
from tests.test_cli_support import run

KEYS = [f"{number}:a chat with somebody" for number in range(12)]


@pytest.fixture(scope="module")
def servers() -> Iterator[list[EmbeddedServer]]:
    with standalone() as first, standalone() as second:
        yield [first, second]


@pytest.fixture(autouse=True)
def _empty(servers: list[EmbeddedServer]) -> None:
    for server in servers:
        with redis.Redis.from_url(server.url) as client:
            client.flushall()


@pytest.fixture(params=["envoy", "envoy-info", "envoy-info-scan", "twemproxy"])
def proxy(request: pytest.FixtureRequest, servers: list[EmbeddedServer], tmp_path) -> Iterator[str]:
    """A proxy that sends all keys of a conversation to one of two servers."""
    info = frozenset({b"INFO", b"DBSIZE"}) if "info" in request.param else frozenset()
    scan = frozenset({b"SCAN"}) if "scan" in request.param else frozenset()
    by_tags = request.param == "twemproxy"
    with twemproxy(servers, tmp_path, hash_tag="{}") if by_tags else envoy(servers, also=info | scan) as url:
        yield url


@pytest.fixture(params=[SessionStore, AsyncSessionStore])
def store(request: pytest.FixtureRequest, proxy: str, loop) -> Iterator[SessionStore]:
    with opened(request.param, proxy, loop, deadline_ms=500) as store:
        yield store


def test_a_conversation_works(store: SessionStore) -> None:
    """A proxy must see the key of a script before anything else, and counters have servers of their own."""
    for key in KEYS:
        assert store.resume(key, lambda _: Turn("ID-1"), on_outage="raise").saved
        assert store.get(key) == "ID-1"
        assert store.resume(key, lambda _: Turn("ID-1"), on_outage="raise").how == "resumed"
    counted = store.counters()
    assert (counted["fresh_starts_total"], counted["resumes_total"]) == (len(KEYS), len(KEYS))


def test_no_scan_is_a_part_in_silence(store: SessionStore, proxy: str, tmp_path) -> None:
    for key in KEYS:
        store.set(key, "ID-1")
    with pytest.raises(InexactScan):
        store.live_session_ids()
    for scan in (lambda: store.report().approximate, lambda: store.retime(60_000).approximate):
        try:
            assert scan()
        except InexactScan as refused:
            assert "URL of the server itself" in refused.remedy
    for command in (["export", tmp_path / "out.json"], ["list"]):
        said = run(*command, "--url", proxy, code=exits.PARTLY)
        assert "proxy" in said.stderr


def test_an_import_is_found_again_or_refused(store: SessionStore, tmp_path) -> None:
    file = tmp_path / "in.json"
    file.write_text(json.dumps(dict.fromkeys(KEYS, "ID-1")))
    try:
        assert store.import_legacy(file, assume_used_at="mtime").imported == len(KEYS)
    except InexactScan:
        assert [store.get(key) for key in KEYS] == [None] * len(KEYS)
    else:
        assert [store.get(key) for key in KEYS] == ["ID-1"] * len(KEYS)


def test_the_doctor_tells_what_a_proxy_refuses(store: SessionStore, request: pytest.FixtureRequest) -> None:
    """By that alone nothing is broken, for turns work; and nothing is said to be ok that only one of the servers shows."""
    diagnosis = store.doctor()
    [proxy] = re.findall(r"envoy[a-z-]*|twemproxy", request.node.name)
    refused = {"twemproxy": {"TIME", "SCAN", "INFO"}, "envoy": {"SCAN", "INFO"}, "envoy-info": {"SCAN"}}.get(proxy, set())
    commands = found(diagnosis, "commands")
    assert commands.status == ("warning" if refused else "ok")
    assert not refused or set(re.findall("EVAL|TIME|SCAN|INFO", commands.found)) == refused
    assert diagnosis.broken == 0
    for check in ("no-ttl", "max-age", "values", "names", "leases"):
        assert (found(diagnosis, check).status, check) == ("unknown", check)
        assert "URL of the server itself" in found(diagnosis, check).remedy


@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
def test_no_conversation_is_split(servers, kind, loop, tmp_path) -> None:
    """Where it is the server of each key that counts, even those of which all keys are together are refused."""
    with twemproxy(servers, tmp_path) as url:
        for key in KEYS:
            with opened(kind, url, loop, deadline_ms=500) as store:
                for _ in range(2):
                    with pytest.raises(KeysScattered, match="hash_tag") as caught:
                        store.acquire(key)
                    assert caught.value.key == key
                result = store.resume(key, lambda _: Turn("ID-1"))
                assert (result.saved, store.get(key)) == (False, None)
                assert "hash_tag" in result.reason
        # A refused claim leaves no lease behind.
        assert [redis.Redis.from_url(server.url).dbsize() for server in servers] == [0, 0]


def test_one_server_behind_a_proxy_that_answers_is_proven(servers) -> None:
    also = frozenset({b"INFO", b"DBSIZE"})
    with envoy(servers[:1], also=also) as url, SessionStore.from_url(url, StoreSettings(deadline_ms=500)) as store:
        for key in KEYS:
            store.set(key, f"ID-{key[0]}")
        assert store.live_session_ids() == {f"ID-{key[0]}" for key in KEYS}
