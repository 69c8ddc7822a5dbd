"""Base class for one call of an operation during a fault, with checks of what may be true afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from redis_sessions import SessionStoreError
from redis_sessions.keys import COUNTERS, LEASE_GRACE_MS, Keys
from tests.faults.ledger import NUMBERS, Tally

SLACK_MS = 60_000
OLD, NEW = "OLD", "NEW"


def add(tally: Tally, other: Tally) -> None:
    """Add the counts of another tally."""
    tally.first = other.first | tally.first
    for name in NUMBERS:
        setattr(tally, name, getattr(tally, name) + getattr(other, name))


class Case:
    """One call of one operation, on its own conversation.

    `prepare` makes it ready past the proxy, `act` calls the store under test, and one of `answered` and `refused` checks
    what the server holds. Each `lost` or `wrong` becomes an entry of `harms`.
    """

    # Whether one fault goes unnoticed, because the command is sent again.
    rides_out = True

    def __init__(self, world: Any, number: int) -> None:
        self.store, self.direct, self.raw, self.standing = world.store, world.direct, world.raw, world.standing
        self.directory: Path = world.directory
        self.settings = world.direct.settings
        self.key = f"{type(self).__name__}-{number}"
        # Distinct for every case, so that a reply that strays is known.
        self.old, self.new = f"{OLD}-{self.key}", f"{NEW}-{self.key}"
        self.keys = Keys(self.settings.namespace)
        self.id_key, self.lease_key = self.keys.session_id(self.key), self.keys.lease(self.key)
        self.record_key = self.keys.record(self.key)
        self.harms: list[tuple[str, str]] = []

    def prepare(self) -> None:
        self.plant()

    def act(self) -> Any:
        raise NotImplementedError

    def answered(self, reply: Any) -> None:
        raise NotImplementedError

    def refused(self, error: SessionStoreError) -> None:
        raise NotImplementedError

    def clean(self) -> None:
        self.raw.delete(self.id_key, self.lease_key, self.record_key)

    def wrong(self, what: str) -> None:
        self.harms.append(("wrong", f"{self.key}: {what}"))

    def lost(self, what: str) -> None:
        self.harms.append(("lost", f"{self.key}: {what}"))

    def plant(self) -> None:
        self.direct.set(self.key, self.old)

    def lease(self) -> None:
        self.mine = self.direct.acquire(self.key)

    def lapse_and_take(self) -> None:
        """Another worker takes the conversation over."""
        self.raw.pexpire(self.lease_key, LEASE_GRACE_MS - 1)
        self.successor = self.direct.acquire(self.key)

    def holds(self, *allowed: str | None, key: str | None = None) -> None:
        """The ID is one of these, and lives as long as a set lets it."""
        redis_key = self.keys.session_id(key or self.key)
        raw, pttl_ms = self.raw.get(redis_key), self.raw.pttl(redis_key)
        found = raw and raw.decode()
        if found not in allowed:
            self.lost(f"holds {found}, not one of {allowed}")
        elif found and not self.settings.session_max_age_ms - SLACK_MS < pttl_ms <= self.settings.session_max_age_ms:
            self.lost(f"{found} has {pttl_ms} ms")

    def leased(self, *allowed: str | None) -> None:
        """The lease is one of these tokens', with its whole time."""
        raw = self.raw.get(self.lease_key)
        found = raw and raw.decode()
        if found not in allowed:
            self.lost(f"leased by {found}, not one of {allowed}")
        elif found and self.raw.pttl(self.lease_key) < self.settings.lease_ms + LEASE_GRACE_MS - SLACK_MS:
            self.lost("the lease has not its whole time")

    def recorded(self, session_id: str, turns: int) -> None:
        """The record is that of this session, and has counted each of its turns once."""
        found = self.raw.hmget(self.record_key, "id", "t")
        if found != [session_id.encode(), b"%d" % turns]:
            self.lost(f"recorded {found}, not {session_id} with {turns} turns")

    def says(self, reply: Any, *right: Any) -> None:
        if not any(type(reply) is type(one) and reply == one for one in right):
            self.wrong(f"answered {reply!r}, not {' or '.join(map(repr, right))}")

    def counts(self) -> dict[str, int]:
        return {name: int(self.raw.get(self.keys.counter(name)) or 0) for name in COUNTERS}

    def moved(self, before: dict[str, int], **by: tuple[int, ...]) -> None:
        """Each counter has moved by one of these; by nothing where none are given."""
        for name, count in self.counts().items():
            if count - before[name] not in by.get(name, (0,)):
                self.lost(f"{name} moved by {count - before[name]}")
