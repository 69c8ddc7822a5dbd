"""What an error of redis-py means to a caller: the typed error to raise, and whether trying again may help.

An error's own text is never passed on: pipelines and unknown commands quote their arguments, a parser quotes passwords.
Only the code a server starts its errors with, and the operating system's word for a socket error, are shown.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Iterator
from typing import Final, NamedTuple

from redis import exceptions as redis_errors

from redis_sessions.errors import AccessDenied, CorruptValue, SessionStoreError, StoreUnavailable

# A server's words for «not now», and whether waiting a moment may help.
_NOT_NOW: Final = {
    "LOADING": True,
    "BUSY": True,
    "MASTERDOWN": True,
    "CLUSTERDOWN": True,
    "TRYAGAIN": True,
    "READONLY": True,
    "NOREPLICAS": True,
    "OOM": False,
    "MISCONF": False,
}
_DENIED: Final = ("NOAUTH", "WRONGPASS", "NOPERM")
_CODES_BY_CLASS: Final = (
    (redis_errors.AuthenticationError, "WRONGPASS"),
    (redis_errors.AuthorizationError, "NOPERM"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
)
# RedisClusterException is no RedisError.
_EXPECTED: Final = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)
_UNREACHED: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.RedisClusterException, OSError)

# Redis 6.2 wraps what failed inside a script: «ERR Error running script (…): @user_script:2: -WRONGTYPE Operation …».
_WRAPPED = re.compile(r"(?:^|[:\s]-)([A-Z]{3,})\b")


# What a cluster client of redis-py 8.1 trips over while nodes come and go; elsewhere these are mistakes of ours.
_STUMBLES: Final = (AttributeError, TypeError, KeyError, IndexError)
_OTHER_LOOP = re.compile(r"event loop is closed|different (event )?loop", re.IGNORECASE)


class Refusal(NamedTuple):
    """The error to raise, whether the same command may succeed a moment later, and whether it is known not to be sent."""

    error: SessionStoreError
    passing: bool
    unsent: bool = False


def explain(error: Exception, key: str | None, address: str, *, cluster: bool = False) -> Refusal | None:
    """Translate an error of redis-py or of the operating system; None if it is neither.

    Args:
        error: what was raised.
        key: the conversation it was about, if one.
        address: of the server, for the message; no secret in it.
        cluster: whether it came out of a cluster client.
    """
    if not isinstance(error, _EXPECTED):
        return _stray(error, key, address, cluster=cluster)
    if isinstance(error, redis_errors.MaxConnectionsError):
        crowded = StoreUnavailable(
            f"all connections to {address} are in use", key=key, remedy="raise max_connections, or use fewer threads"
        )
        return Refusal(crowded, passing=True, unsent=True)
    code = _code(error)
    if code in _DENIED:
        denied = "refuses this user's password" if code != "NOPERM" else "does not grant this user a command it needs"
        return Refusal(
            AccessDenied(f"{address} {denied} ({code})", key=key, remedy="check user, password and ACL of the URL"), False
        )
    if code in _NOT_NOW:
        return Refusal(
            StoreUnavailable(f"{address} can't serve now ({code})", key=key, remedy="look at the server's log"),
            _NOT_NOW[code],
        )
    if isinstance(error, _UNREACHED):
        wrong_certificate = any(isinstance(cause, ssl.SSLError) for cause in _chain(error))
        return Refusal(
            StoreUnavailable(
                f"{address} can't be reached ({_socket_words(error)})",
                key=key,
                remedy="check its certificate and yours" if wrong_certificate else "check the URL and that it runs",
            ),
            not wrong_certificate,
        )
    if code == "WRONGTYPE":
        return Refusal(
            CorruptValue(
                f"the key of conversation {key!r} holds no string", key=key, remedy="find out who wrote it, and delete it"
            ),
            False,
        )
    said = code or type(error).__name__
    return Refusal(
        SessionStoreError(f"{address} refused a command ({said})", key=key, remedy="check the server's version and log"),
        False,
    )


def _stray(error: Exception, key: str | None, address: str, *, cluster: bool) -> Refusal | None:
    if isinstance(error, RuntimeError) and _OTHER_LOOP.search(str(error)):
        elsewhere = SessionStoreError(
            f"the connection to {address} belongs to another event loop",
            key=key,
            remedy="make one AsyncSessionStore for each event loop, and close it there",
        )
        return Refusal(elsewhere, passing=False)
    if cluster and isinstance(error, _STUMBLES) and _raised_by_redis_py(error):
        stumbled = StoreUnavailable(
            f"the client stumbled over changes of the cluster at {address} ({type(error).__name__})",
            key=key,
            remedy="try again when it is at rest",
        )
        return Refusal(stumbled, passing=True)
    return None


def _raised_by_redis_py(error: Exception) -> bool:
    module = ""
    traceback = error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_globals.get("__name__", "")
        traceback = traceback.tb_next
    return module.split(".")[0] == "redis"


def _code(error: Exception) -> str | None:
    if isinstance(error, redis_errors.RedisClusterException):
        # It wraps what the last of the nodes said.
        codes = [_code(cause) for cause in _chain(error) if isinstance(cause, redis_errors.RedisError)]
        return next((code for code in codes if code in _DENIED), None)
    for kind, code in _CODES_BY_CLASS:
        if isinstance(error, kind):
            return code
    if not isinstance(error, redis_errors.ResponseError):
        return None
    codes = [code for code in _WRAPPED.findall(str(error)) if code != "ERR"]
    return codes[0] if codes else "ERR"


def _socket_words(error: Exception) -> str:
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
        if isinstance(cause, TimeoutError | redis_errors.TimeoutError):
            return "no answer in time"
        if isinstance(cause, socket.gaierror):
            return "no such host name"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return type(error).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
