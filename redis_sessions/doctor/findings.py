"""What the doctor says: findings, how bad they are, and what becomes of a fact that could not be seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, Final, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from redis_sessions.errors import AccessDenied, SessionStoreError


class Status(StrEnum):
    """How a thing is; the later the worse.

    Attributes:
        ok: as it should be.
        unknown: it could not be looked at.
        warning: not as it should be; it will do harm some day.
        broken: it does harm now.
    """

    ok = "ok"
    unknown = "unknown"
    warning = "warning"
    broken = "broken"


class Finding(BaseModel):
    """One thing that was looked at.

    Attributes:
        check: its name, which never changes.
        status: how it is.
        found: what was seen, or why nothing was.
        why: why it matters.
        remedy: what mends it, a command where there is one; None where nothing is to be done.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    check: str
    status: Status
    found: str
    why: str
    remedy: str | None = None


# Status, what was found, remedy.
Outcome: TypeAlias = tuple[Status, str, str | None]

OK, UNKNOWN, WARNING, BROKEN = Status.ok, Status.unknown, Status.warning, Status.broken
SEVERITY: Final = list(Status)
# What a user needs beside an admin's rights, to be shown everything. Not for workers: GETUSER shows hashes of passwords.
LOOK_RIGHTS: Final = "+info +config|get +cluster|info +acl|getuser +client|info"
_WHO_MAY: Final = f"look as admin of redis-sessions acl, or as a user of your own who may {LOOK_RIGHTS} besides"


class Connection(NamedTuple):
    """What the client, not the server, knows of how it is connected.

    Attributes:
        tls: whether it speaks TLS.
        risks: what in the client's settings may spoil counters, or cross replies; None where nothing is known of them.
    """

    tls: bool = False
    risks: tuple[str, ...] | None = None


class Diagnosis(BaseModel):
    """All findings, and how many there are of each status. Nothing in it is a secret.

    Attributes:
        findings: what was looked at, in the order in which it is best told.
        broken: how many of them are broken; the next three likewise.
        warnings: how many are warnings.
        unknown: how many could not be looked at.
        ok: how many are as they should be.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    findings: tuple[Finding, ...]
    broken: int
    warnings: int
    unknown: int
    ok: int


def seen(fact: Any) -> Any:
    """The fact. Raises the error that stands in its place."""
    if isinstance(fact, SessionStoreError):
        raise fact
    return fact


def judged(check: str, why: str, look: Callable[[], Outcome]) -> Finding:
    """The finding of one look; a SessionStoreError that it raises makes it unknown."""
    try:
        status, found, remedy = look()
    except SessionStoreError as error:
        status, found = UNKNOWN, error.message
        remedy = _WHO_MAY if isinstance(error, AccessDenied) else "ask whoever runs the server"
    return Finding(check=check, status=status, found=found, why=why, remedy=remedy)


def diagnosis(findings: Sequence[Finding]) -> Diagnosis:
    """All findings, counted."""
    statuses = [finding.status for finding in findings]
    return Diagnosis(
        findings=tuple(findings),
        broken=statuses.count(BROKEN),
        warnings=statuses.count(WARNING),
        unknown=statuses.count(UNKNOWN),
        ok=statuses.count(OK),
    )
