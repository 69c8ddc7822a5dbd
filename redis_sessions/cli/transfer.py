"""The commands import and export, between Redis and a sessions.json."""

import re
import shlex
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli import tables
from redis_sessions.cli.options import Options, on_a_store, register_users_runtimes, value
from redis_sessions.errors import FileNotWritten, InvalidSettings, LegacyFileError
from redis_sessions.operations.text import count, safe

if TYPE_CHECKING:
    from redis_sessions.legacy.shape import Shape
    from redis_sessions.legacy.transfer import AssumeUsedAt

_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")

STANDARD: Final = Path("-")
_ASSUMED: Final = (
    "When entries without a time were last used: mtime for when FILE was written, ISO 8601, or milliseconds since 1970. "
    "Without it they are expired in a sessions.json, and rejected in another tool's file."
)


@on_a_store
def import_(
    at: Options,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A sessions.json, or another tool's file; - is standard input.")
    ],
    *,
    from_: Annotated[
        str | None,
        value(
            "--from", "TOOL", "Tool that wrote FILE: openclaw, … (redis-sessions docs moving); or give the options below."
        ),
    ] = None,
    entries: Annotated[
        str | None,
        value("--entries", "PATH", "Where the map or list of conversations is, such as state.chats; * stands for any name."),
    ] = None,
    key_field: Annotated[
        str | None,
        value("--key-field", "PATH", "Where an entry has its conversation key.", show_default="@key, its name in the map"),
    ] = None,
    id_field: Annotated[
        list[str] | None,
        value("--id-field", "PATH", "Where it has its session ID; the first one that is there.", show_default="id"),
    ] = None,
    used_field: Annotated[
        list[str] | None,
        value("--used-field", "PATH", "Where it has its time of last use, in the same way.", show_default="last_used_at"),
    ] = None,
    agent: Annotated[
        str | None, value("--agent", "NAME", "Reject IDs that can't be of this runtime: claude, codex, …")
    ] = None,
    assume_used_at: Annotated[str | None, value("--assume-used-at", "mtime|INSTANT", _ASSUMED)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing to Redis; report what would be done.")] = False,
    rejects: Annotated[
        Path | None, value("--rejects", "FILE", "Where to write rejected entries, to be fixed and imported.")
    ] = None,
) -> int:
    """Import a sessions.json, or the file of another tool.

    A sessions.json is an object from conversation keys to session IDs, or to records of "id" and "last_used_at". An entry
    that was used within the max age is imported for the rest of it; one that was used before that is expired; a live session
    ID that Redis has already is kept; an invalid entry is rejected. Times may be seconds, milli-, micro- or nanoseconds, or
    ISO 8601, and are compared with the server's clock. Importing a file again overwrites nothing, but brings back what was
    deleted or refused meanwhile.

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
        raise InvalidSettings("mtime does not go with standard input", setting="assume_used_at")
    shape = _shape(from_, entries=entries, key_field=key_field, id_fields=id_field, used_fields=used_field)
    if agent is not None:
        register_users_runtimes()
    file = Path("/dev/stdin") if file == STANDARD else file
    if rejects is not None:
        if rejects == STANDARD:
            raise InvalidSettings("standard output is used for the result", remedy="name a file for --rejects")
        if _is_same(rejects, file):
            raise InvalidSettings("--rejects names the file that is imported", remedy="name another")
        check_writable(rejects)
    with at.store() as store, show.progress("importing") as progress, show.logged_warnings(show.complain):
        try:
            result = store.import_legacy(
                file, shape=shape, agent=agent, assume_used_at=assumed, dry_run=dry_run, progress=progress
            )
        except LegacyFileError as error:
            if not error.shapes:
                raise
            raise LegacyFileError(
                error.message, remedy=f"read it with {', or '.join(map(_options, error.shapes))}"
            ) from None
    if rejects is not None and result.rejects:
        legacy.write_rejects(rejects, ((reject.within, reject.source) for reject in result.rejects))
    at.put_result(
        result.model_dump(mode="json", exclude={"rejects": {"__all__": {"source", "within"}}}),
        lambda: tables.show_import(result, dry_run=dry_run),
    )
    if rejects is not None and result.rejects:
        show.complain(f"rejected entries are in {rejects}")
    elif rejects is not None:
        show.complain(f"nothing was rejected, {rejects} was not written")
    return exits.PARTLY if result.rejected else exits.DONE


def _is_same(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file. What can't be looked at is not; that is reported where it is opened."""
    with suppress(OSError):
        return first.samefile(second)
    return False


def _shape(name: str | None, **fields: Any) -> "Shape":
    """The known shape of that name, or that of a sessions.json, with what else was given. Raises InvalidSettings."""
    from redis_sessions.legacy.shape import Shape, as_shape

    given = {field: value for field, value in fields.items() if value}
    return Shape(**as_shape(name).model_dump() | given) if given else as_shape(name)


def _options(shape: object) -> str:
    """The options that say what a known shape, by its name, or another one says."""
    from redis_sessions.legacy.shape import Shape

    if not isinstance(shape, Shape):
        return f"--from {shape}"
    options = {"entries": "--entries", "key_field": "--key-field", "id_fields": "--id-field", "used_fields": "--used-field"}
    given = [(options[name], value) for name, value in shape.model_dump(exclude_defaults=True).items()]
    return " ".join(
        f"{option} {shlex.quote(path)}" for option, value in given for path in ([value] if isinstance(value, str) else value)
    )


@on_a_store
def export(
    at: Options,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to write; replaced if it exists; - is standard output.")
    ],
) -> int:
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
    from redis_sessions.legacy.shape import LOCAL, iso_time

    if text == "mtime":
        return "mtime"
    if _INTEGER.fullmatch(text):
        return int(text)
    time = iso_time(text)
    if isinstance(time, str):
        raise InvalidSettings(time, setting="assume_used_at")
    used_at_ms, unit = time
    if unit == LOCAL:
        local = datetime.fromtimestamp(used_at_ms / 1000).astimezone().isoformat(timespec="seconds")
        show.complain(f"--assume-used-at has no time zone and is taken as local, {local}")
    return used_at_ms
