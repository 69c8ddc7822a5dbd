"""The commands import and export, between Redis and a sessions.json."""

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import Options, on_a_store, value
from redis_sessions.errors import InvalidSettings
from redis_sessions.text import count, safe

if TYPE_CHECKING:
    from redis_sessions.legacy.transfer import AssumeUsedAt

# As milliseconds this is March 1973, as seconds the year 5138: a smaller number is not meant as milliseconds.
EARLIEST_MS: Final = 10**11
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_INSTANTS: Final = "write mtime, 2026-11-22T09:30:00+01:00, or milliseconds since 1970 such as 1795336200000"

STANDARD: Final = Path("-")

Source = Annotated[Path, typer.Argument(metavar="FILE", help="A sessions.json; - is standard input.")]
Destination = Annotated[
    Path, typer.Argument(metavar="FILE", help="Where to write; replaced if it exists; - is standard output.")
]
UsedAt = Annotated[
    str | None,
    value(
        "--assume-used-at",
        "mtime|INSTANT",
        "When entries without a time were last used: mtime for when FILE was written, ISO 8601, or milliseconds "
        "since 1970. Without it they count as expired.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing to Redis; report what would be done.")]
Rejects = Annotated[
    Path | None,
    value("--rejects", "FILE", "Where to write rejected entries, to be fixed and imported."),
]


@on_a_store
def import_(
    at: Options, file: Source, *, assume_used_at: UsedAt = None, dry_run: DryRun = False, rejects: Rejects = None
) -> int:
    """Import a sessions.json, with a verdict for every entry.

    The file is an object from conversation keys to session IDs, or to records of "id" and "last_used_at" (milliseconds since
    1970). An entry that was used within the max age is imported for the rest of it; one that was used before that is
    expired; a live session ID that Redis has already is kept; an invalid entry is rejected. Times are compared with the
    server's clock. Importing a file again changes nothing.

    The file of rejects is written only if there are any, also on a dry run.

    Examples:
      redis-sessions import --dry-run sessions.json
      redis-sessions import sessions.json --assume-used-at mtime --rejects rejects.json
      redis-sessions import sessions.json --json | jq .imported
      ssh old-host cat sessions.json | redis-sessions import -
    """
    from redis_sessions.legacy import file as legacy

    assumed = None if assume_used_at is None else used_at(assume_used_at)
    if file == STANDARD and assumed == "mtime":
        raise InvalidSettings("standard input has no modification time", remedy=_INSTANTS)
    file = Path("/dev/stdin") if file == STANDARD else file
    if rejects is not None and rejects.absolute().resolve() == file.absolute().resolve():
        raise InvalidSettings("--rejects names the file that is imported", remedy="name another")
    with at.store() as store, show.progress("importing") as progress:
        result = store.import_legacy(file, assume_used_at=assumed, dry_run=dry_run, progress=progress)
    if at.as_json:
        show.put_json(result.model_dump(mode="json", exclude={"rejects": {"__all__": {"source"}}}))
    else:
        tables.show_import(result, dry_run=dry_run)
    if rejects is not None and result.rejects:
        legacy.write_rejects(rejects, (reject.source for reject in result.rejects))
        show.complain(f"rejected entries are in {rejects}")
    elif rejects is not None:
        show.complain(f"nothing was rejected, {rejects} was not written")
    return exits.PARTLY if result.rejected else exits.DONE


@on_a_store
def export(at: Options, file: Destination) -> int:
    """Write the live sessions to a sessions.json.

    All of them or none, readable only by you (mode 0600), to be imported again; a link or a pipe stays what it is. A session
    that never expires, or has more time left than the max age, is written as used just now. Keys without a session ID are
    left out; stderr says how many.

    Examples:
      redis-sessions export sessions.json
      redis-sessions export --namespace sessions.claude@build-7 build-7.json
      redis-sessions export - | gzip > sessions.json.gz
    """
    if file == STANDARD and at.as_json:
        raise InvalidSettings("standard output is used for the sessions", remedy="leave out --json, or name a file")
    with at.store() as store, show.progress("exporting") as progress:
        result = store.export(Path("/dev/stdout") if file == STANDARD else file, progress)
    exported = f"exported {count(result.exported, 'session')}"
    at.put_result(
        result, lambda: show.complain(exported) if file == STANDARD else show.put(f"{exported} to {safe(str(file))}")
    )
    if result.not_timed:
        show.complain(f"{count(result.not_timed, 'session')} of unknown age, written as used just now")
    if result.skipped:
        show.complain(f"{count(result.skipped, 'key')} left out, without a session ID: see redis-sessions report")
    return exits.PARTLY if result.approximate else exits.DONE


def used_at(text: str) -> "AssumeUsedAt":
    """The time of last use given as `--assume-used-at`: "mtime", or milliseconds since 1970. Raises InvalidSettings."""
    if text == "mtime":
        return "mtime"
    if _INTEGER.fullmatch(text):
        instant_ms = int(text)
        if instant_ms < EARLIEST_MS:
            raise InvalidSettings("--assume-used-at looks like seconds, not milliseconds", remedy=_INSTANTS)
        return instant_ms
    try:
        instant = datetime.fromisoformat(text)
        instant_ms = round(instant.timestamp() * 1000)
    except (ValueError, OverflowError, OSError):
        instant_ms = 0
    if instant_ms < EARLIEST_MS:
        raise InvalidSettings("--assume-used-at is not a time since 1973", remedy=_INSTANTS)
    if instant.tzinfo is None:
        local = instant.astimezone().isoformat(timespec="seconds")
        show.complain(f"--assume-used-at has no time zone and is taken as local, {local}")
    return instant_ms
