"""Scans of all sessions: `report`, `sessions()`, `list --json`, next to the shortest script that scans."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median
from typing import Final

from tests.benchmarks.lab import Lab, Server, run_job
from tests.benchmarks.pairs import extrapolated
from tests.benchmarks.rows import MIB, Row, limited, mebibytes, timed

ONE_SERVER: Final = "the same on one server"
FLOOR: Final = "script of SCAN + PTTL"
LONGEST_MS: Final = 15
# A cluster has single commands for each key, since no script may touch keys that it didn't declare.
OF_A_CLUSTER: Final = 3.0
PEAK_BYTES: Final = 100 * MIB
ONE_BY_ONE: Final = 5_000


def report(lab: Lab) -> Iterator[Row]:
    """Count all sessions and how idle they are."""
    yield from _report(lab, lab.server(sessions=lab.scale.sessions))
    if lab.has_redis:
        yield from _report(lab, lab.server(redis_kind=True, sessions=lab.scale.sessions))
    else:
        yield Row("report, Redis", "", "no redis-server on the PATH")
    count = lab.scale.sessions // 10
    cluster, server = lab.cluster(count), lab.server(sessions=count)
    work = f"report, {count:,} sessions, cluster of 3"
    sides = {
        "ours": lab.job(cluster, "report", cluster.url),
        "the same on one server": lab.job(server, "report", server.url),
    }
    yield timed(work, lab.contest(work, sides, lab.scale.long_rounds), "ours", ONE_SERVER, OF_A_CLUSTER)


def _report(lab: Lab, server: Server) -> Iterator[Row]:
    count = lab.scale.sessions
    work = f"report, {count:,} sessions, {server.name}"
    pipelined = extrapolated(lab.job(server, "pipelined", server.url, max(1, count // 10_000)), count)
    one_by_one = extrapolated(lab.job(server, "one-by-one", server.url, ONE_BY_ONE), count)
    sides = {
        "ours": lab.job(server, "report", server.url),
        FLOOR: lab.job(server, "floor", server.url),
        "SCAN alone": lab.job(server, "scan", server.url),
        "SCAN, PTTL pipelined (from a tenth)": pipelined,
        f"SCAN, PTTL one by one (from {ONE_BY_ONE:,})": one_by_one,
    }
    contest = lab.contest(work, sides, lab.scale.long_rounds)
    for other in list(sides)[1:]:
        yield timed(work, contest, "ours", other, 2.0 if other == FLOOR else None)
    peak_bytes = contest.peak_bytes("ours")
    yield limited(f"{work}: peak memory", peak_bytes, mebibytes(peak_bytes), PEAK_BYTES, mebibytes(PEAK_BYTES))
    pages: dict[str, list[list[float]]] = {"report": [], "floor": []}
    for _ in range(lab.scale.long_rounds):
        for name, runs in pages.items():
            runs.append(_calls_ms(server, name))
    ours, floor = (_longest(runs) for runs in pages.values())
    yield limited(
        f"{work}: longest call at the server",
        ours[0],
        _words(ours),
        LONGEST_MS,
        f"{LONGEST_MS} ms",
        compared=f"{FLOOR}: {_words(floor)}; SLOWLOG, medians of {lab.scale.long_rounds} runs",
    )


def _calls_ms(server: Server, job: str) -> list[float]:
    """How long the server worked on each page of a job, in ascending order, in milliseconds."""
    server.raw.config_set("slowlog-max-len", 100_000)
    server.raw.config_set("slowlog-log-slower-than", 0)
    server.raw.slowlog_reset()
    run_job(job, server.url)
    server.raw.config_set("slowlog-log-slower-than", -1)
    calls = server.raw.slowlog_get(100_000)
    return sorted(call["duration"] / 1_000 for call in calls if call["command"].startswith(b"EVALSHA"))


def _longest(runs: list[list[float]]) -> tuple[float, float]:
    """The longest call, and the longest of the fastest 99 %: medians of the runs."""
    return median(run[-1] for run in runs), median(run[(len(run) - 1) * 99 // 100] for run in runs)


def _words(longest_ms: tuple[float, float]) -> str:
    return f"{longest_ms[0]:.1f} ms, 99 % within {longest_ms[1]:.1f} ms"


def list_(lab: Lab) -> Iterator[Row]:
    """List all sessions, with idle time and expiry."""
    server = lab.server(sessions=lab.scale.sessions)
    sides = {
        "sessions()": lab.job(server, "sessions", server.url),
        "list --json": lab.job(server, "command-line", "list", "--json", "--url", server.url),
        FLOOR: lab.job(server, "floor", server.url),
    }
    contest = lab.contest("list", sides, lab.scale.long_rounds)
    for ours in ("sessions()", "list --json"):
        yield timed(f"{ours}, {lab.scale.sessions:,} sessions", contest, ours, FLOOR, 5.0)
