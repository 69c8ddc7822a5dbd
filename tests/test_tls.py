"""TLS: what is right works in every kind of URL; what is wrong is refused at once, and nothing in a URL turns that off."""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import socket
import subprocess
from contextlib import contextmanager

import pytest
import redis

from redis_sessions import AsyncSessionStore, InvalidSettings, SessionStore, StoreSettings, StoreUnavailable, exchange
from redis_sessions.server import FREE_PORTS, EmbeddedServer
from tests.servers import CLUSTER_SETTINGS, Cluster, find_redis_server, wait_until
from tests.stores import Blocking
from tests.test_acl import move

trustme = pytest.importorskip("trustme")
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
EXPIRED = {"not_before": LONG_AGO, "not_after": LONG_AGO + dt.timedelta(days=1)}
KINDS = pytest.mark.parametrize("kind", [SessionStore, AsyncSessionStore])


class Certificates:
    """A CA of ours and a stranger's, and what they have signed, as files by their names."""

    def __init__(self, directory):
        self.directory = directory
        ours, stranger = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(directory / "ca.pem")
        stranger.cert_pem.write_to_path(directory / "stranger-ca.pem")
        for name, ca, identity, options in (
            ("server", ours, "127.0.0.1", {}),
            ("elsewhere", ours, "redis.example.org", {}),
            ("expired", ours, "127.0.0.1", EXPIRED),
            ("client", ours, "worker", {}),
            ("expired-client", ours, "worker", EXPIRED),
            ("stranger", stranger, "worker", {}),
        ):
            issued = ca.issue_cert(identity, **options)
            issued.private_key_pem.write_to_path(directory / f"{name}.key")
            issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")

    def settings(self, name, clients):
        return {
            "tls-port": str(free_port()),
            "tls-cert-file": str(self.directory / f"{name}.pem"),
            "tls-key-file": str(self.directory / f"{name}.key"),
            "tls-ca-cert-file": str(self.directory / "ca.pem"),
            "tls-auth-clients": clients,
        }

    def options(self, client="client", ca="ca.pem"):
        """The options of a URL: which CA to trust, and which certificate to show, if any."""
        mine = f"&ssl_certfile={self.directory}/{client}.pem&ssl_keyfile={self.directory}/{client}.key" if client else ""
        return f"?ssl_ca_certs={self.directory}/{ca}{mine}"


def free_port():
    """A port for TLS; EmbeddedServer picks but the plain one."""
    while True:
        port = random.choice(FREE_PORTS)
        with socket.socket() as one, socket.socket() as bus:
            if one.connect_ex(("127.0.0.1", port)) and bus.connect_ex(("127.0.0.1", port + 10_000)):
                return port


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def binary():
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer(binary=binary) as server, redis.Redis.from_url(server.url) as client:
        if not client.config_get("tls-port"):
            pytest.skip("redis-server was built without TLS")
    return binary


@pytest.fixture(scope="module")
def serve(binary, certificates):
    """Servers by their certificate and what they ask of clients, each started once."""
    started = {}

    def serve(name="server", clients="yes"):
        if (name, clients) not in started:
            server = EmbeddedServer(binary=binary, extra=certificates.settings(name, clients))
            started[name, clients] = server
            server.start()
        return started[name, clients]

    yield serve
    for server in started.values():
        server.stop()


@contextmanager
def door(port, loop, *, shut=0):
    """A port that leads to another one, and the list of who came; the first few it lets speak, and hangs up on."""
    came = []

    async def lead(reader, writer):
        came.append(writer.get_extra_info("peername"))
        if len(came) <= shut:
            await reader.read(1)
            writer.close()
            return
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)

        async def carry(source, sink):
            try:
                while data := await source.read(65_536):
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass  # one side hung up, and so will this one
            sink.close()

        await asyncio.gather(carry(reader, inner_writer), carry(inner_reader, writer))

    listener = loop.run(start(lead))
    try:
        yield listener.sockets[0].getsockname()[1], came
    finally:
        loop.run(stop(listener))


async def start(lead):
    return await asyncio.start_server(lead, "127.0.0.1", 0)


async def stop(listener):
    listener.close()
    await listener.wait_closed()


@contextmanager
def opened(kind, url, loop, **settings):
    store = kind.from_url(url, StoreSettings(**settings))
    store = store if kind is SessionStore else Blocking(store, loop)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def refusals(monkeypatch):
    """What was raised to the wire: one for each try."""
    seen, explain = [], exchange.explain
    monkeypatch.setattr(
        exchange, "explain", lambda error, *rest, **more: (seen.append(error), explain(error, *rest, **more))[1]
    )
    return seen


def refused():
    return pytest.raises(StoreUnavailable, match=r"\(TLS failed\): check its certificate")


@KINDS
@pytest.mark.parametrize(("clients", "shown"), [("yes", "client"), ("optional", "client"), ("optional", ""), ("no", "")])
def test_all_of_it_works(serve, certificates, loop, namespace, tmp_path, kind, clients, shown):
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
def test_a_client_certificate_is_refused_at_the_first_try_however_the_words_get_lost(
    serve, certificates, loop, kind, shown, refusals
):
    """The server hangs up while the client still writes, so that its reason comes through only at times."""
    url = f"rediss://127.0.0.1:{serve().extra['tls-port']}/0{certificates.options(shown)}"
    for _ in range(5):
        refusals.clear()
        with opened(kind, url, loop) as store, refused():
            store.get("a")
        assert len(refusals) == 1


