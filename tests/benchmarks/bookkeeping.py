"""What a dispatch costs to keep book of, beside other places to keep session IDs, as these grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Final

from tests.benchmarks import machine, peers
from tests.benchmarks.crew import Crew
from tests.benchmarks.lab import Lab
from tests.benchmarks.rows import Chart, Row, each_second

PROCESSES: Final = 4
OURS: Final = "ours"
FLAT: Final = 0.9
LEASED: Final = "ours with its lease (acquire + save)"
FILE, SQLITE, FLUSHED = "sessions.json, locked", "SQLite, WAL", "SQLite, WAL, each commit flushed"
DISKCACHE, OPENAI = "diskcache", " RedisSession, get_items + add_items"
PACKAGES: Final = {DISKCACHE: "diskcache", OPENAI: "openai-agents"}


def bookkeeping(lab: Lab) -> Iterator[Row | Chart]:
    """Look up and save by four processes, the same everywhere; and once with our lease, which others have nothing like."""
    missing = {side for side, package in PACKAGES.items() if machine.installed(package) is None}
    for side in sorted(missing):
        yield Row("look up + save", "", f"{PACKAGES[side]}: not installed, pip install '.[bench]'")
    rates: list[tuple[str, float, str]] = []
    for size in lab.scale.sizes:
        with ExitStack() as stack:
            crews = {
                _named(side): stack.enter_context(Crew(kind, target, size, PROCESSES))
                for side, (kind, target) in _places(lab, size, missing).items()
            }
            sides = {side: partial(crew.hammer, PROCESSES, lab.scale.hammer_s, _uncounted) for side, crew in crews.items()}
            contest = lab.contest(f"bookkeeping, {size:,} sessions", sides, lab.scale.hammer_rounds)
        ours_s = contest.wall_s(OURS)
        work = f"look up + save, {size:,} sessions, {PROCESSES} processes"
        rates.append((f"{size:,} sessions", 1 / ours_s, each_second(ours_s)))
        for side in sides:
            if side == LEASED:
                yield Row(work, each_second(ours_s), f"{side}: {each_second(contest.wall_s(side))}")
            elif side != OURS:
                rate = 1 / contest.ratio(OURS, side)
                yield Row(
                    work,
                    each_second(ours_s),
                    f"{side}: {each_second(contest.wall_s(side))}",
                    f"{rate:.1f}" if rate < 100 else f"{rate:,.0f}",
                    "",
                    "> 1",
                    rate > 1,
                )
    flat = rates[-1][1] / rates[0][1]
    yield Row(
        f"look up + save, {rates[-1][0]}",
        rates[-1][2],
        f"{rates[0][0]}: {rates[0][2]}",
        f"{flat:.2f}",
        "",
        f"≥ {FLAT}",
        flat >= FLAT,
    )
    yield Chart(f"Dispatches by {PROCESSES} processes, by size of the store", tuple(rates))


def _uncounted() -> float:
    """No server's processor time: most sides have none."""
    return 0.0


def _named(side: str) -> str:
    package = PACKAGES.get(side)
    return side if package is None else f"{package} {machine.installed(package)}{side.removeprefix(package)}".strip()


def _places(lab: Lab, size: int, missing: set[str]) -> dict[str, tuple[str, str]]:
    """Each side's kind and where it keeps its sessions, so many of them already."""
    ours = lab.server(name=f"ours-{size}/").url
    peers.fill_store(ours, size)
    places = {OURS: ("ours", ours), LEASED: ("leased", ours)}
    on_disk: dict[str, tuple[str, Callable[..., None]]] = {
        FILE: ("json-file", peers.fill_json_file),
        SQLITE: ("sqlite", peers.fill_sqlite),
        FLUSHED: ("sqlite-flushed", peers.fill_sqlite),
        DISKCACHE: ("diskcache", peers.fill_diskcache),
    }
    for side, (kind, fill) in on_disk.items():
        if side not in missing:
            path = lab.directory / f"{kind}-{size}"
            fill(path, size)
            places[side] = (kind, str(path))
    if OPENAI not in missing:
        theirs = lab.server(name=f"openai-{size}/").url
        peers.fill_openai(theirs, size)
        places[OPENAI] = ("openai", theirs)
    return places
