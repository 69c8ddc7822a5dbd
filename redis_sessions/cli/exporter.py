"""The HTTP server behind `metrics --listen`: /metrics and nothing else. Imported late, as it needs prometheus_client."""

from __future__ import annotations

import ipaddress
import socket
import sys
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, MetricsHandler

from redis_sessions.cli import output as show
from redis_sessions.errors import InvalidSettings
from redis_sessions.metrics.collector import Collector

# At once. Each takes a thread and a file descriptor.
CONNECTIONS: Final = 64


class Exporter(ThreadingHTTPServer):
    """Serves one collector, a thread for each scrape. Raises InvalidSettings where it can't listen.

    Of more than CONNECTIONS connections the oldest is hung up, so that those who say nothing shut nobody out.

    Attributes:
        place: `host:port` as a URL has it, with the port that was taken.
        is_loopback: whether only this machine reaches it.
    """

    # Some Pythons have it on: two exporters on one port would each get some of the scrapes.
    allow_reuse_port = False
    request_queue_size = CONNECTIONS

    def __init__(self, host: str, port: int, collector: Collector) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        self._connections: dict[Any, None] = {}
        self._lock = threading.Lock()
        self._listen(host, port, type("Handler", (_Handler,), {"registry": registry}))
        bound, port = str(self.server_address[0]), self.server_address[1]
        self.place = f"[{bound}]:{port}" if self.address_family == socket.AF_INET6 else f"{bound}:{port}"
        self.is_loopback = ipaddress.ip_address(bound).is_loopback

    def _listen(self, host: str, port: int, handler: type[MetricsHandler]) -> None:
        why: str | None = "no address"
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            addresses = []
            why = error.strerror if isinstance(error, OSError) else "no name of a host"
        # A name may have an address that this machine can't use: ::1 where IPv6 is off.
        for self.address_family, *_, address in addresses:
            try:
                super().__init__((str(address[0]), port), handler)
            except OSError as error:
                why = error.strerror
            else:
                return
        raise InvalidSettings(
            f"can't listen on port {port} of {host} ({why})", remedy="choose another with --listen; 0 is free"
        )

    def server_bind(self) -> None:
        # HTTPServer's own looks the name up, which can take seconds, for nothing.
        TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            oldest = next(iter(self._connections)) if len(self._connections) > CONNECTIONS else None
            if oldest is not None:
                del self._connections[oldest]
                # Its thread wakes to the end of what it reads, and closes it.
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        error = sys.exc_info()[1]
        # A scraper that gave up is no trouble.
        if not isinstance(error, OSError):
            show.complain(f"a scrape failed ({type(error).__name__})")


class _Handler(MetricsHandler):
    # Seconds: a client that sends nothing, or reads nothing, holds its thread no longer.
    timeout = 30

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self._is_asked_for_metrics():
            super().do_GET()

    def do_HEAD(self) -> None:  # noqa: N802
        """Whether the exporter is there; Redis is not asked."""
        if self._is_asked_for_metrics():
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", CONTENT_TYPE_LATEST)
            self.end_headers()

    def _is_asked_for_metrics(self) -> bool:
        try:
            path = urlsplit(self.path).path
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        if path == "/metrics":
            return True
        self.send_error(HTTPStatus.NOT_FOUND, "metrics are at /metrics")
        return False
