"""The HTTP server behind `metrics --listen`: prometheus_client's handler at /metrics, a page at /, and limits.

prometheus_client's own `start_http_server` (seen in 0.26; no upstream issue found) has no limit on connections and no
timeout for silent clients, answers every path but no HEAD, looks its host's name up in the DNS before it listens, tries
only the first address of a name, and prints a traceback when a client resets its connection.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Final
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, MetricsHandler

from redis_sessions.errors import InvalidSettings
from redis_sessions.metrics import page
from redis_sessions.metrics.collector import Collector

log = logging.getLogger("redis_sessions")

# At the same time. Each takes a thread and a file descriptor.
CONNECTIONS: Final = 64


class Exporter(ThreadingHTTPServer):
    """Serves one collector, a thread for each request. Raises InvalidSettings if it can't listen, or must not.

    The oldest of more than CONNECTIONS connections is closed, so that silent clients don't block others.

    With `show_keys` the page has conversation keys; it must listen on loopback then, unless `to_others` says that anyone
    who reaches it may read them.
    """

    # Some Pythons turn it on: two exporters on one port would each get some of the scrapes.
    allow_reuse_port = False
    request_queue_size = CONNECTIONS
    # HTTPServer's own looks the host's name up, which can take seconds and is not needed.
    server_bind = TCPServer.server_bind

    def __init__(
        self, host: str, port: int, collector: Collector, *, show_keys: bool = False, to_others: bool = False
    ) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        self.collector = collector
        self.show_keys = show_keys
        self._connections: dict[Any, None] = {}
        self._lock = threading.Lock()
        self._listen(host, port, _Handler.factory(registry))
        bound, port = str(self.server_address[0]), self.server_address[1]
        # As in a URL, with the port that is in use.
        self.place = f"[{bound}]:{port}" if self.address_family == socket.AF_INET6 else f"{bound}:{port}"
        self.is_loopback = ipaddress.ip_address(bound).is_loopback
        self.keys_are_local = show_keys and not to_others
        if self.keys_are_local and not self.is_loopback:
            self.server_close()
            raise InvalidSettings(
                f"lets everyone who reaches {self.place} read conversation keys",
                setting="show_keys",
                remedy="listen on 127.0.0.1, or pass to_others=True",
            )

    def _listen(self, host: str, port: int, handler: Any) -> None:
        why: str | None = "no address"
        try:
            # A name may have an address that this machine can't use: ::1 where IPv6 is off.
            for self.address_family, *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
                try:
                    return super().__init__((str(address[0]), port), handler)
                except OSError as error:
                    why = error.strerror
        except OSError as error:
            why = error.strerror
        except UnicodeError:
            why = "not a host name"
        raise InvalidSettings(
            f"can't listen on port {port} of {host} ({why})", remedy="choose another; port 0 takes a free one"
        )

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections[request] = None
            if len(self._connections) > CONNECTIONS:
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                # Its thread reads the end of the connection, and closes it.
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, *_: Any) -> None:
        error = sys.exc_info()[1]
        # A scraper that gave up is not a problem.
        if not isinstance(error, OSError):
            log.warning("a scrape failed (%s)", type(error).__name__)


class _Handler(MetricsHandler):
    # Seconds until a client that sends nothing, or reads nothing, is disconnected.
    timeout = 30
    server: Exporter

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        try:
            self._asked = urlsplit(self.path).path
        except ValueError:
            self.send_error(HTTPStatus.BAD_REQUEST)
            return False
        if self._asked not in ("/", "/metrics"):
            self.send_error(HTTPStatus.NOT_FOUND, "metrics are at /metrics, a page for people is at /")
            return False
        # A site elsewhere, whose name in the DNS was changed to lead here, must not read what only this machine may.
        if self.server.keys_are_local and not _is_local(self.headers.get("Host", "localhost")):
            self.send_error(HTTPStatus.FORBIDDEN, "the page has conversation keys: ask for localhost or an IP address")
            return False
        return True

    def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
        if self._asked == "/":
            shown = page.render(self.server.collector.read(), show_keys=self.server.show_keys).encode()
            self._begin(page.HEADERS)
            self.wfile.write(shown)
        else:
            super().do_GET()

    def do_HEAD(self) -> None:  # noqa: N802
        """Show that the exporter is there, without asking Redis."""
        self._begin(page.HEADERS if self._asked == "/" else {"Content-Type": CONTENT_TYPE_LATEST})

    def _begin(self, headers: Mapping[str, str]) -> None:
        self.send_response(HTTPStatus.OK)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _is_local(host: str) -> bool:
    """Whether the Host header of a request names this machine by an address, or as localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or bool(ipaddress.ip_address(name))
    except ValueError:
        return False
