"""Certificates that are right, and others that are wrong in one way each. No tests."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import socket

import pytest

from tests import TLS_PORTS

_ports = itertools.cycle(random.sample(TLS_PORTS, len(TLS_PORTS)))  # each once, before any is used again
LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
EXPIRED = {"not_before": LONG_AGO, "not_after": LONG_AGO + dt.timedelta(days=1)}


class Certificates:
    """A CA of ours and a stranger's, and what they have signed, as files by their names."""

    def __init__(self, directory):
        trustme = pytest.importorskip("trustme")
        self.directory = directory
        ours, stranger = trustme.CA(), trustme.CA()
        ours.cert_pem.write_to_path(directory / "ca.pem")
        stranger.cert_pem.write_to_path(directory / "stranger-ca.pem")
        for name, ca, identity, options in (
            ("server", ours, "127.0.0.1", {}),
            ("localhost", ours, "localhost", {}),
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
    for port in _ports:
        with socket.socket() as one, socket.socket() as bus:
            if one.connect_ex(("127.0.0.1", port)) and bus.connect_ex(("127.0.0.1", port + 10_000)):
                return port
    raise AssertionError("a cycle has no end")
