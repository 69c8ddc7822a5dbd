"""After the max age was lowered: let no session live longer than it from now on.

Only session IDs under a key of ours are touched, and their lives only ever shortened, or begun where a key had none. What to
change is found by the scan; the server looks again before it does, so that a session saved meanwhile is safe. Run twice, the
second changes nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from pydantic import BaseModel, ConfigDict

from redis_sessions.keys import Keys, are_session_ids, is_session_id
from redis_sessions.operations.command import Command, Op
from redis_sessions.operations.scan import Page, Progress, Scan
from redis_sessions.operations.scripts import RETIME
from redis_sessions.settings import StoreSettings

SHORTENED: Final = 1
GIVEN_TTL: Final = 2


class RetimeResult(BaseModel):
    """What became of the lives of all sessions; shortened + given_ttl + left + invalid = looked_at.

    Attributes:
        looked_at: keys under the namespace's sessions; one that a scan finds twice counts twice.
        shortened: had more time left than the max age, and now have that; of a dry run, those that would.
        given_ttl: would never have expired, and now do after the max age; of a dry run likewise.
        left: had no more time left than the max age.
        invalid: hold no session ID, or have a name outside the key scheme; never touched.
        invalid_no_ttl: those of the invalid that never expire.
        approximate: keys may have been missed, since cluster slots moved or the server changed during the scan.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

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
    """Shorten to the settings' max age whatever lives longer; see the module. `scan` is the walk to take, if not its own."""
    scan = scan or Scan(settings, progress)
    keys, max_age_ms = Keys(settings.namespace), settings.session_max_age_ms
    looked_at = invalid = invalid_no_ttl = 0
    done: Counter[int] = Counter()
    while (pages := (yield from scan.next_pages())) is not None:
        commands = []
        for page in pages:
            good, bad_pttls_ms = _sorted_out(keys, page)
            looked_at += len(good) + len(bad_pttls_ms)
            invalid += len(bad_pttls_ms)
            invalid_no_ttl += bad_pttls_ms.count(-1)
            due = [(redis_key, pttl_ms) for redis_key, pttl_ms in good if pttl_ms == -1 or pttl_ms > max_age_ms]
            if dry_run:
                done.update(GIVEN_TTL if pttl_ms == -1 else SHORTENED for _, pttl_ms in due)
            elif due:
                args: tuple[bytes | int, ...] = (max_age_ms, *(redis_key for redis_key, _ in due))
                commands.append(Command(args, script=RETIME, node=page.node))
        if commands:
            for reply in (yield commands):
                done.update(reply)
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


def _sorted_out(keys: Keys, page: Page) -> tuple[list[tuple[bytes, int]], list[int]]:
    """Redis keys and TTLs of a page's sessions, and the TTLs of what is none; without those that have expired."""
    if are_session_ids(page.values) and keys.are_plain(page.redis_keys):
        good = list(zip(page.redis_keys, page.pttls_ms, strict=True))
        return (good if min(page.pttls_ms) >= -1 else [row for row in good if row[1] >= -1]), []
    good, bad_pttls_ms = [], []
    names = keys.conversations(page.redis_keys)
    for name, redis_key, pttl_ms, value in zip(names, page.redis_keys, page.pttls_ms, page.values, strict=True):
        if pttl_ms < -1:
            continue
        if name is None or value is None or not is_session_id(value):
            bad_pttls_ms.append(pttl_ms)
        else:
            good.append((redis_key, pttl_ms))
    return good, bad_pttls_ms
