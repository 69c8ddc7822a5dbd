"""Exit codes, and the one place where an error becomes a line on stderr and one of them."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any, Final

import typer

from redis_sessions import errors
from redis_sessions.cli.output import complain

DONE: Final = 0
PARTLY: Final = 1  # not found, or done in part
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130

# The base of all that typer finds wrong with arguments; it has no public name in all versions since 0.27.
_BadUsage: type[BaseException] = typer.BadParameter.__mro__[1]
_CALLERS_INPUT: Final = (
    errors.InvalidKey,
    errors.InvalidSessionID,
    errors.InvalidSettings,
    errors.FileNotWritten,
    errors.LegacyFileError,
    errors.MissingExtra,
    errors.ServerError,
)
_NOT_AS_EXPECTED: Final = (errors.CorruptValue, errors.InexactScan, errors.LeaseHeld, errors.SessionBusy)
_URL = re.compile(r"://\S+")


def guarded(program: Callable[[], int | None]) -> int:
    """Run a program to its exit code, None being DONE; what it raises is told in one line on stderr."""
    code = _run(program)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        return _output_lost(error)
    return code


def _run(program: Callable[[], int | None]) -> int:
    try:
        return program() or DONE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except errors.SessionStoreError as error:
        complain(str(error))
        return code_of(error)
    except _BadUsage as error:
        complain(_usage_text(error))
        return USAGE
    except OSError as error:
        return _output_lost(error)


def code_of(error: errors.SessionStoreError) -> int:
    """The exit code for an error of the store.

    USAGE where other input would help, PARTLY where Redis holds something else than it should, UNREACHABLE where it can't
    be reached or refuses to serve.
    """
    if isinstance(error, _CALLERS_INPUT):
        return USAGE
    return PARTLY if isinstance(error, _NOT_AS_EXPECTED) else UNREACHABLE


def _usage_text(error: Any) -> str:
    # An argument in the wrong place may be a URL with a password.
    text = _URL.sub("://…", " ".join(error.format_message().split())).removesuffix(".")
    path = error.ctx.command_path if error.ctx else "redis-sessions"
    return f"{text} (see {path} --help)"


def _output_lost(error: OSError) -> int:
    # Else the interpreter would try again at its end, complain in many lines, and exit with 120.
    with contextlib.suppress(OSError, AttributeError):
        descriptor = sys.stdout.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)
    # A reader such as `head` that has seen enough is no trouble.
    if error.errno != errno.EPIPE:
        complain(f"the output can't be written ({error.strerror or type(error).__name__})")
    return PARTLY
