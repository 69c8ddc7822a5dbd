"""Translates errors of redis-py into ours, and says whether trying again may help.

An error's own text is never passed on: pipelines and unknown commands quote their arguments, a parser quotes passwords.
Shown are only the code that a server's error begins with, and the operating system's name for a socket error.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import traceback
from collections.abc import Iterator
from typing import Final, NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.sentinel import MasterNotFoundError

from redis_sessions.errors import ONE_NODE, AccessDenied, CorruptValue, SessionStoreError, StoreUnavailable

# Codes of a server that can't serve now: where waiting a moment may help, and where it does not.
_PASSING: Final = {"LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "READONLY", "NOREPLICAS"}
_LASTING: Final = {"OOM", "MISCONF"}
_DENIED: Final = {
    "NOAUTH": (
        "asks for a user and a password",
        "give a user and a password in the URL, or the password in a file (--password-file)",
    ),
    "WRONGPASS": ("refuses this user's password", "check user and password of the URL"),
    "NOPERM": ("does not grant this user", "redis-sessions acl prints which user of a namespace may do what"),
}
_CODES_BY_CLASS: Final = (
    (redis_errors.AuthenticationError, "WRONGPASS"),
    (redis_errors.AuthorizationError | redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    # A ClusterError: redis-py gave up after too many redirections, since slots are being migrated.
    (redis_errors.TryAgainError | redis_errors.ClusterError, "TRYAGAIN"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "ASK"),
)
# What waiting doesn't help: how the server or redis-py says it, how we do, and the remedy.
_SETTLED: Final = (
    ("cluster support disabled", "is not a cluster", "write redis:// in place of redis+cluster://"),
    (
        r"unknown command .SENTINEL\b",
        "is not a Sentinel",
        "name Sentinel's own addresses (default port: 26379), or write redis:// in place of redis+sentinel://",
    ),
    (
        r"DB index is out of range|SELECT is not allowed in cluster",
        "has no database of that number",
        "fix the end of the URL",
    ),
)
# RedisClusterException is not a RedisError.
_EXPECTED: Final = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)
# Raised because of what every node, or every sentinel, said.
_BECAUSE: Final = (redis_errors.RedisClusterException, MasterNotFoundError, AsyncMasterNotFoundError)
_UNREACHED: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.RedisClusterException, OSError)

_SILENT: Final = "no answer in time"
_HUNG_UP: Final = "it hung up"

# Redis 6.2 wraps what failed inside a script, with or without a dash: "Error running script (…): @user_script:2: -OOM …".
_WRAPPED = re.compile(r"(?:^|[:\s]-|@user_script: ?\d+: )([A-Z]{3,})\b")

# Inside a script, what the ACL forbids comes without a code. First: Valkey and Redis since 7.2; then: those before.
_DENIED_IN_SCRIPT = re.compile(r"ACL failure in script: |The user executing the script can't ")
_NOT_LOGGED_IN = re.compile(r"Authentication required|client already authenticated")
_COMMAND = re.compile(r" run the '([a-z]+(?:[|.][a-z-]+)?)' command")
_KEY = re.compile(r" access [a-z ]*keys?\b| access the '")


class CutOff(redis_errors.ConnectionError):
    """A server that speaks TLS hung up after the handshake, before its first answer: it refuses our certificate."""


# What redis-py's cluster client raises by mistake while nodes come and go (redis/redis-py #3835, #4287, #4288; up to 8.1).
# From anywhere else these are mistakes of ours.
_MISTAKES: Final = (AttributeError, TypeError, KeyError, IndexError)
_OTHER_LOOP = re.compile(r"event loop is closed|different (event )?loop", re.IGNORECASE)


class Translation(NamedTuple):
    """The error to raise, whether the same command may succeed a moment later, and whether it was certainly not sent."""

    error: SessionStoreError
    passing: bool
    unsent: bool = False


def translate(error: Exception, key: str | None, address: str, *, cluster: bool = False) -> Translation | None:
    """Translate an error of redis-py or of the operating system; None if it is neither.

    Args: what was raised; the conversation and the server it was about, for the message; whether it is a cluster client's.
    """
    found = _read(error, key, address, cluster=cluster)
    if found is None:
        return None
    kind, message, remedy, passing = found
    unsent = isinstance(error, redis_errors.MaxConnectionsError)
    return Translation(kind(message, key=key, remedy=remedy), passing, unsent)


def _read(
    error: Exception, key: str | None, address: str, *, cluster: bool
) -> tuple[type[SessionStoreError], str, str, bool] | None:
    """The kind of our error, its message and remedy, and whether the same command may succeed a moment later."""
    if not isinstance(error, _EXPECTED):
        if isinstance(error, RuntimeError) and _OTHER_LOOP.search(str(error)):
            remedy = "make one AsyncSessionStore for each event loop, and close it there"
            return SessionStoreError, f"the connection to {address} belongs to another event loop", remedy, False
        if cluster and isinstance(error, _MISTAKES) and _raised_by_redis_py(error):
            confused = f"the client was confused by changes of the cluster at {address} ({type(error).__name__})"
            return StoreUnavailable, confused, "try again when the changes have ended", True
        return None
    if isinstance(error, redis_errors.MaxConnectionsError):
        remedy = "raise max_connections, or use fewer threads"
        return StoreUnavailable, f"all connections to {address} are in use", remedy, True
    for pattern, words, remedy in _SETTLED:
        if any(re.search(pattern, str(cause)) for cause in _chain(error)):
            return StoreUnavailable, f"{address} {words}", remedy, False
    code = _code(error)
    if isinstance(error, _BECAUSE):
        code = next((cause for cause in map(_code, _chain(error)) if cause in _DENIED), None)
    if code in _DENIED:
        words, remedy = _DENIED[code]
        words += f" {_not_granted(error)}" if code == "NOPERM" else ""
        return AccessDenied, f"{address} {words} ({code})", remedy, False
    if code in ("MOVED", "ASK") and not cluster:
        return StoreUnavailable, f"{address} is one node of a cluster", ONE_NODE, False
    if code in _PASSING | _LASTING:
        return StoreUnavailable, f"{address} can't serve now ({code})", "look at the server's log", code in _PASSING
    if isinstance(error, redis_errors.InvalidResponse):
        remedy = "check that the URL names a Redis server"
        return StoreUnavailable, f"{address} answers, but not as Redis does", remedy, True
    if isinstance(error, _UNREACHED):
        if _tls_refused(error):
            return StoreUnavailable, f"{address} can't be reached (TLS failed)", "check its certificate and yours", False
        words = _socket_words(error)
        # A server without TLS lets a handshake time out, one with TLS hangs up on a client without.
        scheme = "that it runs, and that the URL says rediss:// if that port speaks TLS, and redis:// if not"
        remedy = f"check {scheme if words in (_SILENT, _HUNG_UP) else 'the URL and that it runs'}"
        return StoreUnavailable, f"{address} can't be reached ({words})", remedy, True
    if code == "WRONGTYPE" or "not an integer" in str(error):
        what = "a counter is not an integer" if key is None else f"the key of conversation {key!r} is not a string"
        return CorruptValue, what, "find out who wrote it, and delete it", False
    said = code or type(error).__name__
    return SessionStoreError, f"{address} refused a command ({said})", "check the server's version and log", False


def answers(error: redis_errors.ResponseError) -> bool:
    """Whether this error in reply to a PING still says that the connection works.

    A server that can't write to its disk refuses PING and writes, and still lets its keys be read.
    """
    return _code(error) == "MISCONF"


def _raised_by_redis_py(error: Exception) -> bool:
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1].split(".")[0] == "redis"


def _code(error: BaseException) -> str | None:
    if isinstance(error, redis_errors.AuthenticationError) and _NOT_LOGGED_IN.search(str(error)):
        return "NOAUTH"
    for kind, code in _CODES_BY_CLASS:
        if isinstance(error, kind):
            return code
    if not isinstance(error, redis_errors.ResponseError):
        return None
    if _DENIED_IN_SCRIPT.search(str(error)):
        return "NOPERM"
    codes = [code for code in _WRAPPED.findall(str(error)) if code != "ERR"]
    return codes[0] if codes else "ERR"


def _not_granted(error: Exception) -> str:
    """What the ACL does not grant, in words; of the server's message only the name of a command is shown."""
    if command := _COMMAND.search(str(error)):
        return f"the command {command[1]}"
    return "access to this key" if _KEY.search(str(error)) else "a command it needs"


def cut_off(error: redis_errors.ConnectionError) -> redis_errors.ConnectionError:
    """What to raise for an error between the handshake of TLS and the server's first answer: the error, or a CutOff."""
    # The subclasses are answers: of a wrong password, or of a server that is loading.
    return CutOff(str(error)) if type(error) is redis_errors.ConnectionError else error


def _tls_refused(error: Exception) -> bool:
    """Whether one side refused the other's TLS. A connection that merely ended may come back."""
    return any(
        isinstance(cause, CutOff) or (isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError))
        for cause in _chain(error)
    )


def _socket_words(error: Exception) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLError | ConnectionResetError | BrokenPipeError):
            return _HUNG_UP
        if isinstance(cause, TimeoutError | redis_errors.TimeoutError):
            return _SILENT
        if isinstance(cause, socket.gaierror):
            return "no such host name"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return _HUNG_UP if type(error) is redis_errors.ConnectionError else type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
