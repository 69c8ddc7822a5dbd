"""Translates errors of redis-py into ours, and says whether trying again may help.

An error's own text is never passed on: pipelines and unknown commands quote their arguments, a parser quotes passwords.
Shown are only the code that a server's error begins with, and the operating system's name for a socket error.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import traceback
from collections.abc import Iterator
from typing import Final, NamedTuple

from redis import exceptions as redis_errors
from redis._parsers import BaseParser
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.sentinel import MasterNotFoundError

from redis_sessions.errors import ONE_NODE, AccessDenied, CommandRefused, CorruptValue, SessionStoreError, StoreUnavailable


class _Reason(NamedTuple):
    """What is wrong with a server, in words behind its address, and the remedy."""

    words: str
    remedy: str
    kind: type[SessionStoreError] = StoreUnavailable
    passing: bool = False  # whether waiting a moment may help


# By the code of an error: of a user who is denied something, and of a server that can't serve now.
_DENIED: Final = {
    "NOAUTH": _Reason(
        "asks for a user and a password (NOAUTH)",
        "give a user and a password in the URL, or the password in a file (--password-file)",
        AccessDenied,
    ),
    "WRONGPASS": _Reason("refuses this user's password (WRONGPASS)", "check user and password of the URL", AccessDenied),
    "NOPERM": _Reason(
        "does not grant this user {} (NOPERM)",
        "redis-sessions acl prints which user of a namespace may do what",
        AccessDenied,
    ),
}
# What to do about the same from a sentinel.
_BY_SENTINEL: Final = {
    "NOAUTH": "give the sentinels' own in the URL: ?sentinel_username=…&sentinel_password=…, or &sentinel_password_file=…",
    "WRONGPASS": "check sentinel_username and sentinel_password of the URL",
    "NOPERM": "grant +sentinel|masters to this user of Sentinel",
}
_PASSING: Final = ("LOADING", "BUSY", "MASTERDOWN", "CLUSTERDOWN", "TRYAGAIN", "MOVED", "ASK", "READONLY", "NOREPLICAS")
_BY_CODE: Final = _DENIED | {
    code: _Reason(f"can't serve now ({code})", "look at the server's log", passing=code in _PASSING)
    for code in (*_PASSING, "OOM", "MISCONF")
}
# redis-py cuts the code off, and raises some of these classes itself.
_CODES: Final[dict[type, str]] = {
    **{kind: code for code, kind in BaseParser.EXCEPTION_CLASSES.items() if isinstance(kind, type)},
    redis_errors.AuthenticationError: "WRONGPASS",
    redis_errors.AuthorizationError: "NOPERM",
    redis_errors.ClusterError: "TRYAGAIN",  # it gave up after too many redirections, since slots are being migrated
}
# By how that begins what a server, a proxy or redis-py says: further on may stand a key, a user or a place of these words.
_BY_TEXT: Final = {
    r"(This instance has )?cluster support disabled|unknown command .CLUSTER\b": _Reason(
        "is not a cluster", "write redis:// in place of redis+cluster://"
    ),
    r"unknown command .SENTINEL\b": _Reason(
        "is not a Sentinel",
        "name Sentinel's own addresses (default port: 26379), or write redis:// in place of redis+sentinel://",
    ),
    r"DB index is out of range|SELECT is not allowed in cluster|unknown command .SELECT\b": _Reason(
        "has no database of that number", "fix the end of the URL: a proxy or a cluster may have no other than 0"
    ),
    r"max number of clients reached": _Reason(
        "has no connection left", "raise its maxclients, or use fewer workers or a smaller max_connections", passing=True
    ),
    r"AUTH <password> called without any password|Client sent AUTH, but no password is set": _Reason(
        "asks for no password, and was given one", "leave the password out, or set one on the server", AccessDenied
    ),
    r"unknown command .HELLO\b|NOPROTO|unsupported protocol version": _Reason(
        "does not speak RESP3", "build the client with protocol=2, or by SessionStore.from_url", CommandRefused
    ),
}
_QUOTA = re.compile(r"\b(quota|(request|rate|bandwidth|throughput)s? limit)\b", re.IGNORECASE)
_OVER_QUOTA: Final = _Reason(
    "refuses what is over its quota", "raise the limit with its provider, or wait until it is renewed", CommandRefused
)
# From the first quotation mark to the last, since what is quoted may hold some, too.
_QUOTED = re.compile(r"(?<!\w)(['`\"]).*\1(?!\w)", re.DOTALL)
_NOT_REDIS: Final = _Reason("answers, but not as Redis does", "check that the URL names a Redis server", passing=True)
_ALLOW: Final = (
    "allow it in the settings of the server, or of the proxy before it (rename-command); redis-sessions doctor tries each"
)
_SILENT: Final = "no answer in time"
_HUNG_UP: Final = "it hung up"

# The commands that may be named where a server says that it doesn't know them; what else it quotes is never shown.
_UNKNOWN = re.compile(r"unknown command [`'\"]?([A-Za-z]+)(?![A-Za-z])", re.IGNORECASE)
# Valkey, and Redis since 7.2, leave out the "Redis".
_UNKNOWN_IN_SCRIPT = re.compile(r"Unknown (Redis )?command called from script", re.IGNORECASE)
_NAMES: Final = re.compile(
    "ASKING|AUTH|CLIENT|CLUSTER|COMMAND|CONFIG|DBSIZE|DEL|EVAL|EVALSHA|EXISTS|GET|INCR|INFO|MGET|PERSIST|PEXPIRE|PING|PTTL|"
    "READONLY|SCAN|SET|TIME|TYPE|WAIT|WAITAOF"
)
# OpenSSL: the certificate is valid, but for another host name (62) or address (64).
_FOR_ANOTHER_NAME: Final = (62, 64)
# RedisClusterException is not a RedisError.
_EXPECTED: Final = (redis_errors.RedisError, redis_errors.RedisClusterException, OSError)
# Raised because of what every node, or every sentinel, said.
_BECAUSE: Final = (redis_errors.RedisClusterException, MasterNotFoundError, AsyncMasterNotFoundError)
_UNREACHED: Final = (redis_errors.ConnectionError, redis_errors.TimeoutError, redis_errors.RedisClusterException, OSError)

# Redis 6.2 wraps what failed inside a script, with or without a dash: "Error running script (…): @user_script:2: -OOM …".
_WRAPPED = re.compile(r"(?:^|[:\s]-|@user_script: ?\d+: )([A-Z]{3,})\b")

# Inside a script, what the ACL forbids comes without a code. First: Valkey and Redis since 7.2; then: those before.
_DENIED_IN_SCRIPT = re.compile(r"ACL failure in script: |The user executing the script can't ")
_COMMAND = re.compile(r" run the '([a-z]+(?:[|.][a-z-]+)?)' command")
_KEY = re.compile(r" access [a-z ]*keys?\b| access the '")


class CutOff(redis_errors.ConnectionError):
    """A server that speaks TLS hung up after the handshake, before its first answer: it refuses our certificate."""


# What redis-py's cluster client raises by mistake while nodes come and go (redis/redis-py #3835, #4287, #4288; up to 8.1).
# From anywhere else these are mistakes of ours.
_MISTAKES: Final = (AttributeError, TypeError, KeyError, IndexError)
# Where redis-py raises what it can't read in a reply, such as a MOVED without a node.
_PARSERS: Final = ("redis._parsers", "redis.exceptions")
# What an operation raises by mistake on a reply of another form.
MISREADINGS: Final = (AttributeError, TypeError, ValueError, LookupError)
_OTHER_LOOP = re.compile(r"event loop is closed|different (event )?loop", re.IGNORECASE)


class Translation(NamedTuple):
    """The error to raise, whether the same command may succeed a moment later, and whether it was certainly not sent."""

    error: SessionStoreError
    passing: bool
    unsent: bool = False


def translate(
    error: Exception, key: str | None, address: str, *, cluster: bool = False, sent: str = "a command"
) -> Translation | None:
    """Translate an error of redis-py or of the operating system; None if it is neither.

    Args: what was raised; the conversation, the server and the command it was about, for the message; whether it is a
    cluster client's.
    """
    found = _reason(error, key, address, sent, cluster=cluster)
    if found is None:
        return None
    # redis-py asks a cluster for its slots while it handles why a node could not be reached.
    first = error.__context__ if isinstance(error, redis_errors.RedisClusterException) and error.__context__ else error
    unsent = isinstance(error, redis_errors.MaxConnectionsError) or hasattr(first, "endpoint")
    return Translation(found.kind(found.words, key=key, remedy=found.remedy), found.passing, unsent)


def _reason(error: Exception, key: str | None, address: str, sent: str, *, cluster: bool) -> _Reason | None:
    """The reason in full: its words are a sentence."""

    def server(reason: _Reason) -> _Reason:
        return reason._replace(words=f"{address} {reason.words}")

    if not isinstance(error, _EXPECTED):
        if isinstance(error, RuntimeError) and _OTHER_LOOP.search(str(error)):
            remedy = "make one AsyncSessionStore for each event loop, and close it there"
            return _Reason(f"the connection to {address} belongs to another event loop", remedy, SessionStoreError)
        raiser = _raiser(error)
        # A client of the caller's that decodes replies may meet bytes that are not text, which no server is to blame for.
        of_cluster = cluster and raiser.split(".")[0] == "redis"
        unread = raiser.startswith(_PARSERS) or (of_cluster and isinstance(error, ValueError))  # as a port that is no number
        if unread and not isinstance(error, UnicodeDecodeError):
            return server(_NOT_REDIS)
        if of_cluster and isinstance(error, _MISTAKES):
            confused = f"the client was confused by changes of the cluster at {address} ({type(error).__name__})"
            return _Reason(confused, "try again when the changes have ended", passing=True)
        return None
    if isinstance(error, redis_errors.MaxConnectionsError):
        return _Reason(
            f"all connections to {address} are in use", "raise max_connections, or use fewer threads", passing=True
        )
    causes = list(_chain(error))
    sentinel = next((cause.sentinel for cause in causes if hasattr(cause, "sentinel")), None)
    for pattern, reason in _BY_TEXT.items():
        if any(re.match(f"(ERR )?({pattern})", str(cause)) for cause in causes):
            return server(reason)
    code = _code(error)
    if isinstance(error, _BECAUSE):
        code = next((cause for cause in map(_code, causes) if cause in _DENIED), None)
        if sentinel and code:
            words = _BY_CODE[code].words.format("the command sentinel|masters")
            return _Reason(f"the sentinel {sentinel} {words}", _BY_SENTINEL[code], AccessDenied)
    if code in ("MOVED", "ASK") and not cluster:
        return _Reason(f"{address} is one node of a cluster", ONE_NODE)
    if code in _BY_CODE:
        reason = _BY_CODE[code]
        return server(reason._replace(words=reason.words.format(_not_granted(error))))
    if any(_is_over_quota(cause) for cause in causes):
        return server(_OVER_QUOTA)
    if isinstance(error, redis_errors.InvalidResponse):
        return server(_NOT_REDIS)
    if isinstance(error, _UNREACHED):
        return _unreached(causes, address, cluster=cluster)
    if code == "WRONGTYPE" or "not an integer" in _unquoted(error):
        what = "a counter is not an integer" if key is None else f"the key of conversation {key!r} is not a string"
        return _Reason(what, "find out who wrote it, and delete it", CorruptValue)
    if not isinstance(error, redis_errors.ResponseError):
        return _Reason(f"redis-py refused {sent} ({type(error).__name__})", "check its version", SessionStoreError)
    if _UNKNOWN_IN_SCRIPT.search(_unquoted(error)):
        return server(_Reason("does not know a command of a script", _ALLOW, CommandRefused))
    if unknown := _UNKNOWN.search(str(error)):
        name = unknown[1].upper() if _NAMES.fullmatch(unknown[1].upper()) else sent
        return server(_Reason(f"does not know {name}", _ALLOW, CommandRefused))
    remedy = "look at its log, or ask who runs it, and run redis-sessions doctor"
    return server(_Reason(f"refuses {sent} ({code})", remedy, CommandRefused))


def _unreached(causes: list[BaseException], address: str, *, cluster: bool) -> _Reason:
    announced = next((place for cause in causes if (place := getattr(cause, "endpoint", None))), None)
    if not cluster or announced in address.split(","):
        announced = None
    if any(getattr(cause, "verify_code", None) in _FOR_ANOTHER_NAME for cause in causes):
        remedy = "use a name or an address that is in the certificate"
        if announced:
            remedy += ": set cluster-announce-hostname, and cluster-preferred-endpoint-type hostname"
        return _Reason(f"{announced or address} can't be reached (TLS failed: its certificate is for another name)", remedy)
    # Whether one side refused the other's TLS. A connection that merely ended may come back; which of the two errors says so
    # depends on the version of Python.
    ended = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
    refused = any(
        isinstance(cause, CutOff) or (isinstance(cause, ssl.SSLError) and not isinstance(cause, ended)) for cause in causes
    )
    words = "TLS failed" if refused else _socket_words(causes)
    if announced:
        remedy = "check that it runs; if it does, set cluster-announce-ip or cluster-announce-hostname to what clients reach"
        return _Reason(f"{address} announces {announced}, which can't be reached ({words})", remedy, passing=not refused)
    if refused:
        check = "its certificate and yours"
    elif words in (_SILENT, _HUNG_UP):
        # A server without TLS lets a handshake time out, one with TLS hangs up on a client without.
        check = "that it runs, and that the URL says rediss:// if that port speaks TLS, and redis:// if not"
    else:
        check = "the URL and that it runs"
    return _Reason(f"{address} can't be reached ({words})", f"check {check}", passing=not refused)


def translate_misreading(error: Exception, address: str) -> CommandRefused | None:
    """The error for a reply of a form that an operation can't read, as of a broken proxy; None for a mistake elsewhere."""
    # A call that doesn't fit is one of a function that the caller passed.
    if isinstance(error, SessionStoreError) or re.search("positional argument|not callable", str(error)):
        return None
    if not _raiser(error).startswith(("redis_sessions.operations", "redis_sessions.doctor", "redis_sessions.keys")):
        return None
    return CommandRefused(f"{address} {_NOT_REDIS.words}", remedy=_NOT_REDIS.remedy)


