"""Over TLS, a lost connection is not a refusal of a certificate: it is made again, and what can be waited for is."""

from __future__ import annotations

import pytest

from redis_sessions import StoreUnavailable
from redis_sessions.server import EmbeddedServer
from tests.servers import wait_until
from tests.stores import opened
from tests.tls.ways import KINDS, door


@KINDS
def test_a_connection_cut_in_the_handshake_is_made_again(serve, certificates, loop, kind):
    """As behind a proxy whose server restarts: it is no refusal of a certificate."""
    port = int(serve().extra["tls-port"])
    with (
        door(port, loop, shut=2) as (through, came),
        opened(kind, f"rediss://127.0.0.1:{through}/0{certificates.options()}", loop) as store,
    ):
        assert store.get("a") is None
    assert len(came) == 3


@KINDS
@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_the_wrong_kind_of_port_is_suggested_in_the_remedy(serve, certificates, loop, kind, scheme):
    """A port that hangs up or is silent may be a server that restarts: it is tried again, until the deadline."""
    server = serve()
    target = int(server.extra["tls-port"]) if scheme == "redis" else server.port
    options = certificates.options() if scheme == "rediss" else ""
    brief = {"socket_timeout_ms": 100, "connect_timeout_ms": 100, "deadline_ms": 300}
    with (
        door(target, loop) as (port, came),
        opened(kind, f"{scheme}://127.0.0.1:{port}/0{options}", loop, **brief) as store,
        pytest.raises(StoreUnavailable) as caught,
    ):
        store.get("a")
    assert "rediss://" in caught.value.remedy
    wait_until(lambda: came, "the door has noted who came")


@KINDS
def test_a_server_that_was_killed_is_waited_for(binary, certificates, loop, namespace, kind):
    """A connection that is cut is not a refusal of a certificate, and is made again."""
    with EmbeddedServer(binary=binary, extra=certificates.settings("server", "yes")) as server:
        url = f"rediss://127.0.0.1:{server.extra['tls-port']}/0{certificates.options()}"
        with opened(kind, url, loop, namespace=namespace, deadline_ms=200) as store:
            store.set("a", "ID-1")
            server.kill()
            with pytest.raises(StoreUnavailable, match=r"\(Connection refused\)|\(it hung up\)"):
                store.get("a")
            server.start()
            assert store.get("a") is None
