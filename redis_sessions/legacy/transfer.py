"""Imports sessions.json into Redis, with an outcome for each entry, and exports it again. Never overwrites a live ID."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Final, Literal, Self, TypeAlias

from pydantic import BaseModel

from redis_sessions.errors import FileNotWritten, InvalidSettings, SessionStoreError, StoreUnavailable
from redis_sessions.keys import Keys
from redis_sessions.legacy.file import LegacyFile, expires_at_ms
from redis_sessions.legacy.shape import SINCE_1973_MS
from redis_sessions.operations.command import PRIMARIES, Command, Op, Resent
from redis_sessions.operations.conversation import Operations
from redis_sessions.operations.scan import Page, Progress, Scan, agreed, check_progress, sole_server
from redis_sessions.settings import StoreSettings

AssumeUsedAt: TypeAlias = Literal["mtime"] | int | None
# Conversation key, session ID, time of last use, and 1 if that is not known, else 0.
Row: TypeAlias = tuple[str, str, int, int]

_logger = logging.getLogger(__name__)
_CACHE_KIB: Final = 4_096  # more takes SQLite longer to sort
_BATCH: Final = 1_000
_INSERTED: Final = 200  # SQLite before 3.32 takes at most 999 values in a statement


class Reject(BaseModel, frozen=True, defer_build=True):
    """An entry that was not imported.

    Attributes:
        key: its conversation key, as it stands in the file.
        reason: why.
        source: its own JSON text, unaltered: name and value, or the value alone if it stands in a list.
        within: the names that lead to the map or list that it stands in.
    """

    key: str
    reason: str
    source: str
    within: tuple[str, ...] = ()


class ImportResult(BaseModel, frozen=True, defer_build=True):
    """The outcome of an import; imported + expired + kept + rejected = total.

    Attributes:
        total: entries in the file.
        imported: written with their remaining TTL; in a dry run, those that would be.
        expired: unused for longer than the max age; not written.
        kept: the conversation was live in Redis already, and was left as it is.
        rejected: entries with a problem; not written.
        rejects: each of the rejected, in the order of the file.
        times: by what times of last use were given in ("seconds", "ISO 8601"): how many of the entries without a problem.
    """

    total: int
    imported: int
    expired: int
    kept: int
    rejected: int
    rejects: tuple[Reject, ...]
    times: dict[str, int] = {}


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
    ops: Operations,
    legacy: LegacyFile,
    assume_used_at: AssumeUsedAt = None,
    progress: Progress | None = None,
    *,
    accepts: Callable[[str], bool] | None = None,
    dry_run: bool = False,
) -> Op[ImportResult]:
    """Write what has not expired, one batch a round trip; docs/moving.md lists the outcome for each kind of entry.

    "Now" is the server's time, read for every batch, so a client's wrong clock changes no TTL. If it is interrupted, a
    warning says how far it got. `accepts` says whether the agent can have a session of an ID. Raises InvalidSettings for an
    `assume_used_at` that is not a time.
    """
    check_progress(progress)
    assumed_ms = legacy.mtime_ms if assume_used_at == "mtime" else assume_used_at
    if assume_used_at == "mtime" and assumed_ms is None:
        raise InvalidSettings("mtime needs a regular file", setting="assume_used_at", remedy="give a time")
    if assume_used_at not in ("mtime", None) and (type(assumed_ms) is not int or assumed_ms < SINCE_1973_MS):
        seconds = type(assumed_ms) is int and assumed_ms >= 0
        problem = "looks like seconds, not milliseconds" if seconds else "is not a time in milliseconds"
        raise InvalidSettings(problem, setting="assume_used_at", remedy='give "mtime", milliseconds since 1970, or None')
    keys, max_age_ms = ops.keys, ops.settings.session_max_age_ms
    [nodes] = yield [PRIMARIES]
    # Only where one server is proven to have all keys can one connection write them all.
    alone = nodes == [None] and (yield from sole_server(keys)) is not None
    imported = expired = kept = done = sent = 0
    rejects: list[Reject] = []
    times: Counter[str] = Counter()
    entries = iter(legacy)
    try:
        while batch := list(islice(entries, ops.settings.batch_size)):
            [(seconds, microseconds)] = yield [Command(("TIME",))]
            now_ms = int(seconds) * 1000 + int(microseconds) // 1000
            due: list[tuple[str, str, int]] = []
            units = []
            for entry in batch:
                until = entry.problem or expires_at_ms(entry, now_ms, max_age_ms, assumed_ms)
                if accepts is not None and not isinstance(until, str) and not accepts(entry.session_id):
                    until = f"{entry.session_id!r} does not have the form of this agent's session IDs"
                if isinstance(until, str):
                    rejects.append(Reject(key=entry.key, reason=until, source=entry.source, within=entry.within))
                    continue
                if entry.used_at_ms is not None:
                    units.append(entry.unit)
                if until <= now_ms:
                    expired += 1
                else:
                    due.append((entry.key, entry.session_id, until))
            times.update(units)
            if due:
                sent += len(due)
                written = yield from _written(keys, due, alone=alone, dry_run=dry_run)
                imported, kept = imported + written, kept + len(due) - written
                if written and not dry_run and ops.compares_max_age():
                    yield from ops.compare_max_age()
            done += len(batch)
            if progress:
                progress(done, len(legacy))
    except BaseException:
        if sent and not dry_run:
            early = "the import ended early: of %d entries at least %d were written; import the file again for the rest"
            _logger.warning(early, len(legacy), imported)
        raise
    return ImportResult(
        total=len(legacy),
        imported=imported,
        expired=expired,
        kept=kept,
        rejected=len(rejects),
        rejects=tuple(rejects),
        times=dict(times),
    )


def _written(keys: Keys, due: list[tuple[str, str, int]], *, alone: bool, dry_run: bool) -> Op[int]:
    """Write these session IDs, with their expiry times, by conversation key; how many were written, or would be."""
    redis_keys = keys.session_ids([key for key, _, _ in due])
    if dry_run:
        return (yield [Command(("EXISTS", redis_key)) for redis_key in redis_keys]).count(0)
    batch = [
        ("SET", redis_key, session_id, "PXAT", str(until_ms), "NX")
        for redis_key, (_, session_id, until_ms) in zip(redis_keys, due, strict=True)
    ]
    if alone:  # a script that sets them all takes the server 1.4 times as long
        replies = yield [Command((), batch=batch)]
        written = replies[0]
        for reply in written:
            if isinstance(reply, SessionStoreError):
                raise reply
    else:
        # On a cluster each key has its own slot, behind some proxies its own server.
        replies = written = yield [Command(words) for words in batch]
    count: int = len(due) - written.count(None)
    if count < len(due) and isinstance(replies, Resent):
        there = [
            (redis_key, session_id)
            for redis_key, (_, session_id, _), reply in zip(redis_keys, due, written, strict=True)
            if reply is None
        ]
        count += yield from _written_before(there)
    return count


def _written_before(there: list[tuple[bytes, str]]) -> Op[int]:
    """How many of these, which existed when they were sent again, hold what was sent: an earlier sending wrote them.

    A conversation that was live with the same ID before is counted too; what Redis holds is the same.
    """
    # One by one: MGET can't be used on a cluster, and a key of the wrong type is refused and is not one of these.
    found = yield [Command(("GET", redis_key), optional=True) for redis_key, _ in there]
    for reply in found:
        if isinstance(reply, StoreUnavailable):
            raise reply
    return sum(reply == session_id.encode() for reply, (_, session_id) in zip(found, there, strict=True))


def export_entries(
    settings: StoreSettings, add: Callable[[list[Row]], None], progress: Progress | None = None
) -> Op[ExportResult]:
    """Pass the live sessions to `add`, many at a time, sorted by key, each once even if the scan finds it twice."""
    scan, keys = Scan(settings, progress), Keys(settings.namespace)
    max_age_ms = (yield from agreed(settings)).session_max_age_ms
    skipped = 0
    with Sorter() as sorter:

        def put(page: Page) -> None:
            nonlocal skipped
            rows = page_rows(keys, max_age_ms, page)
            skipped += len(page.redis_keys) - len(rows)
            sorter.put(rows)

        yield from scan.each(put)
        exported = not_timed = 0
        for rows in sorter.batches():
            add(rows)
            exported += len(rows)
            not_timed += sum([row[3] for row in rows])
    return ExportResult(exported=exported, not_timed=not_timed, skipped=skipped, approximate=not scan.exact)


def page_rows(keys: Keys, max_age_ms: int, page: Page) -> list[Row]:
    """The live sessions of a page. Same as those of `session_rows`, in a third of the time."""
    names, now_ms = page.conversations(keys), page.now_ms
    expiring_now_ms = now_ms - max_age_ms  # when a session was last used that expires now
    return [
        (key, value.decode(), expiring_now_ms + pttl_ms, 0)
        if 0 <= pttl_ms <= max_age_ms
        else (key, value.decode(), now_ms, 1)
        for key, pttl_ms, value in zip(names, page.pttls_ms, page.values, strict=True)
        if key is not None and value is not None and pttl_ms >= -1
    ]


class Sorter:
    """Sorts rows by key and drops duplicates: on disk, so that memory does not grow with their number. Used in a `with`.

    Its file has no name and mode 0600: it disappears with this process, however that ends. Raises FileNotWritten.
    """

    def __enter__(self) -> Self:
        import sqlite3  # noqa: PLC0415 - a tenth of this package's import time, and only export needs it

        self._failure = sqlite3.OperationalError
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.executescript(
            f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA page_size=16384; PRAGMA cache_size=-{_CACHE_KIB};"
            "CREATE TABLE row (key TEXT, session_id TEXT, used_at_ms INTEGER, not_timed INTEGER);"
            "BEGIN"
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._database.close()
        if isinstance(error, self._failure):
            problem = f"the temporary directory has no room, or can't be used ({error})"
            raise FileNotWritten(problem, remedy="set TMPDIR to one that has room") from None

    def put(self, rows: Iterable[Row]) -> None:
        """Add rows; of those with the same key the last one stays."""
        pending = iter(rows)
        while some := list(islice(pending, _INSERTED)):
            # In one statement they take two thirds of the time of executemany.
            statement = "INSERT INTO row VALUES (?, ?, ?, ?)" + ", (?, ?, ?, ?)" * (len(some) - 1)
            self._database.execute(statement, list(chain.from_iterable(some)))

    def batches(self) -> Iterator[list[Row]]:
        """All rows in order, many at a time."""
        # Sorting once at the end takes half the time of a table that is kept sorted.
        sorted_rows = self._database.execute("SELECT * FROM row ORDER BY key, rowid DESC")
        before = None
        while rows := sorted_rows.fetchmany(_BATCH):
            keys = [row[0] for row in rows]
            if keys[0] == before or len(set(keys)) < len(keys):
                rows = [row for row, previous in zip(rows, [before, *keys], strict=False) if row[0] != previous]
            before = keys[-1]
            yield rows
