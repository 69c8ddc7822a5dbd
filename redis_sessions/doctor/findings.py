"""Checks, the findings they lead to, and the diagnosis that counts them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Generic, NamedTuple, TypeAlias, TypeVar

from pydantic import BaseModel

from redis_sessions.errors import AccessDenied, SessionStoreError
from redis_sessions.operations.command import Op


class Status(StrEnum):
    """The result of a check, from good to bad.

    Attributes:
        ok: as it should be.
        unknown: it could not be checked.
        warning: not as it should be; it will do harm some day.
        broken: it does harm now.
    """

    ok = "ok"
    unknown = "unknown"
    warning = "warning"
    broken = "broken"


class Finding(BaseModel, frozen=True, defer_build=True):
    """The result of one check.

    Attributes:
        check: name of the check, which never changes.
        status: how good or bad it is.
        found: what was seen, or why nothing was.
        why: why it matters.
        remedy: what fixes it, a command where there is one; None where there is nothing to do.
    """

    check: str
    status: Status
    found: str
    why: str
    remedy: str | None = None


class Diagnosis(BaseModel, frozen=True, defer_build=True):
    """All findings, and how many there are of each status. It contains no secret.

    Attributes:
        findings: one for each check, in the order in which they are shown.
        broken, warnings, unknown, ok: how many findings have this status.
    """

    findings: tuple[Finding, ...]
    broken: int
    warnings: int
    unknown: int
    ok: int


class ClientFacts(NamedTuple):
    """What the client, not the server, knows about its connection."""

    tls: bool = False
    risks: tuple[str, ...] | None = None  # what may spoil counters or mix up replies; None for a client of an unknown kind


OK, UNKNOWN, WARNING, BROKEN = Status.ok, Status.unknown, Status.warning, Status.broken
# Status, what was found, what fixes it.
Outcome: TypeAlias = tuple[Status, str, str | None]
# The permissions that a user needs besides an admin's, to see everything. Not for workers: GETUSER shows password hashes.
LOOK_RIGHTS: Final = "+info +config|get +cluster|info +acl|getuser +client|info"
_DENIED: Final = f"run it as admin of redis-sessions acl, or as a user of your own that also has {LOOK_RIGHTS}"

S = TypeVar("S")


@dataclass(frozen=True)
class Check(Generic[S]):
    """One thing to check: a question to the server, and a judgement of the answer.

    `judge` returns the outcome, or asks the server first; it raises SessionStoreError if the answer can't be had.
    """

    name: str
    why: str
    judge: Callable[[S], Outcome | Op[Outcome]]

    def finding(self, subject: S) -> Op[Finding]:
        """Run the check. What can't be seen is `unknown`, never `ok`."""
        try:
            outcome = self.judge(subject)
            status, found, fix = (yield from outcome) if isinstance(outcome, Generator) else outcome
        except SessionStoreError as error:
            status, found = UNKNOWN, error.message
            fix = _DENIED if isinstance(error, AccessDenied) else error.remedy or "ask the operator of the server"
        return Finding(check=self.name, status=status, found=found, why=self.why, remedy=fix)


def check(name: str, *, why: str) -> Callable[[Callable[[S], Outcome | Op[Outcome]]], Check[S]]:
    """Make a Check of the function that is its question and judgement."""
    return lambda judge: Check(name, why, judge)
