"""Redis refuses this user: no agent is stopped for that, but result and log say why."""

from __future__ import annotations

import logging

import pytest

from redis_sessions import AccessDenied, AsyncSessionStore, SessionStore, StoreSettings, Turn
from redis_sessions.server import EmbeddedServer
from tests.stores import Blocking

KEY = "acme/shop#42"


@pytest.fixture(scope="module")
def server():
    with EmbeddedServer(extra={"requirepass": "right-s3cret"}) as server:
        with SessionStore.from_url(server.url.replace("redis://", "redis://:right-s3cret@")) as store:
            store.client.acl_setuser("narrow", enabled=True, passwords=["+p"], keys=["*"], commands=["+get", "+hello"])
        yield server


@pytest.fixture(params=["sync", "async"])
def make(request, server, loop):
    opened = []

    def make(login):
        url, settings = server.url.replace("redis://", f"redis://{login}@"), StoreSettings()
        if request.param == "sync":
            opened.append(SessionStore.from_url(url, settings))
        else:
            opened.append(Blocking(AsyncSessionStore.from_url(url, settings), loop))
        return opened[-1]

    yield make
    for store in opened:
        store.close()


LOGINS = pytest.mark.parametrize(
    ("login", "words"),
    [
        (":wrong-s3cret", "refuses this user's password (WRONGPASS)"),
        (
            "narrow:p",
            "does not grant this user the command evalsha (NOPERM)",
        ),
    ],
)


@LOGINS
def test_the_turn_runs_fresh_and_reason_and_log_say_why(make, login, words, caplog):
    result = make(login).resume(KEY, lambda session_id: Turn("E", session_id))
    assert (result.value, result.how, result.session_id, result.saved) == (None, "fresh", "E", False)
    assert result.reason.startswith("the store refuses access: ")
    assert words in result.reason
    assert "fresh, without a lease" in result.reason
    assert "not saved" in result.reason
    assert "unavailable" not in result.reason
    assert "s3cret" not in result.reason
    # One warning: it is not repeated at the end of the turn.
    [warning] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert words in warning


@LOGINS
def test_on_outage_raise_raises_before_anything_runs(make, login, words):
    with pytest.raises(AccessDenied) as caught:
        make(login).resume(KEY, lambda _: pytest.fail("must not run"), on_outage="raise")
    assert words in str(caught.value)
