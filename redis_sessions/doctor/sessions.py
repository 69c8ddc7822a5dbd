"""What the doctor makes of the way to the server, of the keys, and of the max age. Asks nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from redis_sessions.agents import get_agent
from redis_sessions.doctor.findings import BROKEN, OK, UNKNOWN, WARNING, Connection, Outcome, seen
from redis_sessions.errors import SessionStoreError, StoreUnavailable
from redis_sessions.operations.retime import RetimeResult
from redis_sessions.settings import StoreSettings
from redis_sessions.text import count, exact_duration

SLOW_MS: Final = 50
CLOCK_MS: Final = 1_000


def no_ttl(lives: RetimeResult, settings: StoreSettings) -> Outcome:
    """Whether sessions never expire."""
    if lives.given_ttl:
        return BROKEN, f"{count(lives.given_ttl, 'session')} without a TTL", _retime(settings)
    _sure(lives)
    return OK, f"none of {count(lives.looked_at, 'key')}", None


def over_max_age(lives: RetimeResult, settings: StoreSettings) -> Outcome:
    """Whether sessions live longer than the max age."""
    if lives.shortened:
        found = f"more than {exact_duration(settings.session_max_age_ms)} left: {count(lives.shortened, 'session')}"
        return WARNING, found, _retime(settings)
    _sure(lives)
    return OK, f"no session has more than {exact_duration(settings.session_max_age_ms)} left", None


def values(lives: RetimeResult) -> Outcome:
    """Whether something else stands where session IDs belong."""
    if lives.invalid:
        found = f"no session ID in {count(lives.invalid, 'key')}, {lives.invalid_no_ttl:,} of them for ever"
        return WARNING, found, "redis-sessions report names them; find out who writes them, and delete them"
    _sure(lives)
    return OK, "every key holds a session ID", None


def _sure(lives: RetimeResult) -> None:
    if lives.approximate:
        raise SessionStoreError(
            "none was found, but slots moved, the server changed or INFO is denied: some may have been missed"
        )


def leases(without_ttl: int) -> Outcome:
    """Whether leases never lapse."""
    if without_ttl:
        return (
            WARNING,
            f"{count(without_ttl, 'lease')} without a TTL",
            "the next claim on each gives it one; find out who took it",
        )
    return OK, "every lease lapses", None


def counters(counters: Sequence[tuple[str, Any, Any]]) -> Outcome:
    """Whether the counters, by Redis key, value and TTL, can be counted on."""
    for redis_key, value, pttl_ms in counters:
        try:
            counts = value is None or _counts(seen(value))
        except StoreUnavailable:
            raise
        except SessionStoreError:
            counts = False
        if not counts:
            return BROKEN, f"{redis_key} holds no integer that can be counted on from", f"redis-cli SET {redis_key} 0"
        if seen(pttl_ms) >= 0:
            return WARNING, f"{redis_key} will expire", f"redis-cli PERSIST {redis_key}"
    return OK, "integers that never expire", None


def _counts(value: bytes | str) -> bool:
    """Whether INCR takes it: Python's own int() would let white space, underscores and any size pass."""
    text = value if isinstance(value, str) else value.decode("utf-8", "replace")
    return re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text) is not None and -(2**63) <= int(text) < 2**63 - 1


def _retime(settings: StoreSettings) -> str:
    return (
        f"redis-sessions retime --namespace {settings.namespace} --max-age {exact_duration(settings.session_max_age_ms)}, "
        "if that is the max age that workers have"
    )


def round_trip(trip_ms: float) -> Outcome:
    """How long one takes."""
    if trip_ms >= SLOW_MS:
        return WARNING, f"{trip_ms:.0f} ms", "bring workers and server closer together"
    return OK, f"{trip_ms:.2f} ms", None


def clock(ahead_ms: int) -> Outcome:
    """How far the client's clock is from the server's."""
    found = f"this machine is {abs(ahead_ms):,} ms {'ahead of' if ahead_ms >= 0 else 'behind'} the server"
    return (WARNING, found, "set both by NTP") if abs(ahead_ms) > CLOCK_MS else (OK, found, None)


def client(connection: Connection) -> Outcome:
    """What is risky about the client."""
    if connection.risks is None:
        raise SessionStoreError("the client that was passed in is of no kind that is known")
    if connection.risks:
        found = "the redis-py client that was passed in " + "; and it ".join(connection.risks)
        return WARNING, found, "SessionStore.from_url builds a safe one"
    return OK, "retries no counter, and reads no other's reply", None


def quorum(quorums: Sequence[object]) -> Outcome:
    """Whether Sentinel could put another primary in place."""
    lacking = [answer for answer in quorums if isinstance(answer, SessionStoreError)]
    if len(lacking) == len(quorums) and all(isinstance(answer, StoreUnavailable) for answer in lacking):
        raise lacking[0]
    remedy = "start the sentinels that are down, or list those that are gone no more"
    if any(not isinstance(answer, StoreUnavailable) for answer in lacking):
        return BROKEN, "no quorum to fail over", remedy
    if lacking:
        return WARNING, f"{len(lacking)} of {len(quorums)} can't be reached", remedy
    return OK, f"{len(quorums)} of {len(quorums)} see a quorum", None


def kept(max_age_ms: int, agent: str | None) -> Outcome:
    """Whether IDs live longer than the sessions they name. Raises InvalidSettings for an unknown agent."""
    runtime = get_agent("claude" if agent is None else agent)
    age, keeps_ms = exact_duration(max_age_ms), runtime.keeps_sessions_ms
    if keeps_ms is None:
        return UNKNOWN, f"how long {agent} keeps a session is not established", "watch redis-sessions failures"
    if agent is None:
        found = f"max age {age}; Claude Code and Gemini keep sessions 30 days, an AgentCore machine 15 idle minutes"
        remedy = f"set session_max_age_ms to {keeps_ms} or less, or name another agent (--agent)"
    else:
        found = f"max age {age}; {agent} keeps a session {exact_duration(keeps_ms)}"
        remedy = f"set session_max_age_ms to {keeps_ms} or less"
    if max_age_ms <= keeps_ms:
        return OK, found, None
    # Without a refusal, what the agent forgot is lost silently.
    return WARNING if runtime.refusals else BROKEN, found, remedy
