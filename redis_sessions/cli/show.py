"""How things look: text made safe, durations, JSON, tables, progress bars. Rich is imported where a terminal needs it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from redis_sessions.scan import Progress, SessionRow

UNKNOWN: Final = "-"
# A URL that was given in the place of a key or a file may hold a password; as a path it has but one slash.
_LOGIN = re.compile(r":/{1,2}[^\s/]\S*@")
APPROXIMATE: Final = "approximate: cluster slots moved, the server changed or INFO is denied, so keys may have been missed"
PLAIN_WIDTH: Final = 10_000
# From how many milliseconds on which two units are used: 24 h are still hours, as in the settings.
_SCALE: Final = (
    (2 * 86_400_000, "d", 86_400_000, "h", 3_600_000),
    (3_600_000, "h", 3_600_000, "m", 60_000),
    (60_000, "m", 60_000, "s", 1_000),
)


def safe(text: str) -> str:
    r"""Text from Redis, a file or the command line as one line that a terminal can't be driven by.

    Whatever is not printable (control characters, ESC, line breaks, bidi overrides, zero width) becomes its escape, `\x1b`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def duration(milliseconds: int) -> str:
    """A duration for people, in two units at most, rounded down: `3d 4h`, `24h`, `23h 59m`, `45s`, `80ms`."""
    for least_ms, unit, unit_ms, smaller, smaller_ms in _SCALE:
        if milliseconds >= least_ms:
            whole, rest_ms = divmod(milliseconds, unit_ms)
            part = rest_ms // smaller_ms
            return f"{whole}{unit} {part}{smaller}" if part else f"{whole}{unit}"
    return f"{milliseconds // 1000}s" if milliseconds >= 1000 else f"{milliseconds}ms"


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


def count(number: int, thing: str) -> str:
    """A number of things in words: `1 session`, `12,345 sessions`."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
