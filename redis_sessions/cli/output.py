"""Output: lines and JSON on stdout, messages on stderr, tables and progress bars. Rich is imported only for a terminal."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any, Final

from redis_sessions.operations.scan import INEXACT
from redis_sessions.operations.text import safe

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from redis_sessions.operations.scan import Progress, SessionRow

UNKNOWN: Final = "-"
# A URL that was given as a key or a file may contain a password, even one with spaces; as a path it has only one slash.
_LOGIN = re.compile(r":/{1,2}[^\s/](?:(?!:/).)*@")
APPROXIMATE: Final = f"approximate: {INEXACT}"
PLAIN_WIDTH: Final = 10_000
# What is shown of a record, beside the session ID that stands before it.
RECORDED: Final = (
    *("agent", "host", "home", "directory", "started_ms", "used_ms", "turns", "context_tokens", "failures", "complete"),
)


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal. It is None if the process was started without it."""
    return stream is not None and stream.isatty()


def put(line: str, *, flush: bool = False) -> None:
    """Write a line of data to stdout; `flush` for a program that reads it while this one runs."""
    if sys.stdout is not None:
        sys.stdout.write(f"{line}\n")
        if flush:
            sys.stdout.flush()


def json_encoder() -> Callable[[Any], str]:
    """A function from a value to its JSON, in one line: exact, and safe at a terminal.

    Unicode stays readable where stdout can take it; what is not printable is escaped.
    """
    unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "").lower()
    encode = json.JSONEncoder(ensure_ascii=not unicode).encode

    def encode_safely(value: Any) -> str:
        text = encode(value)
        if text.isprintable():
            return text
        return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)

    return encode_safely


def put_json(value: Any, *, flush: bool = False) -> None:
    """Write a value to stdout as a line of JSON."""
    put(json_encoder()(value), flush=flush)


def put_sessions(rows: Iterable[SessionRow], namespace: str) -> None:
    """Write each row as a line of JSON, in a third of the time of `put_json`: there may be a million."""
    if sys.stdout is None:
        return
    encode, write, now_s = json_encoder(), sys.stdout.write, time.time
    for key, session_id, idle_ms, expires_in_ms, _, record in rows:
        # No character of a namespace or a session ID has to be escaped.
        idle = "null" if idle_ms is None else idle_ms
        expires = "null" if expires_in_ms is None else expires_in_ms
        known = "null" if record is None else encode({name: getattr(record, name) for name in RECORDED})
        write(
            f'{{"namespace": "{namespace}", "at_ms": {int(now_s() * 1000)}, "key": {encode(key)}, '
            f'"session_id": "{session_id}", "idle_ms": {idle}, "expires_in_ms": {expires}, '
            f'"record": {known}}}\n'
        )


def complain(message: str) -> None:
    """Say on stderr, in one line, what went wrong or should be known."""
    _write_to_stderr(f"redis-sessions: {_LOGIN.sub('://…@', safe(message))}\n")


def remark(message: str) -> None:
    """Say something on stderr that only a person wants to know, if it is a terminal."""
    if is_terminal(sys.stderr):
        _write_to_stderr(f"{safe(message)}\n")


def _write_to_stderr(line: str) -> None:
    # If stderr is lost there is no place to report that.
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(line)
            sys.stderr.flush()


class _Warnings(logging.Handler):
    def __init__(self, say: Callable[[str], None], level: int, *, once: bool) -> None:
        super().__init__(level)
        self._say, self._once = say, once
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if not (self._once and text in self._said):
            self._said.add(text)
            self._say(text)


@contextmanager
def logged_warnings(say: Callable[[str], None], *, once: bool = False) -> Iterator[None]:
    """Pass the warnings that the store logs to `say` while the block runs; with `once`, each text only once."""
    with _passed_on("redis_sessions", _Warnings(say, logging.WARNING, once=once)):
        yield


@contextmanager
def logged_tries(say: Callable[[str], None]) -> Iterator[None]:
    """Pass to `say`, once each, why the store still tries to reach its server while the block runs."""
    with _passed_on("redis_sessions.client", _Warnings(say, logging.INFO, once=True)) as logger:
        logger.setLevel(logging.INFO)
        yield


@contextmanager
def _passed_on(name: str, handler: logging.Handler) -> Iterator[logging.Logger]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.addHandler(handler)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def cell(text: str, style: str = "") -> Text:
    """Text for a table, made safe and never read as markup."""
    from rich.text import Text

    return Text(safe(text), style=style)


def display(*parts: RenderableType) -> None:
    """Write to stdout what Rich can render, with blank lines between: styled at a terminal, else plain and unwrapped."""
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
    """A progress bar on stderr while the block runs; None if that is not a terminal."""
    if not is_terminal(sys.stderr):
        yield None
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (
        *(bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TaskProgressColumn()),
        bars.TimeRemainingColumn(compact=True),
    )
    with bars.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        number = bar.add_task(task, total=None)
        yield lambda done, total: bar.update(number, completed=done, total=total)
