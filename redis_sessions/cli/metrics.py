"""`metrics`: print what Prometheus scrapes, or serve it with a page for people; or print alert rules or a dashboard."""

import re
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import NAMESPACE_VARIABLE, Options, on_a_store, value
from redis_sessions.cli.signals import until_asked_to_stop
from redis_sessions.errors import InvalidSettings
from redis_sessions.operations.text import parse_duration_ms

if TYPE_CHECKING:
    from redis_sessions.store import SessionStore

RULES: Final = "alerts.yml"
DASHBOARD: Final = "dashboard.json"
SCAN_MAX_AGE: Final = "60s"
LOOPBACK: Final = "127.0.0.1"
_ADDRESS = re.compile(r"(?:(?:([\w.-]+)|\[([\da-fA-F:.]+)\]):)?(\d{1,5})", re.ASCII)

Listen = Annotated[
    str | None,
    value(
        "--listen",
        "[HOST:]PORT",
        f"Serve them at /metrics there until stopped, such as at {LOOPBACK}:9464, and a page for people at /. Default HOST: "
        f"{LOOPBACK}; port 0 takes a free one.",
    ),
]
ScanMaxAge = Annotated[
    str | None,
    value(
        "--scan-max-age",
        "TIME",
        "With --listen: scan the keys again if the last scan is older.",
        show_default=SCAN_MAX_AGE,
    ),
]
Namespaces = Annotated[
    list[str] | None,
    value(
        "--namespace",
        "NAME",
        "First part of every key; repeat it to export several. Default: sessions.",
        envvar=NAMESPACE_VARIABLE,
    ),
]
ShowKeys = Annotated[
    bool, typer.Option("--show-keys", help="With --listen on loopback: show conversation keys on the page.")
]
ToOthers = Annotated[
    bool, typer.Option("--show-keys-to-others", help="With --listen: show them to everyone who reaches the page.")
]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Print a Grafana dashboard instead, and ask Redis nothing.")]
Rules = Annotated[bool, typer.Option("--rules", help="Print alert rules for these metrics instead, and ask Redis nothing.")]


@on_a_store
def metrics(
    at: Options,
    *,
    listen: Listen = None,
    scan_max_age: ScanMaxAge = None,
    show_keys: ShowKeys = False,
    show_keys_to_others: ToOthers = False,
    rules: Rules = False,
    dashboard: Dashboard = False,
    namespace: Namespaces = None,
) -> int:
    """Export metrics for Prometheus.

    Prints the counters and the results of a key scan; with --json a line for each sample. All workers count in one place,
    so one exporter is enough, even for several namespaces; if there are more, aggregate with max, never sum. With --listen
    it also serves a page for people, keeps running while Redis is away, and reports redis_sessions_up 0. User report of
    redis-sessions acl is enough. It needs pip install 'redis-sessions[prometheus]'.

    Examples:
      redis-sessions metrics
      redis-sessions metrics --listen 127.0.0.1:9464
      redis-sessions metrics --listen 9464 --namespace sessions.claude@host-a --namespace sessions.claude@host-b
      redis-sessions metrics --rules > /etc/prometheus/rules/redis_sessions.yml
      redis-sessions metrics --dashboard > /var/lib/grafana/dashboards/redis_sessions.json
    """
    if (listen is not None) + rules + dashboard + at.as_json > 1:
        raise InvalidSettings("--listen, --rules, --dashboard and --json exclude each other", remedy="give one of them")
    show_keys = show_keys or show_keys_to_others
    if listen is None and (show_keys or scan_max_age is not None):
        only = "--show-keys is for the page of" if show_keys else "--scan-max-age is for"
        raise InvalidSettings(f"{only} --listen", remedy="give both, or neither")
    if rules or dashboard:
        file = resources.files("redis_sessions.metrics").joinpath(RULES if rules else DASHBOARD)
        show.put(file.read_text("utf-8").rstrip("\n"))
        return exits.DONE
    if listen is None:
        return _print_once(at, namespace)
    scan_max_age_ms = parse_duration_ms(SCAN_MAX_AGE if scan_max_age is None else scan_max_age, "--scan-max-age")
    return _serve(at, namespace, _address(listen), scan_max_age_ms, show_keys=show_keys, to_others=show_keys_to_others)


@contextmanager
def _stores(at: Options, namespaces: list[str] | None) -> "Iterator[list[SessionStore]]":
    """A store for each namespace, or for the default one, over one client."""
    first, *others = dict.fromkeys(namespaces) if namespaces else [None]
    with replace(at, namespace=first).store() as store:
        yield [store, *(store.for_namespace(other) for other in others if other is not None)]


def _print_once(at: Options, namespaces: list[str] | None) -> int:
    from redis_sessions.metrics.collector import Snapshot

    with _stores(at, namespaces) as stores:
        snapshot = Snapshot(*stores)
    with suppress(BrokenPipeError):  # the exit code is that of the snapshot, even if nobody reads on
        if at.as_json:
            at_ms = round(time.time() * 1000)
            for family in snapshot.collect():
                for name, labels, value, *_ in family.samples:
                    show.put_json({"at_ms": at_ms, "name": name, "labels": labels, "value": +value})  # + makes True a 1
        else:
            show.put(snapshot.text().rstrip("\n"))
    # The stores share a server, and so most often the problem.
    for message in dict.fromkeys(map(str, snapshot.errors)):
        show.complain(message)
    return max(map(exits.code_of, snapshot.errors), default=exits.DONE)


def _serve(
    at: Options,
    namespaces: list[str] | None,
    address: tuple[str, int],
    scan_max_age_ms: int,
    *,
    show_keys: bool,
    to_others: bool,
) -> int:
    from redis_sessions.metrics import Collector
    from redis_sessions.metrics.exporter import Exporter

    with until_asked_to_stop() as signals, show.logged_warnings(show.complain), _stores(at, namespaces) as stores:
        collector = Collector(*stores, scan_max_age_ms=scan_max_age_ms)
        with (
            closing(collector),
            Exporter(*address, collector, show_keys=show_keys, to_others=to_others) as exporter,
        ):
            if not exporter.is_loopback:
                show.complain(f"anyone who reaches {exporter.place} can read these numbers: there is no password and no TLS")
            place = f"http://{exporter.place}"
            show.complain(f"a page is at {place}/, metrics are at {place}/metrics; stop with Ctrl-C or SIGTERM")
            exporter.service_actions = signals.check  # type: ignore[method-assign] # called twice a second
            exporter.serve_forever()
    return exits.DONE


def _address(text: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match[3]) > 65_535:
        # It may be a URL with a password.
        raise InvalidSettings("--listen must be an address", remedy=f"write {LOOPBACK}:9464, [::1]:9464 or 9464")
    return match[1] or match[2] or LOOPBACK, int(match[3])
