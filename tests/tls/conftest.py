from __future__ import annotations

import pytest
import redis

from redis_sessions.client import execute
from redis_sessions.server import EmbeddedServer
from tests.servers import find_redis_server
from tests.tls.certificates import Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def binary():
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    with EmbeddedServer(binary=binary) as server, redis.Redis.from_url(server.url) as client:
        if not client.config_get("tls-port"):
            pytest.skip("redis-server was built without TLS")
    return binary


@pytest.fixture(scope="session")
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


@pytest.fixture
def refusals(monkeypatch):
    """What was raised to the wire: one for each try."""
    seen, translate = [], execute.translate
    monkeypatch.setattr(
        execute, "translate", lambda error, *rest, **more: (seen.append(error), translate(error, *rest, **more))[1]
    )
    return seen
