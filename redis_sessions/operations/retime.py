"""Applies a lowered max age to the sessions that are already there.

Only session IDs under a key of the scheme are touched, and a TTL is only ever shortened, or set where a key had none. The
scan finds what to change; the server checks each key again before it changes it, so that a session saved meanwhile is safe.
Running it twice changes nothing more.
"""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Final

from pydantic import BaseModel

from redis_sessions.errors import SessionStoreError, is_away
from redis_sessions.keys import Keys
from redis_sessions.operations.command import Command, Op
from redis_sessions.operations.scan import Progress, Scan
from redis_sessions.operations.scripts import RETIME
from redis_sessions.settings import StoreSettings

SHORTENED: Final = 1
GIVEN_TTL: Final = 2


class RetimeResult(BaseModel, frozen=True, defer_build=True):
    """How many keys were changed, by what was done; shortened + given_ttl + left + invalid = looked_at.

    Attributes:
        looked_at: session keys of the namespace; one that the scan finds twice counts twice.
        shortened: had more time left than the max age, and now have the max age; in a dry run, those that would.
        given_ttl: would never have expired, and now expire after the max age; in a dry run, those that would.
        left: had at most the max age left.
        invalid: don't hold a session ID, or have a name outside the key scheme; never touched.
        invalid_no_ttl: those of the invalid that never expire.
        approximate: keys may have been missed, as `Report.approximate` explains.
    """

    looked_at: int
    shortened: int
    given_ttl: int
    left: int
    invalid: int
    invalid_no_ttl: int
    approximate: bool


def retime(
    settings: StoreSettings, progress: Progress | None = None, *, dry_run: bool = False, scan: Scan | None = None
) -> Op[RetimeResult]:
    """Shorten every TTL that exceeds the settings' max age, and write that for all workers.

    `scan` replaces the scan that it would make itself.
    """
    scan = scan or Scan(settings, progress)
    keys, max_age_ms = Keys(settings.namespace), settings.session_max_age_ms
    looked_at = invalid = invalid_no_ttl = 0
    done: Counter[int] = Counter()
    while (pages := (yield from scan.next_pages())) is not None:
        commands, args = [], (str(max_age_ms),)
        for page in pages:
            due: list[tuple[bytes, bytes]] = []
            for name, redis_key, pttl_ms in zip(page.conversations(keys), page.redis_keys, page.pttls_ms, strict=True):
                if pttl_ms < -1:
                    continue
                looked_at += 1
                if name is None:
                    invalid += 1
                    invalid_no_ttl += pttl_ms == -1
                elif pttl_ms != -1 and pttl_ms <= max_age_ms:
                    continue
                elif dry_run:
                    done[GIVEN_TTL if pttl_ms == -1 else SHORTENED] += 1
                else:
                    due.append((redis_key, keys.record_of(redis_key)))
            if due and scan.by_script:
                commands.append(Command(args, script=RETIME, redis_keys=tuple(chain.from_iterable(due))))
            elif due:  # only where one server has all keys may a script have those of several conversations
                commands.append(Command((), node=page.node, batch=RETIME.batch(due, *args)))
        for reply in chain.from_iterable((yield commands)) if commands else ():
            if not isinstance(reply, SessionStoreError):
                done.update(reply if isinstance(reply, list) else [reply])
            elif not is_away(reply):  # a key whose slot has moved away meanwhile is not changed
                raise reply
    if not dry_run:
        yield [Command(("HSET", keys.settings(), "max_age_ms", str(max_age_ms)))]
    shortened, given_ttl = done[SHORTENED], done[GIVEN_TTL]
    return RetimeResult(
        looked_at=looked_at,
        shortened=shortened,
        given_ttl=given_ttl,
        left=looked_at - invalid - shortened - given_ttl,
        invalid=invalid,
        invalid_no_ttl=invalid_no_ttl,
        approximate=not scan.exact,
    )
