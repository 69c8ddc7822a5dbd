"""Wrong arguments are refused before anything is sent, with a message that names the remedy."""

from __future__ import annotations

import asyncio
import inspect
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

import fakeredis
import pytest
import redis
import redis.asyncio

import redis_sessions
from redis_sessions import AsyncSessionStore, Held, InvalidSettings, SessionStore, StoreSettings
from redis_sessions.testing import fake_async_store, fake_store
from tests.over import over

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


@pytest.mark.parametrize("make", [fake_store, fake_async_store])
class TestOtherArguments:
    @over("token", [5, b"token", object(), uuid.uuid4()])
    def test_a_token_that_is_not_text(self, make, token):
        store = make()
        says = refused(lambda: store.acquire("k", token))
        assert says == f"a token must be a str, not {type(token).__name__}: pass str(token), or that of a Lease"

    @over("token", ["", "x" * 201, "two\nlines", "\ud800", "tokén"])
    def test_a_token_that_can_not_be_read_back(self, make, token):
        store = make()
        says = refused(lambda: store.acquire("k", token), InvalidSettings)
        assert says.startswith("token must have 1 to 200 printable ASCII characters: pass ")

    @over("key", [None, b"k"])
    def test_a_key_of_no_running_turn(self, make, key):
        store = make()
        assert "a conversation key must be a str" in refused(lambda: store.save_early(key, "ID"))

    @over("wrong", [5, True, "tqdm"])
    def test_what_can_not_be_told_progress(self, make, wrong, tmp_path):
        path, store = tmp_path / "sessions.json", make()
        path.write_text('{"a": "ID"}')
        calls = (
            lambda: store.report(wrong),
            lambda: store.export(tmp_path / "exported.json", wrong),
            lambda: store.doctor(progress=wrong),
            lambda: store.retime(60_000, progress=wrong),
            lambda: store.import_legacy(path, assume_used_at="mtime", progress=wrong),
        )
        for call in calls:
            assert refused(call) == f"progress must be a function that takes two numbers, not {type(wrong).__name__}"
        assert list(tmp_path.iterdir()) == [path]

    @over("wrong", [5, b"claude", object()])
    def test_an_agent_or_a_shape_that_is_none(self, make, wrong, tmp_path):
        path, store = tmp_path / "sessions.json", make()
        path.write_text('{"a": "ID"}')
        for call in (lambda: store.import_legacy(path, agent=wrong), lambda: store.doctor(wrong)):
            assert "an agent must be the name of a runtime" in refused(call)
        says = refused(lambda: store.import_legacy(path, shape=wrong), InvalidSettings)
        assert says.startswith(f"shape is a {type(wrong).__name__}: pass a redis_sessions.legacy.Shape, or the name of one")


@BOTH
@over("password", [5, b"s3cret", object()])
def test_a_password_that_is_not_text_is_not_quoted(kind, password):
    says = refused(lambda: kind.from_url("redis://h", password=password), InvalidSettings)
    assert says == f"password must be a str, not {type(password).__name__}: pass text"


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
