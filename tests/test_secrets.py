"""No password in any message, log, repr or traceback of ours, in no spelling; and a wrong one is tried once."""

from __future__ import annotations

import io
import logging
import socket
import traceback
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import redis

from redis_sessions import AsyncSessionStore, InvalidSettings, SessionStore, SessionStoreError, StoreSettings
from redis_sessions.client import url as urls
from redis_sessions.errors import AccessDenied
from redis_sessions.server import EmbeddedServer
from tests.servers import Cluster
from tests.stores import Blocking

PASSWORDS = ["s3cret", "s3/c@r:e#t%", "s3'c\"ret\\n", "s3%2Fcret", "s3 c?r&e=t;", "s3çrét\N{SNOWMAN}"]
SETTINGS = StoreSettings(deadline_ms=50, socket_timeout_ms=200, connect_timeout_ms=200)
PATIENT = StoreSettings(deadline_ms=60_000, socket_timeout_ms=20_000, connect_timeout_ms=20_000)


def spellings(password: str) -> set[str]:
    """How it could be shown: as it is, quoted for a URL, escaped by repr, or a part of it."""
    quoted = quote(password, safe="")
    parts = {part for part in password.replace("/", " ").replace("@", " ").split() if len(part) > 3}
    return {password, quoted, quoted.lower(), quote(password), repr(password)[1:-1], ascii(password)[1:-1], *parts}


def shown(error: BaseException) -> str:
    """All that a log or an error tracker may take from an exception, what hangs on it unseen included."""
    seen: list[BaseException] = []
    rest = [error]
    while rest:
        one = rest.pop()
        if one not in seen:
            seen.append(one)
            rest += [other for other in (one.__cause__, one.__context__) if other is not None]
    return "\n".join(
        f"{one!s} {one!r} {one.args!r} {vars(one)!r} {''.join(traceback.format_exception(one))}" for one in seen
    )


@pytest.fixture
def logged():
    """Everything that any logger says, debug messages included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream.getvalue
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="module")
def guarded():
    """A server with a password that nobody has."""
    with EmbeddedServer(extra={"requirepass": "the right one"}) as server:
        yield server


@pytest.fixture(scope="module")
def dead():
    """A port that refuses connections, and that nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield SimpleNamespace(port=bound.getsockname()[1])


def open_store(flavour, url, loop, settings=SETTINGS):
    if flavour == "sync":
        return SessionStore.from_url(url, settings)
    return Blocking(AsyncSessionStore.from_url(url, settings), loop)


def url_of(kind: str, server: EmbeddedServer, password: str) -> str:
    login = f"user:{quote(password, safe='')}@" if kind != "nobody" else f":{quote(password, safe='')}@"
    scheme = {"cluster": "redis+cluster", "sentinel": "redis+sentinel"}.get(kind, "redis")
    return f"{scheme}://{login}127.0.0.1:{server.port}" + ("/main" if kind == "sentinel" else "")


@pytest.mark.parametrize("flavour", ["sync", "async"])
@pytest.mark.parametrize("kind", ["nobody", "standalone", "cluster", "sentinel"])
@pytest.mark.parametrize("trouble", ["wrong", "unreachable"])
def test_no_error_shows_the_password(flavour, kind, trouble, guarded, dead, loop, logged):
    passwords = PASSWORDS if kind in ("nobody", "standalone") else PASSWORDS[1:2]
    for password in passwords:
        store = open_store(flavour, url_of(kind, guarded if trouble == "wrong" else dead, password), loop)
        try:
            for name, *arguments in (
                ["get", "a"],
                ["peek", "a"],
                ["set", "a", "ID"],
                ["increment_resume_failures"],
                ["report"],
            ):
                with pytest.raises(SessionStoreError) as caught:
                    getattr(store, name)(*arguments)
                said = shown(caught.value) + logged()
                assert not [spelling for spelling in spellings(password) if spelling in said]
                assert caught.value.__cause__ is None
                assert caught.value.__context__ is None
        finally:
            store.close()


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("kind", ["standalone", "cluster", "sentinel", "unix"])
def test_no_repr_shows_the_password(password, kind):
    quoted = quote(password, safe="")
    url = {
        "standalone": f"redis://user:{quoted}@h:1/2",
        "cluster": f"redis+cluster://user:{quoted}@h:1,g:2",
        "sentinel": f"redis+sentinel://user:{quoted}@h:1/main?sentinel_username=user&sentinel_password={quoted}",
        "unix": f"unix://user:{quoted}@/s?db=1",
    }[kind]
    target = urls.parse(url)
    assert target.password == password
    for store in (SessionStore.from_url(url), AsyncSessionStore.from_url(url)):
        said = [store, store.settings, target, target.address, store._link]
        if kind != "cluster" or isinstance(store, AsyncSessionStore):
            said.append(store.client)
        if kind != "cluster":
            pool = store.client.connection_pool
            said += [pool, *(pool.sentinel_manager.sentinels if kind == "sentinel" else [pool.make_connection()])]
        said = "".join(f"{one!r} {one!s}" for one in said)
        assert not [spelling for spelling in spellings(password) if spelling in said]


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_refused_url_does_not_show_the_password(password):
    for url in (f"redis://user:{password}@h:port/x", f"redys://:{password}@h", f"redis://:{password}@h/0?x={password}"):
        try:
            urls.parse(url)
        except InvalidSettings as error:
            said = shown(error)
            assert not [spelling for spelling in spellings(password) if len(spelling) > 5 and spelling in said]
            assert error.__cause__ is None


