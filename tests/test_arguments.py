"""Wrong arguments are refused before anything is sent, with a message that names the remedy."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import fakeredis
import pytest
import redis
import redis.asyncio

import redis_sessions
from redis_sessions import AsyncSessionStore, Held, InvalidSettings, SessionStore, StoreSettings
from redis_sessions.testing import fake_async_store, fake_store

BOTH = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])
NOWHERE = "unix:///nowhere/sock"


def refused(call, error=TypeError):
    """What an error says that a call raises; a coroutine is run."""

    def run():
        value = call()
        if inspect.isawaitable(value):
            asyncio.run(value)

    with pytest.raises(error) as caught:
        run()
    return str(caught.value)


@BOTH
class TestMakingAStore:
    @pytest.mark.parametrize("client", ["redis://u:s3cret@h", None, object(), {"host": "h"}, redis.ConnectionPool()])
    def test_of_something_else_than_a_client(self, kind, client):
        name, given = kind.__name__, type(client).__name__
        says = refused(lambda: kind(client))
        assert says == f"{name} takes a redis-py client, not a {given}: {name}.from_url(url) makes one"

    def test_of_a_client_of_the_other_flavor(self, kind):
        sync = (redis.Redis(), fakeredis.FakeRedis())
        other = (redis.asyncio.Redis(), fakeredis.FakeAsyncRedis())
        cluster = redis.asyncio.RedisCluster(startup_nodes=[redis.asyncio.cluster.ClusterNode("h", 1)])
        for client in sync if kind is AsyncSessionStore else (*other, cluster):
            fit = SessionStore if kind is AsyncSessionStore else AsyncSessionStore
            assert refused(lambda client=client: kind(client)).endswith(f"redis-py client: give this one to {fit.__name__}")
            assert fit(client).client is client

    @pytest.mark.parametrize("settings", [{"namespace": "x"}, {}, "x", 0])
    def test_with_something_else_than_settings(self, kind, settings):
        client = redis.Redis() if kind is SessionStore else redis.asyncio.Redis()
        for make in (lambda: kind(client, settings), lambda: kind.from_url(NOWHERE, settings)):
            assert refused(make) == (
                f"settings must be a StoreSettings, not a {type(settings).__name__}: write StoreSettings(namespace=…)"
            )

    def test_from_something_else_than_a_url(self, kind):
        assert refused(lambda: kind.from_url(None), InvalidSettings) == (
            "url is None: check that the variable it comes from is set"
        )
        says = refused(lambda: kind.from_url(b"redis://:s3cret@h"), InvalidSettings)
        assert "must be a str, not bytes: write redis://" in says

    def test_settings_may_be_of_a_subclass_or_missing(self, kind):
        class Mine(StoreSettings):
            pass

        assert kind.from_url(NOWHERE, Mine(namespace="x")).settings.namespace == "x"
        assert kind.from_url(NOWHERE).settings == StoreSettings()


@pytest.mark.parametrize("make", [fake_store, fake_async_store])
class TestALease:
    def test_that_is_something_else(self, make):
        store = make()
        calls = (store.renew, store.reject, store.release, lambda lease: store.save(lease, "ID"))
        for call in calls:
            for wrong in ("key", None, ("key", "token")):
                says = refused(lambda call=call, wrong=wrong: call(wrong))
                assert says == f"a lease must be a Lease, as acquire returns it, not a {type(wrong).__name__}"
            assert "another worker has the conversation" in refused(lambda call=call: call(Held("key", "h:1:a", 5)))


@BOTH
@pytest.mark.parametrize(
    ("when", "says"),
    [
        ("foo", "is not a time in milliseconds"),
        (1_732_250_000, "looks like seconds, not milliseconds"),
        (1_732_250_000_000.0, "is not a time in milliseconds"),
        (-1, "is not a time in milliseconds"),
        (True, "is not a time in milliseconds"),
    ],
)
def test_an_invalid_assumed_time(kind, tmp_path, when, says):
    path = tmp_path / "sessions.json"
    path.write_text('{"a": "ID"}')
    store = kind.from_url(NOWHERE)
    found = refused(lambda: store.import_legacy(path, assume_used_at=when), InvalidSettings)
    assert found == f'assume_used_at {says}: give "mtime", milliseconds since 1970, or None'


@pytest.mark.parametrize("lacking", ["fakeredis", "lupa"])
def test_fake_stores_without_their_extra(lacking):
    code = f"import sys; sys.modules[{lacking!r}] = None; import redis_sessions.testing"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    says = "fake stores need fakeredis[lua]: pip install 'redis-sessions[testing]'"
    assert done.stderr.splitlines()[-1] == f"redis_sessions.errors.MissingExtra: {says}"


def test_every_extra_that_is_named_exists():
    root = Path(redis_sessions.__file__).parent
    there = tomllib.loads((root.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for path in root.rglob("*.py") for name in re.findall(r"redis-sessions\[(\w+)\]", path.read_text())}
    assert (
        {"testing", "prometheus", "embedded"}
        <= named | set(re.findall(r"extra `(\w+)`", redis_sessions.__doc__))
        <= set(there)
    )
