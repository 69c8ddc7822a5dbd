"""A Redis-native cache of agent session IDs, shared by many worker processes. `keys.py` has the key scheme."""

import logging

from redis_sessions.async_store import AsyncSessionStore
from redis_sessions.errors import (
    AccessDenied,
    CorruptValue,
    FileNotWritten,
    InexactScan,
    InvalidKey,
    InvalidSessionID,
    InvalidSettings,
    LeaseHeld,
    LegacyFileError,
    MissingExtra,
    SessionBusy,
    SessionStoreError,
    StoreUnavailable,
)
from redis_sessions.findings import Diagnosis, Finding
from redis_sessions.migrate import ExportResult, ImportResult
from redis_sessions.ops import Held, Lease, Peek
from redis_sessions.report import Report
from redis_sessions.retime import RetimeResult
from redis_sessions.scan import SessionRow
from redis_sessions.settings import StoreSettings
from redis_sessions.store import SessionStore
from redis_sessions.turn import ResumeResult, Turn
from redis_sessions.verdicts import Judgement, Verdict

# What to do with the logs is the program's to say, not a library's.
logging.getLogger("redis_sessions").addHandler(logging.NullHandler())

__all__ = [
    "AccessDenied",
    "AsyncSessionStore",
    "CorruptValue",
    "Diagnosis",
    "ExportResult",
    "FileNotWritten",
    "Finding",
    "Held",
    "ImportResult",
    "InexactScan",
    "InvalidKey",
    "InvalidSessionID",
    "InvalidSettings",
    "Judgement",
    "Lease",
    "LeaseHeld",
    "LegacyFileError",
    "MissingExtra",
    "Peek",
    "Report",
    "ResumeResult",
    "RetimeResult",
    "SessionBusy",
    "SessionRow",
    "SessionStore",
    "SessionStoreError",
    "StoreSettings",
    "StoreUnavailable",
    "Turn",
    "Verdict",
]
