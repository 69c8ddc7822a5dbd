"""sessions.json into Redis, with a verdict for every entry, and out of it again. What is live is never overwritten."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from redis_sessions.errors import InvalidSettings, StoreUnavailable
from redis_sessions.keys import Keys
from redis_sessions.legacy.file import LegacyFile, expires_at_ms, time_trouble
from redis_sessions.legacy.sorter import Shelf
from redis_sessions.operations.command import PRIMARIES, Command, Op, Resent
from redis_sessions.operations.scan import Progress, Scan, session_rows
from redis_sessions.operations.scripts import IMPORT
from redis_sessions.settings import StoreSettings

AssumeUsedAt: TypeAlias = Literal["mtime"] | int | None


class Reject(BaseModel):
    """An entry that was not imported.

    Attributes:
        key: its conversation key, as it stands in the file.
        reason: why.
        source: its own JSON text, name and value, unaltered.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    key: str
    reason: str
    source: str


class ImportResult(BaseModel):
    """What became of a legacy file; imported + expired + kept + rejected = total.

    Attributes:
        total: entries in the file.
        imported: written with their remaining life; of a dry run, those that would be.
        expired: unused for longer than the max age; not written.
        kept: the conversation was live in Redis already, which was left as it is.
        rejected: not right.
        rejects: each of the rejected, in the order of the file.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    total: int
    imported: int
    expired: int
    kept: int
    rejected: int
    rejects: tuple[Reject, ...]


class ExportResult(BaseModel):
    """What was exported.

    Attributes:
        exported: records written.
        not_timed: of these, sessions without a TTL or with more of it than the max age; they are written as used just now.
        skipped: keys that hold no valid session ID; `report` names them.
        approximate: keys may have been missed, since cluster slots moved or the server changed during the scan.
    """

    model_config = ConfigDict(frozen=True, defer_build=True)

    exported: int
    not_timed: int
    skipped: int
    approximate: bool


def import_entries(
    settings: StoreSettings,
    legacy: LegacyFile,
    assume_used_at: AssumeUsedAt = None,
    progress: Progress | None = None,
    *,
    dry_run: bool = False,
) -> Op[ImportResult]:
    """Write what is still alive, a batch a round trip; see `legacy.py` for the outcome of each entry.

    «Now» is the server's time, read for every batch, so a client's wrong clock shortens or lengthens no life. Raises
    InvalidSettings for an `assume_used_at` that is no time.
    """
    if assume_used_at != "mtime" and (trouble := time_trouble(assume_used_at)):
        raise InvalidSettings(f"assume_used_at {trouble}", remedy='give "mtime", milliseconds since 1970, or None')
    [nodes] = yield [PRIMARIES]
    keys = Keys(settings.namespace)
    assumed_ms = legacy.mtime_ms if assume_used_at == "mtime" else assume_used_at
    imported = expired = kept = done = 0
    rejects: list[Reject] = []
    entries = iter(legacy)
    while batch := list(islice(entries, settings.batch_size)):
        [(seconds, microseconds)] = yield [Command(("TIME",))]
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        due: list[tuple[bytes, str, int]] = []
        for index, entry in enumerate(batch, done):
            until = entry.problem or expires_at_ms(entry, now_ms, settings.session_max_age_ms, assumed_ms)
            if isinstance(until, str):
                rejects.append(Reject(key=entry.key, reason=until, source=legacy.source(index)))
            elif until <= now_ms:
                expired += 1
            else:
                due.append((keys.session_id(entry.key), entry.session_id, until))
        if due:
            written = yield from _written(due, alone=nodes == [None], dry_run=dry_run)
            imported += written
            kept += len(due) - written
        done += len(batch)
        if progress:
            progress(done, len(legacy))
    return ImportResult(
        total=len(legacy), imported=imported, expired=expired, kept=kept, rejected=len(rejects), rejects=tuple(rejects)
    )


def _written(due: list[tuple[bytes, str, int]], *, alone: bool, dry_run: bool) -> Op[int]:
    """How many of these redis keys, session IDs and expiry times were written, or would be."""
    if dry_run:
        return (yield [Command(("EXISTS", redis_key)) for redis_key, _, _ in due]).count(0)
    if alone:
        redis_keys = tuple(redis_key for redis_key, _, _ in due)
        args: list[str | int] = []
        for _, session_id, until_ms in due:
            args += (session_id, until_ms)
        replies = yield [Command(tuple(args), script=IMPORT, redis_keys=redis_keys)]
        written = replies[0]
    else:
        # On a cluster each key has its own slot, and a script can't reach more than one.
        replies = yield [
            Command(("SET", redis_key, session_id, "PXAT", until_ms, "NX")) for redis_key, session_id, until_ms in due
        ]
        written = [reply is not None for reply in replies]
    there = [item for item, wrote in zip(due, written, strict=True) if not wrote]
    if there and isinstance(replies, Resent):
        return len(due) - len(there) + (yield from _written_before(there))
    return len(due) - len(there)


def _written_before(there: list[tuple[bytes, str, int]]) -> Op[int]:
    """How many of these, found there when they were sent again, hold what was sent: written by an earlier sending.

    A conversation that was live with that very ID before is taken for one of them; what Redis holds is the same.
    """
    # One by one, since a key of the wrong type is refused, and is none of ours.
    found = yield [Command(("GET", redis_key), optional=True) for redis_key, _, _ in there]
    for reply in found:
        if isinstance(reply, StoreUnavailable):
            raise reply
    return sum(reply == session_id.encode() for reply, (_, session_id, _) in zip(found, there, strict=True))


_ROW: Final = attrgetter("key", "session_id", "last_used_at_ms", "idle_ms")


def export_entries(
    settings: StoreSettings, add: Callable[[str, str, int], None], progress: Progress | None = None
) -> Op[ExportResult]:
    """Give every live session to `add(key, session_id, used_at_ms)`, by key, and once, although a scan may find it twice."""
    scan = Scan(settings, progress)
    skipped = 0
    with Shelf() as shelf:
        while (pages := (yield from scan.next_pages())) is not None:
            for page in pages:
                sessions = list(session_rows(settings, page))
                skipped += len(page.redis_keys) - len(sessions)
                shelf.put(map(_ROW, sessions))
        exported = not_timed = 0
        for key, session_id, used_at_ms, idle_ms in shelf:
            add(key, session_id, used_at_ms)
            exported += 1
            not_timed += idle_ms is None
    return ExportResult(exported=exported, not_timed=not_timed, skipped=skipped, approximate=not scan.exact)
