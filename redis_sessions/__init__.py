"""A Redis-native cache of agent session IDs, shared by many worker processes.

`SessionStore.from_url(url)` makes a store, `store.resume(key, run)` runs a turn; `AsyncSessionStore` is the same, awaited.
Times are whole milliseconds, and their names end in `_ms`. Every error is a SessionStoreError, which says what to do next;
the only others are TypeError and what `run` itself raised. See also:

- `redis_sessions.agents`: the agent runtimes that are known, and their judges for `resume`
- `redis_sessions.adapters`: turns of claude-agent-sdk and of the OpenAI client
- `redis_sessions.keys`: the key scheme in Redis
- `redis_sessions.legacy`: sessions.json, and other tools' files
- `redis_sessions.operations.acl`: Redis users with the least privileges
- `redis_sessions.metrics`: Prometheus (extra `prometheus`)
- `redis_sessions.server`: an embedded Valkey server (extra `embedded`)
- `redis_sessions.testing`: stores on fakeredis (extra `testing`)

The logger is `redis_sessions`. Its records are not shown until logging is configured, as by `logging.basicConfig()`.

- ERROR: a conversation was taken over by another worker while its turn ran, or could be, as the event loop was blocked for
  longer than its lease.
- WARNING: what an outage of Redis caused: a turn without a lease, not saved or not counted, a lease not renewed or not
  released, a failed scrape of the metrics; a save that came too late, as another worker had taken over, or that too few
  replicas have; a lease that is not renewed as no thread can be started; an ID that is invalid or another agent's; what is
  risky in a client that was passed in, once per process; a max age that is not the namespace's, and a limit that a turn
  without a lease does not count for, each once per store; a session that was given up, or that is gone as it was made
  elsewhere.
- INFO: a resume that the agent refused, a session that was rotated, a turn that gave no session ID.
"""

import logging
from importlib.util import find_spec

from redis_sessions.doctor.findings import Diagnosis, Finding, Status
from redis_sessions.errors import (
    AccessDenied,
    CommandRefused,
    CorruptValue,
    FileNotWritten,
    InexactScan,
    InvalidKey,
    InvalidSessionID,
    InvalidSettings,
    KeysScattered,
    LeaseHeld,
    LegacyFileError,
    MissingExtra,
    NotReplicated,
    SessionBusy,
    SessionElsewhere,
    SessionStoreError,
    StoreUnavailable,
)
from redis_sessions.legacy.transfer import ExportResult, ImportResult, Reject
from redis_sessions.operations.conversation import Held, Lease, Peek, Place, Record
from redis_sessions.operations.report import IdleBucket, InvalidExample, Report
from redis_sessions.operations.retime import RetimeResult
from redis_sessions.operations.scan import Progress, SessionRow
from redis_sessions.resume.turn import Judge, Judgement, ResumeResult, Turn, TurnStart, Verdict
from redis_sessions.settings import StoreSettings
from redis_sessions.store import AsyncSessionStore, SessionStore

# The program decides what to do with the logs, not a library.
logging.getLogger("redis_sessions").addHandler(logging.NullHandler())

__all__ = [
    "AccessDenied",
    "AsyncSessionStore",
    "CommandRefused",
    "CorruptValue",
    "Diagnosis",
    "ExportResult",
    "FileNotWritten",
    "Finding",
    "Held",
    "IdleBucket",
    "ImportResult",
    "InexactScan",
    "InvalidExample",
    "InvalidKey",
    "InvalidSessionID",
    "InvalidSettings",
    "Judge",
    "Judgement",
    "KeysScattered",
    "Lease",
    "LeaseHeld",
    "LegacyFileError",
    "MissingExtra",
    "NotReplicated",
    "Peek",
    "Place",
    "Progress",
    "Record",
    "Reject",
    "Report",
    "ResumeResult",
    "RetimeResult",
    "SessionBusy",
    "SessionElsewhere",
    "SessionRow",
    "SessionStore",
    "SessionStoreError",
    "Status",
    "StoreSettings",
    "StoreUnavailable",
    "Turn",
    "TurnStart",
    "Verdict",
    "adapters",
    "agents",
    "keys",
    "legacy",
    "server",
]
# `import *` imports all of these, so a module that needs an extra is included only where that is installed.
if find_spec("prometheus_client"):
    __all__ += ["metrics"]
if find_spec("fakeredis") and find_spec("lupa"):
    __all__ += ["testing"]
