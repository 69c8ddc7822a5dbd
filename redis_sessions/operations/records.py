"""What the records of all sessions say together: how many sessions each agent has, and how long they have grown."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from pydantic import BaseModel

from redis_sessions.operations.conversation import Record

# Any program can write a record, so what is shown of it is bounded: each of these is a label of a metric.
MAX_AGENTS: Final = 20
_MAX_COUNTED: Final = 1000
OTHER_AGENTS: Final = "other"
UNKNOWN_AGENT: Final = "unknown"
_AGENT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_TURNS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_TOKENS: Final = (10_000, 20_000, 50_000, 100_000, 150_000, 200_000, 500_000, 1_000_000)


class Bucket(BaseModel, frozen=True, defer_build=True):
    """Sessions of about the same size.

    Attributes:
        up_to: their largest size, and that of the bucket before is below their smallest; None if there is no limit.
        count: their number; those of the buckets before are not included.
    """

    up_to: int | None
    count: int


class RecordSummary(BaseModel, frozen=True, defer_build=True):
    """What is known of the live sessions of a namespace beside their IDs.

    Attributes:
        agents: number of sessions by the runtime that they belong to, the most first. Sessions without a record that
            names it are "unknown"; with more than 20 agents the rest is "other", and last.
        turns: how many turns the sessions have had, in ascending buckets.
        context_tokens: size of their contexts, as far as it is known, in ascending buckets.
    """

    agents: dict[str, int]
    turns: tuple[Bucket, ...]
    context_tokens: tuple[Bucket, ...]


class RecordFold:
    """Aggregates records into a summary. Its memory does not grow with the number of sessions."""

    def __init__(self) -> None:
        self._agents: Counter[str] = Counter()
        self._turns, self._tokens = [0] * (len(_TURNS) + 1), [0] * (len(_TOKENS) + 1)

    def add(self, records: Iterable[Sequence[bytes | None] | None]) -> None:
        """Count live sessions by the values of their records, or by none."""
        for values in records:
            record = Record.read(values) if values else Record()
            name = record.agent
            if name is None:
                name = UNKNOWN_AGENT
            elif not _AGENT.fullmatch(name) or (name not in self._agents and len(self._agents) >= _MAX_COUNTED):
                name = OTHER_AGENTS
            self._agents[name] += 1
            if record.turns:
                self._turns[bisect_left(_TURNS, record.turns)] += 1
            if record.context_tokens is not None:
                self._tokens[bisect_left(_TOKENS, record.context_tokens)] += 1

    def finish(self) -> RecordSummary:
        """The summary of all that was added."""
        total = self._agents.total()
        del self._agents[OTHER_AGENTS]
        agents = dict(self._agents.most_common(MAX_AGENTS))
        if rest := total - sum(agents.values()):
            agents[OTHER_AGENTS] = rest
        return RecordSummary(
            agents=agents,
            turns=_buckets(_TURNS, self._turns),
            context_tokens=_buckets(_TOKENS, self._tokens),
        )


def _buckets(bounds: Sequence[int], counts: Sequence[int]) -> tuple[Bucket, ...]:
    return tuple(Bucket(up_to=bound, count=number) for bound, number in zip((*bounds, None), counts, strict=True))
