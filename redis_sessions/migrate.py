"""sessions.json into Redis, with a verdict for every entry, and out of it again. What is live is never overwritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

from redis_sessions.commands import Command, Op
from redis_sessions.keys import Keys
from redis_sessions.legacy import Entry, LegacyFile, expires_at_ms
from redis_sessions.scan import Progress, Scan, session_rows
from redis_sessions.settings import StoreSettings

AssumeUsedAt: TypeAlias = Literal["mtime"] | int | None


class Reject(BaseModel):
    """An entry that was not imported. `source` is its own JSON text, unaltered."""

    model_config = ConfigDict(frozen=True)

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
        rejected: not right; each is in `rejects`.
    """

    model_config = ConfigDict(frozen=True)

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

    model_config = ConfigDict(frozen=True)

    exported: int
    not_timed: int
    skipped: int
    approximate: bool


class _Due(NamedTuple):
    entry: Entry
    expires_at_ms: int


def import_entries(
    settings: StoreSettings,
    legacy: LegacyFile,
    assume_used_at: AssumeUsedAt = None,
    progress: Progress | None = None,
    *,
    dry_run: bool = False,
) -> Op[ImportResult]:
    """Write what is still alive, a batch a round trip; see `legacy.py` for the outcome of each entry.

    «Now» is the server's time, read for every batch, so a client's wrong clock shortens or lengthens no life.
    """
    keys = Keys(settings.namespace)
    assumed_ms = legacy.mtime_ms if assume_used_at == "mtime" else assume_used_at
    imported = expired = kept = 0
    rejects: list[Reject] = []
    for start in range(0, len(legacy.entries), settings.batch_size):
        [(seconds, microseconds)] = yield [Command(("TIME",))]
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        due: list[_Due] = []
        for index, entry in enumerate(legacy.entries[start : start + settings.batch_size], start):
            until = entry.problem or expires_at_ms(
                entry, now_ms=now_ms, max_age_ms=settings.session_max_age_ms, assumed_ms=assumed_ms
            )
            if isinstance(until, str):
                rejects.append(Reject(key=entry.key, reason=until, source=legacy.source(index)))
            elif until <= now_ms:
                expired += 1
            else:
                due.append(_Due(entry, until))
        if due:
            replies = yield [_look(keys, item) if dry_run else _write(keys, item) for item in due]
            written = sum(reply == 0 for reply in replies) if dry_run else sum(reply is not None for reply in replies)
            imported += written
            kept += len(due) - written
        if progress:
            progress(min(start + settings.batch_size, len(legacy.entries)), len(legacy.entries))
    return ImportResult(
        total=len(legacy.entries),
        imported=imported,
        expired=expired,
        kept=kept,
        rejected=len(rejects),
        rejects=tuple(rejects),
    )


def _write(keys: Keys, due: _Due) -> Command:
    entry, until_ms = due
    return Command(("SET", keys.session_id(entry.key), entry.session_id, "PXAT", until_ms, "NX"), entry.key)


def _look(keys: Keys, due: _Due) -> Command:
    return Command(("EXISTS", keys.session_id(due.entry.key)), due.entry.key)


def export_entries(
    settings: StoreSettings, add: Callable[[str, str, int], None], progress: Progress | None = None
) -> Op[ExportResult]:
    """Give every live session to `add(key, session_id, used_at_ms)`, once, although a scan may find it twice."""
    scan = Scan(settings, progress)
    seen: set[str] = set()
    not_timed = skipped = 0
    while (pages := (yield from scan.next_pages())) is not None:
        for page in pages:
            sessions = list(session_rows(settings, page))
            skipped += len(page.redis_keys) - len(sessions)
            for session in sessions:
                if session.key not in seen:
                    seen.add(session.key)
                    add(session.key, session.session_id, session.last_used_at_ms)
                    not_timed += session.idle_ms is None
    return ExportResult(exported=len(seen), not_timed=not_timed, skipped=skipped, approximate=not scan.exact)
