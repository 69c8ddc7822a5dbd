"""The HTTP server behind `metrics --listen`: /metrics and nothing else. Imported late, as it needs prometheus_client."""

from __future__ import annotations

import ipaddress
import socket
import sys
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler

from redis_sessions.cli import show
from redis_sessions.errors import InvalidSettings
from redis_sessions.metrics import Collector


class Exporter(ThreadingHTTPServer):
    """Serves one collector, a thread for each scrape. Raises InvalidSettings where it can't listen.

    Attributes:
        place: `host:port` as a URL has it, with the port that was taken.
        is_loopback: whether only this machine reaches it.
    """

    def __init__(self, host: str, port: int, collector: Collector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        handler = type("Handler", (_Handler,), {"registry": registry})
        try:
            [(self.address_family, *_, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            super().__init__((str(address[0]), port), handler)
        except OSError as error:
            raise InvalidSettings(
                f"can't listen on port {port} of {host} ({error.strerror})", remedy="choose another with --listen; 0 is free"
            ) from None
        bound, port = str(self.server_address[0]), self.server_address[1]
        self.place = f"[{bound}]:{port}" if self.address_family == socket.AF_INET6 else f"{bound}:{port}"
        self.is_loopback = ipaddress.ip_address(bound).is_loopback

    def server_bind(self) -> None:
        # HTTPServer's own looks the name up, which can take seconds, for nothing.
        TCPServer.server_bind(self)

    def handle_error(self, *_: Any) -> None:
        error = sys.exc_info()[1]
        # A scraper that gave up is no trouble.
        if not isinstance(error, OSError):
            show.complain(f"a scrape failed ({type(error).__name__})")


class _Handler(MetricsHandler):
    # Seconds: a client that sends nothing, or reads nothing, holds its thread no longer.
    timeout = 30

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if urlsplit(self.path).path == "/metrics":
            super().do_GET()
        else:
            self.send_error(HTTPStatus.NOT_FOUND, "metrics are at /metrics")
