"""Exit codes, and the one place where an error becomes a line on stderr and an exit code."""

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

# The base class of typer's errors about arguments; it has no public name in all versions since 0.27.
_BadUsage: type[BaseException] = typer.BadParameter.__mro__[1]
_PARTIAL_ERRORS: Final = (
    *(errors.CorruptValue, errors.InexactScan, errors.LeaseHeld),
    *(errors.NotReplicated, errors.SessionBusy, errors.SessionElsewhere),
)
# What writing to an open stream, which has no file name in its errors, never ends in.
_NOT_OF_WRITING: Final = {errno.ENOENT, errno.EMFILE, errno.ENFILE}
_URL = re.compile(r"://\S+")


def guarded(program: Callable[[], int | None]) -> int:
    """Run a program and return its exit code; None is DONE, and an expected error is reported in one line on stderr."""
    code = DONE
    try:
        try:
            code = program() or DONE
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except errors.SessionStoreError as error:
            complain("; ".join((str(error), *getattr(error, "__notes__", ()))))
            code = code_of(error)
        except _BadUsage as error:
            complain(_usage_text(error))
            code = USAGE
        except SystemExit as error:
            if not isinstance(error.__context__, BrokenPipeError):
                raise
            raise error.__context__ from None  # typer's answer to it would be exit code 1
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.filename is None and error.errno not in _NOT_OF_WRITING:
            return _output_lost(error, code)
        named = "the system refuses" if error.filename is None else f"{error.filename} can't be used"
        complain(f"{named} ({error.strerror})")
        code = USAGE
    return code


def code_of(error: errors.SessionStoreError) -> int:
    """The exit code for an error of the store.

    USAGE if other input would help, PARTLY if Redis holds something unexpected, UNREACHABLE if it can't be reached or
    refuses to serve.
    """
    if isinstance(error, errors.StoreUnavailable) or type(error) is errors.SessionStoreError:
        return UNREACHABLE
    return PARTLY if isinstance(error, _PARTIAL_ERRORS) else USAGE


def _usage_text(error: Any) -> str:
    # An argument in the wrong place may be a URL with a password.
    text = _URL.sub("://…", " ".join(error.format_message().split())).removesuffix(".")
    path = error.ctx.command_path if error.ctx else "redis-sessions"
    return f"{text} (see {path} --help)"


def _output_lost(error: OSError, code: int) -> int:
    """The exit code if stdout can't be written: the program's own if its reader, such as `head`, has read enough."""
    # Otherwise the interpreter tries again when it exits, prints a traceback, and exits with 120.
    with contextlib.suppress(OSError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        return code
    complain(f"the output can't be written ({error.strerror or type(error).__name__})")
    return PARTLY
