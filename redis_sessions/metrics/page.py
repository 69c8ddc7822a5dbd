"""The page of `metrics --listen`: the state of each store for people, as one HTML document without a request elsewhere.

`page.html` beside this file is its frame, with style and script; here is what changes. Without JavaScript the browser loads
the page again, with it only what changes is replaced. The policy allows this style and this script by their hashes and
nothing else, so that even text that slipped through the escaping could not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
import time
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise
from string import Template
from typing import Any, Final

from redis_sessions.keys import FRESH_STARTS, GAVE_UP, RESUME_FAILURES, RESUMES, ROTATIONS
from redis_sessions.metrics.collector import LastScan, Reading
from redis_sessions.operations.records import Bucket
from redis_sessions.operations.scan import LeaseRow
from redis_sessions.operations.text import count, duration, safe

REFRESH_S: Final = 5
# How many running conversations are listed.
MAX_ROWS: Final = 100
# As in the alert rules.
HIGH_RATIO: Final = 0.2
MIN_ATTEMPTS: Final = 10

_FRAME: Final = resources.files("redis_sessions.metrics").joinpath("page.html").read_text("utf-8")


def _allowed(element: str) -> str:
    """The text of the frame's only such element, as a policy names it."""
    [text] = re.findall(rf"<{element}>(.*?)</{element}>", _FRAME, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


HEADERS: Final = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "; ".join(
        (
            *(
                "default-src 'none'",
                f"style-src {_allowed('style')}",
                f"script-src {_allowed('script')}",
                "connect-src 'self'",
            ),
            *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'"),
        )
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def render(readings: Sequence[Reading], *, show_keys: bool) -> str:
    """The page. Without `show_keys` it has no conversation key."""
    away = any(reading.counters is None for reading in readings)
    live = sum(reading.report.found.live for reading in readings if reading.report)
    return Template(_FRAME).substitute(
        title="Redis is away: redis_sessions" if away else f"{live:,} live: redis_sessions",
        refresh_s=REFRESH_S,
        sections="".join(_section(reading, show_keys=show_keys) for reading in readings),
        read_at=time.strftime("%H:%M:%S", time.gmtime()),
    )


def _text(text: str) -> str:
    """Text from anywhere, as it may stand in a document or an attribute."""
    return html.escape(safe(text))


def _section(reading: Reading, *, show_keys: bool) -> str:
    parts = [f"<section><h2>{_text(reading.namespace)} <small>namespace</small></h2>"]
    if reading.error is not None:
        state = "Redis is away" if reading.counters is None else "Not everything can be read"
        kept = "; below is what the last scans found" if reading.report else ""
        parts.append(f'<p class="banner" role="alert"><strong>{state}:</strong> {_text(reading.error.message)}{kept}.</p>')
    parts += ["<dl>", *_tiles(reading), '</dl><div class="panels">', *_panels(reading), "</div>"]
    if reading.leases:
        parts.append(_running(reading.leases.found, show_keys=show_keys))
    parts.append("</section>")
    return "".join(parts)


def _tiles(reading: Reading) -> Iterator[str]:
    counters, report = reading.counters or {}, reading.report
    if report is None:
        yield _tile("Live sessions", None, "no key scan has succeeded yet")
    else:
        soonest_ms = report.found.soonest_expiry_ms
        note = "" if soonest_ms is None else f"the next expires in {duration(max(0, soonest_ms - _age_ms(report)))}"
        yield _tile("Live sessions", report.found.live, note)
    leases = reading.leases
    yield _tile("Running now", leases and len(leases.found), f"read {duration(_age_ms(leases))} ago" if leases else "")
    refused, resumed = counters.get(RESUME_FAILURES), counters.get(RESUMES)
    if refused is None or resumed is None:
        yield _tile("Resume failures", None)
    elif attempts := refused + resumed:
        ratio = refused / attempts
        note = f"{refused:,} of {count(attempts, 'attempt')} to resume"
        yield _tile("Resume failures", f"{ratio:.1%}", note, bad=ratio > HIGH_RATIO and attempts >= MIN_ATTEMPTS)
    else:
        yield _tile("Resume failures", 0, "no attempt to resume yet")
    yield _tile("Fresh starts", counters.get(FRESH_STARTS), "turns that began a session")
    yield _tile("Restarts", refused, "after a refusal")
    yield _tile("Rotations", counters.get(ROTATIONS), "after a limit was reached")
    yield _tile("Given up", counters.get(GAVE_UP), "after failures in a row")
    if report is not None:
        took = f"took {duration(report.found.scan_ms)}" + (", may have missed keys" if report.found.approximate else "")
        yield _tile("Last key scan", f"{duration(_age_ms(report))} ago", took)
        for name, number, note in (
            ("Without TTL", report.found.no_ttl, "keys that never expire"),
            ("Over max age", report.found.over_max_age, "keys with more TTL than the max age"),
            ("Invalid", report.found.invalid, "keys that hold no session ID"),
        ):
            if number:
                yield _tile(name, number, note, bad=True)


def _age_ms(scanned: LastScan[Any]) -> int:
    return round(scanned.age_s * 1000)


def _tile(name: str, value: int | str | None, note: str = "", *, bad: bool = False) -> str:
    shown = "unknown" if value is None else f"{value:,}" if isinstance(value, int) else value
    mark = ' class="bad"' if bad else ""
    return f"<div{mark}><dt>{name}</dt><dd>{shown}</dd><dd>{note}</dd></div>"


def _panels(reading: Reading) -> Iterator[str]:
    if reading.report:
        found = reading.report.found
        if found.records:
            yield _bars("Live sessions by agent", [(_text(name), number) for name, number in found.records.agents.items()])
        limits = [0, *(each.up_to_ms for each in found.idle_histogram)]
        idle = [
            f"{duration(above)} to {duration(up_to)}" if above else f"up to {duration(up_to)}"
            for above, up_to in pairwise(limits)
        ]
        yield _bars("Idle for", list(zip(idle, (each.count for each in found.idle_histogram), strict=True)))
        if found.records:
            yield _bars("Turns per session", _sizes(found.records.turns))
            yield _bars("Context in tokens", _sizes(found.records.context_tokens, 1000, " k"))


def _sizes(buckets: Sequence[Bucket], unit: int = 1, suffix: str = "") -> list[tuple[str, int]]:
    """Counts by the words for their range, in whole units, up to the last that is not 0."""
    rows, above = [], 0
    for each in buckets:
        up_to = (each.up_to or 0) // unit
        words = f"{above + 1:,} to {up_to:,}" if up_to > above + 1 else f"{up_to:,}" if up_to else f"over {above:,}"
        rows.append((words + suffix, each.count))
        above = up_to
    while rows and not rows[-1][1]:
        rows.pop()
    return rows


def _bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """A bar for each row, with its number in text: nothing is told by a picture alone."""
    if not any(number for _, number in rows):
        return f'<div class="panel"><h3>{title}</h3><p class="dim">None.</p></div>'
    most = max(number for _, number in rows)
    drawn = (
        f'<tr><th scope="row">{name}</th><td><svg viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * number / most:.4g}" height="1"/></svg></td><td>{number:,}</td></tr>'
        for name, number in rows
    )
    return f'<div class="panel"><h3>{title}</h3><table class="bars"><tbody>{"".join(drawn)}</tbody></table></div>'


def _running(rows: Sequence[LeaseRow], *, show_keys: bool) -> str:
    """Who runs what."""
    if not rows:
        return '<div class="panel"><h3>Running now</h3><p class="dim">Nothing.</p></div>'
    what = '<th scope="col">Conversation</th>' if show_keys else ""
    lines = []
    for row in sorted(rows, key=lambda row: row.key)[:MAX_ROWS]:
        host, pid = row.worker
        who = "unknown" if host is None else f"{_text(host)}, process {pid}"
        key = f'<td class="key">{_text(row.key)}</td>' if show_keys else ""
        lines.append(f"<tr>{key}<td>{who}</td><td>{duration(row.remaining_ms)}</td></tr>")
    more = f'<p class="dim">And {len(rows) - MAX_ROWS:,} more.</p>' if len(rows) > MAX_ROWS else ""
    hidden = "" if show_keys else '<p class="dim">Conversations are shown with <code>--show-keys</code>.</p>'
    head = f'<thead><tr>{what}<th scope="col">Worker</th><th scope="col">Lease left</th></tr></thead>'
    table = f"<table>{head}<tbody>{''.join(lines)}</tbody></table>"
    return f'<div class="panel"><h3>Running now</h3>{table}{more}{hidden}</div>'
