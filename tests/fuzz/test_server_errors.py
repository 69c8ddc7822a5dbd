"""Whatever a server or a proxy answers to any command leaves as an error of ours, quotes nothing, and stops no agent."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import strategies as st
from redis._parsers.base import BaseParser

from redis_sessions import (
    AsyncSessionStore,
    CorruptValue,
    InexactScan,
    Lease,
    SessionStore,
    SessionStoreError,
    StoreUnavailable,
    Turn,
)
from tests.faults.resp import Messages
from tests.fuzz.texts import amounts, fuzz
from tests.stores import opened

SECRET = "s3cret"
CODES = [*BaseParser.EXCEPTION_CLASSES, "BUSY", "MISCONF", "NOREPLICAS", "WRONGTYPE", "NOPROTO", "PROXYERR", "Err", "", "-"]
WORDS = [
    *("unknown command 'EVALSHA'", "unknown command", "wrong number of arguments for 'auth' command", "1 h:1", "1", "x y"),
    *(
        "max number of clients reached",
        "max daily request limit exceeded",
        "value is not an integer",
        "DB index is out of range",
    ),
    *(
        "Error running script (call to f_1): @user_script:1:",
        "ACL failure in script: ",
        " access the 's3cret' key",
        "\xff\r\t",
    ),
]
errors = st.builds(
    lambda code, words: " ".join([code, *words, SECRET]), st.sampled_from(CODES), st.lists(st.sampled_from(WORDS))
)


class Refusing:
    """A server that answers every command with the same error, or another reply. Use it in a `with`."""

    error = b""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        for each in self._open:
            each.close()

    def _accept(self):
        while True:
            try:
                self._open.append(client := self._listener.accept()[0])
            except OSError:
                return
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()

    def _answer(self, client):
        messages = Messages()
        try:
            while data := client.recv(65_536):
                client.sendall(self.error * len(messages.feed(data)))
        except OSError:
            return  # the client hung up


def operations_of(store, directory):
    lease = Lease("k", "host:1:x", "ID")
    (directory / "in.json").write_text('{"a": "ID-1"}')
    return [
        *(lambda: store.get("k"), lambda: store.peek("k"), lambda: store.set("k", "ID"), lambda: store.delete("k")),
        *(lambda: store.acquire("k"), lambda: store.renew(lease), lambda: store.save(lease, "ID")),
        *(lambda: store.reject(lease), lambda: store.fail(lease), lambda: store.release(lease), store.report),
        *(store.increment_resume_failures, store.resume_failures_total, store.counters, store.live_session_ids),
        *(lambda: list(store.sessions()), lambda: list(store.leases()), lambda: store.break_lease("k")),
        *(lambda: store.export(directory / "out.json"), lambda: store.import_legacy(directory / "in.json"), store.doctor),
        lambda: store.resume("k", lambda _: Turn("E"), on_outage="raise"),
    ]


def rendered(reply):
    """A reply as it is sent."""
    if isinstance(reply, list):
        return b"*%d\r\n%b" % (len(reply), b"".join(map(rendered, reply)))
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    return b"$-1\r\n" if reply is None else b":%d\r\n" % reply


def refused(operations):
    """What each operation raises: an error of ours with a remedy, without a secret or an error of redis-py's behind it."""
    raised = []
    for operation in operations:
        try:
            operation()
        except SessionStoreError as error:
            assert SECRET not in str(error)
            assert error.remedy
            assert error.__cause__ is error.__context__ is None
            raised.append(error)
    return raised


leaves = st.none() | st.sampled_from([0, 1, -1, 2**62, b"", b"0", b"ID", b"\xff", SECRET.encode()])
replies = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5), max_leaves=8)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])
@amounts(20, 2_000)
def test_any_reply_to_any_command(kind, scheme, loop, tmp_path, amount):
    """Most are of a form that the command never has."""
    end = "/main" if scheme == "redis+sentinel" else ""
    with Refusing() as server, opened(kind, f"{scheme}://127.0.0.1:{server.port}{end}", loop, deadline_ms=1) as store:
        operations = operations_of(store, tmp_path)

        def check(reply):
            server.error = rendered(reply)
            refused(operations)
            assert store.resume("k", lambda _: Turn("E", 1)).value == 1

        check([[None, None, [None, b""]]])  # slots whose node has a port that is no number
        fuzz(amount, replies, check)


@pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
@pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore], ids=["sync", "async"])
@amounts(15, 1_000)
def test_any_error_of_any_command(kind, scheme, loop, tmp_path, amount):
    end = "/main" if scheme == "redis+sentinel" else ""
    with Refusing() as server, opened(kind, f"{scheme}://127.0.0.1:{server.port}{end}", loop, deadline_ms=1) as store:
        operations = operations_of(store, tmp_path)

        def check(text):
            server.error = b"-" + text.replace("\r", "").replace("\n", "").encode("latin-1") + b"\r\n"
            for error in refused(operations):
                assert isinstance(error, StoreUnavailable | CorruptValue | InexactScan)
            if not any(words in text for words in ("WRONGTYPE", "not an integer")):
                result = store.resume("k", lambda session_id: Turn("E", session_id))
                assert (result.value, result.how, result.saved) == (None, "fresh", False)
                assert SECRET not in result.reason

        fuzz(amount, errors, check)