def answers(error: redis_errors.ResponseError) -> bool:
    """Whether this error in reply to a PING still says that the connection works.

    A server that can't write to its disk refuses PING and writes, and still lets its keys be read.
    """
    return _code(error) == "MISCONF"


def _raiser(error: Exception) -> str:
    """The module that raised an error; empty if it was not raised."""
    names = ["", *(str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))]
    return names[-1]


def _code(error: BaseException) -> str | None:
    if getattr(error, "status_code", None) == "NOAUTH":  # of the class of WRONGPASS
        return "NOAUTH"
    for kind in type(error).__mro__:
        if kind in _CODES:
            return _CODES[kind]
    if not isinstance(error, redis_errors.ResponseError):
        return None
    if _DENIED_IN_SCRIPT.search(_unquoted(error)):
        return "NOPERM"
    codes = [code for code in _WRAPPED.findall(_unquoted(error)) if code != "ERR"]
    return codes[0] if codes else "ERR"


def _is_over_quota(error: BaseException) -> bool:
    # Behind a known code may stand the name of a user.
    coded = not isinstance(error, redis_errors.ResponseError) or _code(error) in _BY_CODE
    return not coded and _QUOTA.search(_unquoted(error)) is not None


def _unquoted(error: BaseException) -> str:
    """What an error says, without what it quotes, as the arguments of a command."""
    return _QUOTED.sub("", str(error))


def _not_granted(error: Exception) -> str:
    """What the ACL does not grant, in words; of the server's message only the name of a command is shown."""
    if command := _COMMAND.search(str(error)):
        return f"the command {command[1]}"
    return "access to this key" if _KEY.search(str(error)) else "a command it needs"


def cut_off(error: redis_errors.ConnectionError) -> redis_errors.ConnectionError:
    """What to raise for an error between the handshake of TLS and the server's first answer: the error, or a CutOff."""
    # The subclasses are answers: of a wrong password, or of a server that is loading.
    return CutOff(str(error)) if type(error) is redis_errors.ConnectionError else error


def _socket_words(causes: list[BaseException]) -> str:
    for cause in causes:
        if isinstance(cause, ssl.SSLError | ConnectionResetError | BrokenPipeError):
            return _HUNG_UP
        if isinstance(cause, TimeoutError | redis_errors.TimeoutError):
            return _SILENT
        if isinstance(cause, socket.gaierror):
            return "no such host name"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
    return _HUNG_UP if type(causes[0]) is redis_errors.ConnectionError else type(causes[0]).__name__


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = {id(sys.exception())} - {id(error)}  # what the caller is handling is no reason
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
