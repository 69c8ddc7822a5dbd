"""What looking up and saving a session ID costs, next to other places to keep session IDs, by their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final, NamedTuple

from tests.benchmarks import machine, peers
from tests.benchmarks.crew import Crew
from tests.benchmarks.lab import Lab
from tests.benchmarks.pairs import Contest, Cpu
from tests.benchmarks.rows import Chart, Row, each_second

PROCESSES: Final = 4
FLAT: Final = 0.9
OURS: Final = "ours"
# Only shown: the extra cost of our lease, the limit of anything behind a socket, and what needs neither server nor disk.
LEASED, SOCKET = "ours with its lease (acquire + save)", "bare socket (the limit of any server)"
FILE, SQLITE, UNFLUSHED = "sessions.json, locked", "SQLite, WAL", "SQLite, WAL, synchronous=NORMAL"
DISKCACHE, OPENAI = "diskcache", " RedisSession (get_items + add_items)"
SHOWN: Final = (LEASED, SOCKET, UNFLUSHED, DISKCACHE)
PACKAGES: Final = {DISKCACHE: "diskcache", OPENAI: "openai-agents"}


class Place(NamedTuple):
    """Where a side keeps its sessions: a kind of `peers.KINDS`, its target, and the processor time of its server."""

    kind: str
    target: str
    server_cpu: Cpu


def bookkeeping(lab: Lab) -> Iterator[Row | Chart]:
    """Look up and save in four processes, the same for all sides; and once with our lease, which others don't have."""
    missing = {side for side, package in PACKAGES.items() if machine.installed(package) is None}
    for side in sorted(missing):
        yield Row("look up + save", "", f"{PACKAGES[side]}: not installed, pip install '.[bench]'")
    for size in lab.scale.sizes:
        places = {_named(side): (place, size) for side, place in _places(lab, size, missing).items()}
        contest = _contest(lab, f"bookkeeping, {size:,} sessions", places)
        work = f"look up + save, {size:,} sessions, {PROCESSES} processes"
        for side in places:
            if side != OURS:
                yield _row(work, contest, OURS, side, None if side.startswith(SHOWN) else "> 1", 1.0)
    grown = {f"{size:,} sessions": (_ours(lab, size), size) for size in lab.scale.sizes}
    contest = _contest(lab, "bookkeeping, by size", grown)
    smallest, *_, largest = grown
    yield _row(f"look up + save, {largest}", contest, largest, smallest, f"≥ {FLAT}", FLAT)
    rates = [(name, 1 / contest.wall_s(name), each_second(contest.wall_s(name))) for name in grown]
    yield Chart(f"Look up + save by {PROCESSES} processes, by size of the store", tuple(rates))


def _contest(lab: Lab, what: str, places: dict[str, tuple[Place, int]]) -> Contest:
    with ExitStack() as stack:
        sides = {}
        for side, (place, size) in places.items():
            crew = stack.enter_context(Crew(place.kind, place.target, size, PROCESSES))
            sides[side] = partial(crew.hammer, PROCESSES, lab.scale.hammer_s, place.server_cpu)
        return lab.contest(what, sides, lab.scale.hammer_rounds)


def _row(work: str, contest: Contest, side: str, other: str, to_reach: str | None, more_than: float) -> Row:
    """How many times as many dispatches per second a side does as the other."""
    rate = 1 / contest.ratio(side, other)
    return Row(
        work,
        each_second(contest.wall_s(side)),
        f"{other}: {each_second(contest.wall_s(other))}",
        f"{rate:.2f}" if rate < 10 else f"{rate:,.0f}",
        f"{1 / contest.cpu_ratio(side, other):.2f}",
        to_reach or "",
        rate > more_than if to_reach else None,
    )


def _named(side: str) -> str:
    package = PACKAGES.get(side)
    return side if package is None else f"{package} {machine.installed(package)}{side.removeprefix(package)}"


def _ours(lab: Lab, size: int) -> Place:
    server = lab.server(name=f"ours-{size}/")
    return Place("ours", server.url, server.cpu_s)


def _places(lab: Lab, size: int, missing: set[str]) -> dict[str, Place]:
    """Each side's place, with `size` sessions in it."""
    ours = _ours(lab, size)
    peers.fill_store(ours.target, size)
    places = {OURS: ours, LEASED: ours._replace(kind="leased"), SOCKET: ours._replace(kind="socket")}
    on_disk: dict[str, tuple[str, Callable[..., None]]] = {
        FILE: ("json-file", peers.fill_json_file),
        SQLITE: ("sqlite", peers.fill_sqlite),
        UNFLUSHED: ("sqlite-unflushed", peers.fill_sqlite),
        DISKCACHE: ("diskcache", peers.fill_diskcache),
    }
    for side, (kind, fill) in on_disk.items():
        if side not in missing:
            path = lab.directory / f"{kind}-{size}"
            fill(path, size)
            places[side] = Place(kind, str(path), lambda: 0.0)
    if OPENAI not in missing:
        server = lab.server(name=f"openai-{size}/")
        peers.fill_openai(server.url, size)
        places[OPENAI] = Place("openai", server.url, server.cpu_s)
    return places
