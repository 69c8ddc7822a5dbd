"""What the demo's workers run and when: a plan drawn from a seed, so that both of its runs are the same.

Some conversations are busy: their next turn comes well within the store's max age. Some are quiet: theirs comes well after
the agent has forgotten the session. A machine that is late by less than these distances changes no figure. Now and then a
busy conversation gets two turns at the same moment, on two workers.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

from redis_sessions.settings import DAY_MS

SEED: Final = 20_261_122
AGENT_KEEPS_MS: Final = 1_700
AGENT_WORKS_MS: Final = 60
# Shorter than what the agent keeps: an ID must be gone from Redis before its session is gone from the agent.
MAX_AGE_MS: Final = AGENT_KEEPS_MS // 2
# As good as never, and still a TTL: a store can't write IDs without one.
NEVER_MS: Final = 365 * DAY_MS
BUSY_GAP_MS: Final = MAX_AGE_MS * 4 // 10
QUIET_GAP_MS: Final = AGENT_KEEPS_MS * 3 // 2
QUIET_SPREAD: Final = 1.2
QUIET_SHARE: Final = 3
TWIN_EVERY: Final = 6
# A turn takes about 100 ms; the floor is how often two cores can start one.
WORKER_TURN_MS: Final = 208
TURN_FLOOR_MS: Final = 52

_REPOSITORIES: Final = ("acme/shop", "acme/api", "acme/docs", "acme/infra")
_ROLES: Final = ("reviewer", "author", "triage")


class PlannedTurn(NamedTuple):
    """A turn of conversation `key` to run at `at_ms` milliseconds after the start of the run."""

    at_ms: int
    key: str


def plan(turns: int, workers: int, seed: int = SEED) -> list[list[PlannedTurn]]:
    """Each worker's share of `turns` turns, in order of time; at least one turn and one worker."""
    dice = random.Random(seed)
    longest_gap_ms = round(QUIET_GAP_MS * QUIET_SPREAD)
    length_ms = max(turns * max(TURN_FLOOR_MS, WORKER_TURN_MS // workers), longest_gap_ms + AGENT_WORKS_MS)
    names = iter(conversations(turns + 1))
    planned: list[PlannedTurn] = []
    while len(planned) < turns // QUIET_SHARE:
        key = next(names)
        gap_ms = round(QUIET_GAP_MS * dice.uniform(1, QUIET_SPREAD))
        at_ms = dice.randrange(length_ms - gap_ms)
        planned += [PlannedTurn(time_ms, key) for time_ms in range(at_ms, length_ms, gap_ms)]
    del planned[turns:]
    busy = turns - len(planned)
    lanes = max(1, busy * BUSY_GAP_MS // length_ms)
    keys = [next(names) for _ in range(lanes)]
    slots = [number for number in range(busy) for _ in range(2 if number % TWIN_EVERY == TWIN_EVERY - 1 else 1)][:busy]
    # A few turns would be too far apart if they were spread over the whole run.
    span_ms = min(length_ms, (slots[-1] + 1) * BUSY_GAP_MS)
    planned += [PlannedTurn(span_ms * slot // (slots[-1] + 1), keys[slot % lanes]) for slot in slots]
    planned.sort()
    # Twins are neighbors, so dealing them out in turn gives them to two workers.
    return [planned[number::workers] for number in range(workers)]


def conversations(count: int) -> list[str]:
    """Names of `count` conversations, all different, the same ones every time."""
    return [f"{_REPOSITORIES[number % 4]}#{40 + number}:{_ROLES[number % 3]}" for number in range(count)]
