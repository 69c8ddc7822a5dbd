"""What the demo dispatches, and when: a plan drawn from a seed, so that both of its runs do the very same.

Some conversations are busy: their next turn comes well within the time the agent keeps a session. Some are quiet: theirs
comes well after it. Both gaps stay more than half that time away from it, so a machine that is late by less changes no
figure. Now and then a busy conversation is dispatched twice at the same moment, to two workers.
"""

from __future__ import annotations

import random
from typing import Final, NamedTuple

SEED: Final = 20_261_122
AGENT_KEEPS_MS: Final = 1_200
AGENT_WORKS_MS: Final = 60
BUSY_GAP_MS: Final = AGENT_KEEPS_MS * 4 // 10
QUIET_GAP_MS: Final = AGENT_KEEPS_MS * 16 // 10
QUIET_SPREAD: Final = 1.2
QUIET_SHARE: Final = 3
TWIN_EVERY: Final = 6
# A turn takes about 100 ms; the floor is what two cores start side by side.
WORKER_TURN_MS: Final = 240
TURN_FLOOR_MS: Final = 70

_REPOSITORIES: Final = ("acme/shop", "acme/api", "acme/docs", "acme/infra")
_ROLES: Final = ("reviewer", "author", "triage")


class Dispatch(NamedTuple):
    """One turn to run.

    Attributes:
        at_ms: when, in milliseconds after the start of the run.
        key: the conversation.
    """

    at_ms: int
    key: str


def plan(turns: int, workers: int, seed: int = SEED) -> list[list[Dispatch]]:
    """Each worker's share of `turns` dispatches, in their order in time; at least one turn and one worker."""
    dice = random.Random(seed)
    longest_gap_ms = round(QUIET_GAP_MS * QUIET_SPREAD)
    length_ms = max(turns * max(TURN_FLOOR_MS, WORKER_TURN_MS // workers), longest_gap_ms + AGENT_WORKS_MS)
    names = iter(conversations(turns + 1))
    dispatches: list[Dispatch] = []
    while len(dispatches) < turns // QUIET_SHARE:
        key = next(names)
        gap_ms = round(QUIET_GAP_MS * dice.uniform(1, QUIET_SPREAD))
        at_ms = dice.randrange(length_ms - gap_ms)
        dispatches += [Dispatch(time_ms, key) for time_ms in range(at_ms, length_ms, gap_ms)]
    del dispatches[turns:]
    busy = turns - len(dispatches)
    lanes = max(1, busy * BUSY_GAP_MS // length_ms)
    keys = [next(names) for _ in range(lanes)]
    slots = [number for number in range(busy) for _ in range(2 if number % TWIN_EVERY == TWIN_EVERY - 1 else 1)][:busy]
    # A few turns alone would stand too far apart if they had to fill the whole time.
    span_ms = min(length_ms, (slots[-1] + 1) * BUSY_GAP_MS)
    dispatches += [Dispatch(span_ms * slot // (slots[-1] + 1), keys[slot % lanes]) for slot in slots]
    dispatches.sort()
    # Twins stand side by side, so that dealing in turn gives them to two workers.
    return [dispatches[number::workers] for number in range(workers)]


def conversations(count: int) -> list[str]:
    """Names of `count` conversations, all different, the same ones every time."""
    return [f"{_REPOSITORIES[number % 4]}#{40 + number}:{_ROLES[number % 3]}" for number in range(count)]