@KINDS
def test_a_connection_that_was_cut_in_the_handshake_is_made_anew(serve, certificates, loop, kind):
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
def test_the_wrong_kind_of_port_is_named_as_what_it_may_be(serve, certificates, loop, kind, scheme):
    """A port that hangs up or is silent may be a server that restarts: it is tried again, as often as any other."""
    server = serve()
    target = int(server.extra["tls-port"]) if scheme == "redis" else server.port
    options = certificates.options() if scheme == "rediss" else ""
    brief = {"socket_timeout_ms": 100, "connect_timeout_ms": 100, "deadline_ms": 1000}
    with (
        door(target, loop) as (port, came),
        opened(kind, f"{scheme}://127.0.0.1:{port}/0{options}", loop, **brief) as store,
        pytest.raises(StoreUnavailable) as caught,
    ):
        store.get("a")
    assert "rediss://" in caught.value.remedy
    assert 1 <= len(came) <= 3


@KINDS
def test_a_server_that_was_killed_is_waited_for(binary, certificates, loop, namespace, kind):
    """A connection that is cut is no refusal of a certificate, and is made anew."""
    with EmbeddedServer(binary=binary, extra=certificates.settings("server", "yes")) as server:
        url = f"rediss://127.0.0.1:{server.extra['tls-port']}/0{certificates.options()}"
        with opened(kind, url, loop, namespace=namespace) as store:
            store.set("a", "ID-1")
            server.kill()
            with pytest.raises(StoreUnavailable, match=r"\(Connection refused\)|\(it hung up\)"):
                store.get("a")
            server.start()
            assert store.get("a") is None


@KINDS
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
@pytest.mark.parametrize(
    "option",
    [
        *(
            "ssl_cert_reqs=none",
            "ssl_cert_reqs=optional",
            "ssl_cert_reqs=",
            "SSL_CERT_REQS=none",
            "ssl_check_hostname=false",
        ),
        *("ssl_check_hostname=False", "ssl=false", "ssl_ca_path=/tmp", "ssl_min_version=771", "ssl_ciphers=NULL"),
    ],
)
def test_no_url_turns_the_check_off(kind, scheme, option):
    for query in (option, f"ssl_ca_certs=/dev/null&{option}"):
        with pytest.raises(InvalidSettings, match="not allowed"):
            kind.from_url(f"{scheme}://127.0.0.1:1{'/main' if 'sentinel' in scheme else ''}?{query}")


@KINDS
@pytest.mark.parametrize("option", ["ssl_ca_certs", "ssl_certfile", "ssl_keyfile"])
@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "rediss+sentinel"])
def test_a_file_that_is_not_there_is_said_before_anything_is_sent(kind, scheme, option):
    for path in ("/nowhere/s3cret.pem", "", "/", "a%00b"):
        with pytest.raises(
            InvalidSettings, match=f"the file that {option} names in the store's URL can't be read"
        ) as caught:
            kind.from_url(f"{scheme}://127.0.0.1:1{'/main' if 'sentinel' in scheme else ''}?{option}={path}")
        assert "s3cret" not in str(caught.value)


class TLSCluster(Cluster):
    """Three primaries that speak TLS to clients and to each other, and plainly to this test."""

    def __init__(self, binary, certificates):
        super().__init__(binary)
        own = {"tls-cluster": "yes", "tls-replication": "yes"}
        for node in self.nodes:
            node.extra = CLUSTER_SETTINGS | certificates.settings("server", "yes") | own

    @property
    def startup_nodes(self):
        return [("127.0.0.1", int(node.extra["tls-port"])) for node in self.nodes]


@pytest.fixture(scope="module")
def cluster_url(binary, certificates):
    with TLSCluster(binary, certificates) as cluster:
        yield cluster.url.replace("redis+", "rediss+")


def serves_who_trusts_it(url, certificates, loop, namespace, tmp_path, kind, refusals):
    """Everything goes over TLS there, and who trusts another CA is refused at the first try."""
    with opened(kind, url + certificates.options(), loop, namespace=namespace) as store:
        store.set("a", "ID-1")
        move(store, tmp_path)
    refusals.clear()
    with opened(kind, url + certificates.options(ca="stranger-ca.pem"), loop) as store, refused():
        store.get("a")
    assert len(refusals) == 1


@KINDS
def test_a_cluster(cluster_url, certificates, loop, namespace, tmp_path, kind, refusals):
    serves_who_trusts_it(cluster_url, certificates, loop, namespace, tmp_path, kind, refusals)


@pytest.fixture(scope="module")
def sentinel_url(serve, binary, certificates, tmp_path_factory):
    """One Sentinel, speaking TLS, that watches one server."""
    primary, directory = serve(), tmp_path_factory.mktemp("sentinel")
    settings = certificates.settings("server", "yes") | {"tls-replication": "yes", "port": "0", "dir": str(directory)}
    lines = [f"{name} {value}" for name, value in settings.items()]
    lines += ["bind 127.0.0.1", f"sentinel monitor main 127.0.0.1 {primary.extra['tls-port']} 1"]
    (directory / "sentinel.conf").write_text("\n".join(lines) + "\n")
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen([binary, directory / "sentinel.conf", "--sentinel"], stdout=output, stderr=output)
    try:
        wait_until(lambda: "+monitor master main" in log.read_text(), "Sentinel watches")
        yield f"rediss+sentinel://127.0.0.1:{settings['tls-port']}/main"
    finally:
        process.kill()
        process.wait()


@KINDS
def test_behind_sentinel(sentinel_url, certificates, loop, namespace, tmp_path, kind, refusals):
    serves_who_trusts_it(sentinel_url, certificates, loop, namespace, tmp_path, kind, refusals)
