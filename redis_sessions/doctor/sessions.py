"""Checks of the keys: session IDs and their TTLs, leases, counters, and the max age against what the agent keeps."""

from __future__ import annotations

import re
from typing import Final

from redis_sessions.agents import get_agent
from redis_sessions.doctor.findings import BROKEN, OK, UNKNOWN, WARNING, Outcome, check
from redis_sessions.doctor.server import Examination, text
from redis_sessions.errors import SessionStoreError, StoreUnavailable
from redis_sessions.keys import COUNTERS
from redis_sessions.operations.command import Command, Op
from redis_sessions.operations.conversation import Operations
from redis_sessions.operations.retime import RetimeResult, retime
from redis_sessions.operations.scan import INEXACT
from redis_sessions.operations.text import count, exact_duration, safe
from redis_sessions.settings import StoreSettings

_AGAIN: Final = "run it once more, as a user that may call INFO, and by the URL of the server itself or of the whole cluster"


@check("no-ttl", why="a session that never expires is tried forever")
def no_ttl(about: Examination) -> Op[Outcome]:
    lives = yield from about.server.once("scan", _scan(about))
    bad = BROKEN, f"{count(lives.given_ttl, 'session')} without a TTL", _retime(about.settings)
    return bad if lives.given_ttl else _none(f"none of {count(lives.looked_at, 'key')}", approximate=lives.approximate)


@check("max-age", why="a session that lives longer is tried for longer than meant, and how long it is idle is unknown")
def max_age(about: Examination) -> Op[Outcome]:
    lives, max_age_ms = (yield from about.server.once("scan", _scan(about))), about.settings.session_max_age_ms
    age, agreed_ms = exact_duration(max_age_ms), (yield from Operations(about.settings).max_age_ms())
    if not lives.shortened:
        return _none(f"no session has more than {age} left", approximate=lives.approximate)
    found, remedy = f"more than {age} left: {count(lives.shortened, 'session')}", _retime(about.settings)
    if agreed_ms is not None and agreed_ms != max_age_ms:
        found += f"; the workers' max age is {exact_duration(agreed_ms)}"
        remedy = f"leave out --max-age; or, to change what workers have agreed on: {remedy}"
    return WARNING, found, remedy


@check("values", why="a value that is not a session ID can't be resumed")
def values(about: Examination) -> Op[Outcome]:
    lives = yield from about.server.once("scan", _scan(about))
    if lives.invalid:
        found = f"no session ID in {count(lives.invalid, 'key')}, {lives.invalid_no_ttl:,} of them without a TTL"
        return WARNING, found, "find their names by redis-sessions report, stop what writes them, and delete them"
    return _none("every key holds a session ID", approximate=lives.approximate)


@check("names", why="no store reads a key whose conversation is not in braces")
def names(about: Examination) -> Op[Outcome]:
    lives = yield from about.server.once("scan", _scan(about))
    if lives.near:
        example = safe(lives.near_examples[0].decode("utf-8", "backslashreplace"))
        fix = f"write them as {about.keys.prefix.decode()}…}}: the name of the conversation stands in braces"
        return WARNING, f"{count(lives.near, 'key')} without braces, such as {example}", fix
    return _none("every key is named as sessions are", approximate=lives.approximate)


@check("leases", why="a lease that never expires blocks its conversation until another worker asks for it")
def leases(about: Examination) -> Op[Outcome]:
    scan = about.scan(leases=True)
    without = 0
    while (pages := (yield from scan.next_pages())) is not None:
        without += sum(page.pttls_ms.count(-1) for page in pages)
    if without:
        return WARNING, f"{count(without, 'lease')} without a TTL", "the next claim sets one; find out what created them"
    return _none("every lease expires", approximate=not scan.exact)


@check("counters", why="the number of failures means something only beside the number of turns")
def counters(about: Examination) -> Op[Outcome]:
    for redis_key in map(about.keys.counter, COUNTERS):
        name = redis_key.decode()
        [value, pttl_ms] = yield [Command((command, redis_key), optional=True) for command in ("GET", "PTTL")]
        if isinstance(value, StoreUnavailable):
            raise value
        if isinstance(value, SessionStoreError) or not (value is None or _counts(value)):
            return BROKEN, f"{name} is not an integer that can be incremented", f"redis-cli SET {name} 0"
        if isinstance(pttl_ms, SessionStoreError):
            raise pttl_ms
        if pttl_ms >= 0:
            return WARNING, f"{name} will expire", f"redis-cli PERSIST {name}"
    return OK, "integers that never expire", None


@check("agent", why="an ID that outlives its session costs a refused resume")
def agent(about: Examination) -> Outcome:
    return kept(about.settings.session_max_age_ms, about.agent)


CHECKS: Final = (no_ttl, max_age, values, names, leases, counters, agent)


class _Scanned(RetimeResult, frozen=True, defer_build=True):
    """What `retime` would do, and the keys outside the scheme that the same scan has seen."""

    near: int
    near_examples: tuple[bytes, ...]


def _scan(about: Examination) -> Op[_Scanned]:
    """Find out what `retime` would do, once for all checks."""
    scan = about.scan()
    result = yield from retime(about.settings, dry_run=True, scan=scan)
    return _Scanned(**result.model_dump(), near=scan.near, near_examples=tuple(scan.near_examples))


def _none(found: str, *, approximate: bool) -> Outcome:
    if approximate:
        raise SessionStoreError(f"none found, but {INEXACT}", remedy=_AGAIN)
    return OK, found, None


def _retime(settings: StoreSettings) -> str:
    max_age = exact_duration(settings.session_max_age_ms)
    command = f"redis-sessions retime --namespace {settings.namespace} --max-age {max_age}"
    return f"{command}, if that is the max age that workers have"


def _counts(value: bytes | str) -> bool:
    """Whether INCR accepts it: Python's own int() allows white space, underscores and any size."""
    digits = text(value)
    return re.fullmatch(r"0|-?[1-9][0-9]{0,18}", digits) is not None and -(2**63) <= int(digits) < 2**63 - 1


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