class TestAWrongPasswordIsTriedOnce:
    """Counted at the server: many servers shut out who tries too often."""

    @pytest.mark.parametrize("flavour", ["sync", "async"])
    def test_at_one_server(self, flavour, loop):
        with EmbeddedServer(extra={"requirepass": "right"}) as server:
            store = open_store(flavour, f"redis://:wrong@127.0.0.1:{server.port}", loop, PATIENT)
            with redis.Redis(port=server.port, password="right") as raw:
                for operation in (
                    lambda: store.get("a"),
                    lambda: store.peek("a"),
                    store.counters,
                    store.increment_resume_failures,
                ):
                    raw.acl_log_reset()
                    with pytest.raises(AccessDenied, match="WRONGPASS"):
                        operation()
                    assert sum(entry["count"] for entry in raw.acl_log()) == 1
            store.close()

    def test_at_the_nodes_of_a_cluster(self, loop):
        with Cluster() as cluster:
            raws = [redis.Redis(port=node.port) for node in cluster.nodes]
            for raw in raws:
                raw.config_set("requirepass", "right")
            for flavour in ("sync", "async"):
                for raw in raws:
                    raw.acl_log_reset()
                store = open_store(flavour, cluster.url.replace("://", "://:wrong@"), loop, PATIENT)
                with pytest.raises(AccessDenied, match="WRONGPASS"):
                    store.get("a")
                store.close()
                assert max(sum(entry["count"] for entry in raw.acl_log()) for raw in raws) == 1
            for raw in raws:
                raw.close()

    @pytest.mark.parametrize("flavour", ["sync", "async"])
    def test_a_wrong_password_is_not_retried_as_an_outage(self, flavour, loop):
        """The right one, set later, is taken at the next call."""
        with EmbeddedServer(extra={"requirepass": "right"}) as server:
            store = open_store(flavour, f"redis://:late@127.0.0.1:{server.port}", loop, PATIENT)
            with pytest.raises(AccessDenied):
                store.get("a")
            with redis.Redis(port=server.port, password="right") as raw:
                raw.config_set("requirepass", "late")
            assert store.get("a") is None
            store.close()


@pytest.mark.parametrize("flavour", ["sync", "async"])
def test_a_refused_command_is_not_quoted(flavour, guarded, loop):
    """redis-py's pipelines and the server itself quote arguments."""
    with redis.Redis(port=guarded.port, password="the right one") as raw:
        raw.acl_setuser("narrow", enabled=True, passwords=["+p"], keys=["*"], commands=["+hello", "+auth"])
    store = open_store(flavour, f"redis://narrow:p@127.0.0.1:{guarded.port}", loop, PATIENT)
    secret = "ID-" + "s3cret"
    for name in ("set", "delete"):
        with pytest.raises(AccessDenied) as caught:
            getattr(store, name)("key", secret)
        assert secret not in shown(caught.value)
    with pytest.raises(AccessDenied) as caught:
        store.peek("a-secret-key")
    assert "sessions:id" not in shown(caught.value)
    store.close()
