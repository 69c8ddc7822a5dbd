"""How things look: text made safe, durations, JSON, tables, progress bars. Rich is imported where a terminal needs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final

from redis_sessions.text import safe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from redis_sessions.operations.scan import Progress, SessionRow

UNKNOWN: Final = "-"
# A URL that was given in the place of a key or a file may hold a password; as a path it has but one slash.
_LOGIN = re.compile(r":/{1,2}[^\s/]\S*@")
APPROXIMATE: Final = "approximate: cluster slots moved, the server changed or INFO is denied, so keys may have been missed"
PLAIN_WIDTH: Final = 10_000


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a person looks at this stream. A process may have been started without it."""
    return stream is not None and stream.isatty()


def put(line: str) -> None:
    """Write a line of data to stdout."""
    if sys.stdout is not None:
        sys.stdout.write(f"{line}\n")


def put_json(value: Any) -> None:
    """Write a value to stdout as a line of JSON, in ASCII: exact, and safe at a terminal."""
    put(json.dumps(value))


def put_sessions(rows: Iterable[SessionRow]) -> None:
    """Same as put_json of each row's object, in a third of the time: a million of them is nothing unusual."""
    if sys.stdout is None:
        return
    encode, write = json.JSONEncoder().encode, sys.stdout.write
    for key, session_id, idle_ms, expires_in_ms, _ in rows:
        # A session ID holds nothing that would need escaping.
        idle, expires = ("null" if time is None else time for time in (idle_ms, expires_in_ms))
        write(f'{{"key": {encode(key)}, "session_id": "{session_id}", "idle_ms": {idle}, "expires_in_ms": {expires}}}\n')


def complain(message: str) -> None:
    """Say on stderr, in one line, what went wrong or should be known."""
    _tell(f"redis-sessions: {_LOGIN.sub('://…@', safe(message))}\n")


def remark(message: str) -> None:
    """Say something on stderr that only a person wants to know; silent when nobody looks."""
    if is_terminal(sys.stderr):
        _tell(f"{safe(message)}\n")


def _tell(line: str) -> None:
    # There is nobody left to tell that stderr is gone.
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()


def cell(text: str, style: str = "") -> Text:
    """Text for a table, made safe and never read as markup."""
    from rich.text import Text

    return Text(safe(text), style=style)


def display(*parts: RenderableType) -> None:
    """Write to stdout what Rich can draw, a blank line between: coloured at a terminal, elsewhere plain and unfolded."""
    from rich.console import Console

    spaced = [piece for part in parts for piece in (part, "")][:-1]
    if is_terminal(sys.stdout):
        Console(highlight=False, markup=False, emoji=False).print(*spaced)
        return
    plain = Console(width=PLAIN_WIDTH, no_color=True, highlight=False, markup=False, emoji=False)
    with plain.capture() as captured:
        plain.print(*spaced)
    for line in captured.get().splitlines():
        put(line.rstrip())


@contextmanager
def progress(task: str) -> Iterator[Progress | None]:
    """A progress bar on stderr for as long as the block runs; None where nobody would see it."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(number, completed=done, total=total)
