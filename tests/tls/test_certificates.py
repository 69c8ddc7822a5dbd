"""Over TLS all of it works; a certificate that is wrong in any way is refused at once, at the first try."""

from __future__ import annotations

import pytest

from redis_sessions import StoreUnavailable
from tests.acl.work import move
from tests.stores import opened
from tests.tls.ways import KINDS, door, refused


@KINDS
@pytest.mark.parametrize(("clients", "shown"), [("yes", "client"), ("optional", "client"), ("optional", ""), ("no", "")])
def test_all_operations_work(serve, certificates, loop, namespace, tmp_path, kind, clients, shown):
    port = serve(clients=clients).extra["tls-port"]
    with opened(kind, f"rediss://127.0.0.1:{port}/0{certificates.options(shown)}", loop, namespace=namespace) as store:
        store.set("a", "ID-1")
        move(store, tmp_path)


WRONG = {
    "a CA that did not sign it": ("server", "client", "stranger-ca.pem"),
    "a server's certificate that has expired": ("expired", "client", "ca.pem"),
    "a server's certificate of another host": ("elsewhere", "client", "ca.pem"),
    "no client certificate": ("server", "", "ca.pem"),
    "a client certificate that has expired": ("server", "expired-client", "ca.pem"),
    "a client certificate of a stranger's": ("server", "stranger", "ca.pem"),
    "a file that holds no certificate": ("server", "client", "client.key"),
}


@KINDS
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_certificate_is_refused_at_the_first_try(serve, certificates, loop, kind, wrong):
    name, shown, ca = WRONG[wrong]
    options = certificates.options(shown, ca)
    with (
        door(int(serve(name).extra["tls-port"]), loop) as (port, came),
        opened(kind, f"rediss://127.0.0.1:{port}/0{options}", loop) as store,
    ):
        for operation in (lambda: store.get("a"), store.increment_resume_failures, store.report):
            came.clear()
            with pytest.raises(StoreUnavailable, match="TLS failed") as caught:
                operation()
            assert "certificate" in caught.value.remedy
            assert len(came) <= 1


@KINDS
@pytest.mark.parametrize("shown", ["", "expired-client", "stranger"])
def test_a_refused_client_certificate_is_recognized_even_if_the_reason_is_lost(
    serve, certificates, loop, kind, shown, refusals
):
    """The server hangs up while the client still writes, so that its reason comes through only at times."""
    url = f"rediss://127.0.0.1:{serve().extra['tls-port']}/0{certificates.options(shown)}"
    for _ in range(5):
        refusals.clear()
        with opened(kind, url, loop) as store, refused():
            store.get("a")
        assert len(refusals) == 1
