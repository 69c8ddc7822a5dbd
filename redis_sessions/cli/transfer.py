"""The commands import and export, between Redis and a sessions.json."""

import json
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import Options, on_a_store, register_users_runtimes, value
from redis_sessions.errors import FileNotWritten, InvalidSettings, LegacyFileError
from redis_sessions.text import count, safe

if TYPE_CHECKING:
    from redis_sessions.legacy.shape import Shape
    from redis_sessions.legacy.transfer import AssumeUsedAt

# As milliseconds this is March 1973, as seconds the year 5138: a smaller number is not meant as milliseconds.
EARLIEST_MS: Final = 10**11
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_INSTANTS: Final = "write mtime, 2026-11-22T09:30:00+01:00, or milliseconds since 1970 such as 1795336200000"

STANDARD: Final = Path("-")

Source = Annotated[
    Path, typer.Argument(metavar="FILE", help="A sessions.json, or another tool's file; - is standard input.")
]
Destination = Annotated[
    Path, typer.Argument(metavar="FILE", help="Where to write; replaced if it exists; - is standard output.")
]
UsedAt = Annotated[
    str | None,
    value(
        "--assume-used-at",
        "mtime|INSTANT",
        "When entries without a time were last used: mtime for when FILE was written, ISO 8601, or milliseconds "
        "since 1970. Without it they are expired in a sessions.json, and rejected in another tool's file.",
    ),
]
From = Annotated[
    str | None,
    value("--from", "TOOL", "Tool that wrote FILE: openclaw, … (redis-sessions docs moving); or give the options below."),
]
Entries = Annotated[
    str | None,
    value("--entries", "PATH", "Where the map or list of conversations is, such as state.chats; * stands for any name."),
]
KeyField = Annotated[
    str | None,
    value("--key-field", "PATH", "Where an entry has its conversation key.", show_default="@key, its name in the map"),
]
IDField = Annotated[
    list[str] | None,
    value("--id-field", "PATH", "Where it has its session ID; the first one that is there.", show_default="id"),
]
UsedField = Annotated[
    list[str] | None,
    value("--used-field", "PATH", "Where it has its time of last use, in the same way.", show_default="last_used_at"),
]
Agent = Annotated[str | None, value("--agent", "NAME", "Reject IDs that can't be of this runtime: claude, codex, …")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write nothing to Redis; report what would be done.")]
Rejects = Annotated[
    Path | None,
    value("--rejects", "FILE", "Where to write rejected entries, to be fixed and imported."),
]


@on_a_store
def import_(
    at: Options,
    file: Source,
    *,
    from_: From = None,
    entries: Entries = None,
    key_field: KeyField = None,
    id_field: IDField = None,
    used_field: UsedField = None,
    agent: Agent = None,
    assume_used_at: UsedAt = None,
    dry_run: DryRun = False,
    rejects: Rejects = None,
) -> int:
    """Import a sessions.json, or the file of another tool.

    A sessions.json is an object from conversation keys to session IDs, or to records of "id" and "last_used_at". An entry
    that was used within the max age is imported for the rest of it; one that was used before that is expired; a live session
    ID that Redis has already is kept; an invalid entry is rejected. Times may be seconds, milliseconds, microseconds or
    ISO 8601, and are compared with the server's clock. Importing a file again changes nothing.

    A file of another shape is refused, with the options that read it.

    The file of rejects is written only if there are any, also on a dry run.

    Examples:
      redis-sessions import --dry-run sessions.json
      redis-sessions import sessions.json --assume-used-at mtime --rejects rejects.json
      redis-sessions import --from openclaw ~/.openclaw/agents/main/sessions/sessions.json
      redis-sessions import chats.json --entries state.chats --id-field sessionId --used-field updatedAt --agent claude
      redis-sessions import sessions.json --json | jq .imported
      ssh old-host cat sessions.json | redis-sessions import -
    """
    from redis_sessions.legacy import file as legacy
    from redis_sessions.legacy.atomic_file import check_writable

    assumed = None if assume_used_at is None else used_at(assume_used_at)
    if file == STANDARD and assumed == "mtime":
        raise InvalidSettings("standard input has no modification time", remedy=_INSTANTS)
    shape = _shape(from_, entries=entries, key_field=key_field, id_fields=id_field, used_fields=used_field)
    if agent is not None:
        register_users_runtimes()
    file = Path("/dev/stdin") if file == STANDARD else file
    if rejects is not None and rejects.absolute().resolve() == file.absolute().resolve():
        raise InvalidSettings("--rejects names the file that is imported", remedy="name another")
    if rejects is not None:
        check_writable(rejects)
    with at.store() as store, show.progress("importing") as progress, show.logged_warnings(show.complain):
        try:
            result = store.import_legacy(
                file, shape=shape, agent=agent, assume_used_at=assumed, dry_run=dry_run, progress=progress
            )
        except LegacyFileError as error:
            raise LegacyFileError(
                error.message, line=error.line, column=error.column, remedy=_in_flags(error.remedy or "")
            ) from None
    result = result.model_copy(
        update={"rejects": tuple([it.model_copy(update={"reason": _in_flags(it.reason)}) for it in result.rejects])}
    )
    if at.as_json:
        at.put_json(result.model_dump(mode="json", exclude={"rejects": {"__all__": {"source", "within"}}}))
    else:
        tables.show_import(result, dry_run=dry_run)
    if rejects is not None and result.rejects:
        legacy.write_rejects(rejects, ((reject.within, reject.source) for reject in result.rejects))
        show.complain(f"rejected entries are in {rejects}")
    elif rejects is not None:
        show.complain(f"nothing was rejected, {rejects} was not written")
    return exits.PARTLY if result.rejected else exits.DONE


def _shape(name: str | None, **fields: Any) -> "Shape":
    """The known shape of that name, or that of a sessions.json, with what else was given. Raises InvalidSettings."""
    from redis_sessions.legacy.shape import Shape, as_shape

    given = {field: value for field, value in fields.items() if value}
    return Shape(**as_shape(name).model_dump() | given) if given else as_shape(name)


def _in_flags(text: str) -> str:
    """What a hint of the library says in keyword arguments, in options."""
    text = re.sub(r"(id|used)_fields=\(([^()]*?),?\)", lambda it: _flags(f"{it[1]}-field", f"[{it[2]}]"), text)
    text = re.sub(r'(entries|key_field)=("[^"]*")', lambda it: _flags(it[1].replace("_", "-"), f"[{it[2]}]"), text)
    text = re.sub(r'shape=("[^"]*"(?: or "[^"]*")*)', lambda it: "--from " + it[1].replace('"', ""), text)
    text = re.sub(r"\bShape\((--[^()]*)\)", lambda it: it[1].replace(", --", " --"), text)
    return text.replace("assume_used_at", "--assume-used-at").replace("entries must", "--entries must")


def _flags(name: str, values: str) -> str:
    return " ".join(f"--{name} {shlex.quote(value)}" for value in json.loads(values))


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
        try:
            result = store.export(Path("/dev/stdout") if file == STANDARD else file, progress)
        except FileNotWritten as error:
            if file == STANDARD and isinstance(error.__context__, BrokenPipeError):
                raise error.__context__ from None  # its reader has read enough
            raise
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
