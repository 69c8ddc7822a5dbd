"""Imports sessions.json into Redis, with an outcome for each entry, and exports it again. Never overwrites a live ID."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import Final, Literal, Self, TypeAlias

from pydantic import BaseModel

from redis_sessions.errors import InvalidSettings, StoreUnavailable
from redis_sessions.keys import Keys
from redis_sessions.legacy.file import LegacyFile, expires_at_ms, time_problem
from redis_sessions.operations.command import PRIMARIES, Command, Op, Resent
from redis_sessions.operations.scan import Progress, Scan, agreed, session_rows, sole_server
from redis_sessions.operations.scripts import IMPORT
from redis_sessions.settings import StoreSettings

AssumeUsedAt: TypeAlias = Literal["mtime"] | int | None
# Conversation key, session ID, time of last use, idle time.
Row: TypeAlias = tuple[str, str, int, int | None]

_ROW: Final = attrgetter("key", "session_id", "last_used_at_ms", "idle_ms")
_CACHE_KIB: Final = 16_384


class Reject(BaseModel, frozen=True, defer_build=True):
    """An entry that was not imported.

    Attributes:
        key: its conversation key, as it stands in the file.
        reason: why.
        source: its own JSON text, name and value, unaltered.
    """

    key: str
    reason: str
    source: str


class ImportResult(BaseModel, frozen=True, defer_build=True):
    """The outcome of an import; imported + expired + kept + rejected = total.

    Attributes:
        total: entries in the file.
        imported: written with their remaining TTL; in a dry run, those that would be.
        expired: unused for longer than the max age; not written.
        kept: the conversation was live in Redis already, and was left as it is.
        rejected: entries with a problem; not written.
        rejects: each of the rejected, in the order of the file.
    """

    total: int
    imported: int
    expired: int
    kept: int
    rejected: int
    rejects: tuple[Reject, ...]


class ExportResult(BaseModel, frozen=True, defer_build=True):
    """The outcome of an export.

    Attributes:
        exported: records written.
        not_timed: of these, sessions without a TTL or with more of it than the max age; they are written as used now.
        skipped: keys without a valid session ID; `report` names them.
        approximate: keys may have been missed, as `Report.approximate` explains.
    """

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
    """Write what has not expired, one batch a round trip; the package's docstring lists the outcome for each kind of entry.

    "Now" is the server's time, read for every batch, so a client's wrong clock changes no TTL. Raises InvalidSettings for an
    `assume_used_at` that is not a time.
    """
    if assume_used_at != "mtime" and (problem := time_problem(assume_used_at)):
        raise InvalidSettings(f"assume_used_at {problem}", remedy='give "mtime", milliseconds since 1970, or None')
    keys = Keys(settings.namespace)
    [nodes] = yield [PRIMARIES]
    # Only where one server is proven to have all keys may a script have several.
    alone = nodes == [None] and (yield from sole_server(keys)) is not None
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
            written = yield from _written(due, alone=alone, dry_run=dry_run)
            imported += written
            kept += len(due) - written
        done += len(batch)
        if progress:
            progress(done, len(legacy))
    return ImportResult(
        total=len(legacy), imported=imported, expired=expired, kept=kept, rejected=len(rejects), rejects=tuple(rejects)
    )


def _written(due: list[tuple[bytes, str, int]], *, alone: bool, dry_run: bool) -> Op[int]:
    """Write these redis keys, session IDs and expiry times; how many were written, or would be."""
    if dry_run:
        return (yield [Command(("EXISTS", redis_key)) for redis_key, _, _ in due]).count(0)
    if alone:
        redis_keys = tuple(redis_key for redis_key, _, _ in due)
        args = tuple(arg for _, session_id, until_ms in due for arg in (session_id, until_ms))
        replies = yield [Command(args, script=IMPORT, redis_keys=redis_keys)]
        written = replies[0]
    else:
        # On a cluster each key has its own slot, behind some proxies its own server, and a script can't reach more than one.
        replies = yield [
            Command(("SET", redis_key, session_id, "PXAT", until_ms, "NX")) for redis_key, session_id, until_ms in due
        ]
        written = [reply is not None for reply in replies]
    there = [item for item, wrote in zip(due, written, strict=True) if not wrote]
    if there and isinstance(replies, Resent):
        return len(due) - len(there) + (yield from _written_before(there))
    return len(due) - len(there)


def _written_before(there: list[tuple[bytes, str, int]]) -> Op[int]:
    """How many of these, which existed when they were sent again, hold what was sent: an earlier sending wrote them.

    A conversation that was live with the same ID before is counted too; what Redis holds is the same.
    """
    # One by one: MGET can't be used on a cluster, and a key of the wrong type is refused and is not one of these.
    found = yield [Command(("GET", redis_key), optional=True) for redis_key, _, _ in there]
    for reply in found:
        if isinstance(reply, StoreUnavailable):
            raise reply
    return sum(reply == session_id.encode() for reply, (_, session_id, _) in zip(found, there, strict=True))


def export_entries(
    settings: StoreSettings, add: Callable[[str, str, int], None], progress: Progress | None = None
) -> Op[ExportResult]:
    """Pass each live session to `add(key, session_id, used_at_ms)`, sorted by key, once even if the scan finds it twice."""
    settings = yield from agreed(settings)
    scan = Scan(settings, progress)
    skipped = 0
    with Sorter() as sorter:
        while (pages := (yield from scan.next_pages())) is not None:
            for page in pages:
                sessions = list(session_rows(settings, page))
                skipped += len(page.redis_keys) - len(sessions)
                sorter.put(map(_ROW, sessions))
        exported = not_timed = 0
        for key, session_id, used_at_ms, idle_ms in sorter:
            add(key, session_id, used_at_ms)
            exported += 1
            not_timed += idle_ms is None
    return ExportResult(exported=exported, not_timed=not_timed, skipped=skipped, approximate=not scan.exact)


class Sorter:
    """Sorts rows by key and drops duplicates: on disk, so that memory does not grow with their number. Used in a `with`.

    Its file has no name and mode 0600: it disappears with this process, however that ends.
    """

    def __enter__(self) -> Self:
        import sqlite3  # noqa: PLC0415 - a tenth of this package's import time, and only export needs it

        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-{_CACHE_KIB};"
            "CREATE TABLE row (key TEXT, session_id TEXT, used_at_ms INTEGER, idle_ms INTEGER);"
            "BEGIN"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def put(self, rows: Iterable[Row]) -> None:
        """Add rows; of those with the same key the last one stays."""
        self._database.executemany("INSERT INTO row VALUES (?, ?, ?, ?)", rows)

    def __iter__(self) -> Iterator[Row]:
        # Sorting once at the end takes half the time of a table that is kept sorted.
        before = None
        for row in self._database.execute("SELECT * FROM row ORDER BY key, rowid DESC"):
            if row[0] != before:
                before = row[0]
                yield row
