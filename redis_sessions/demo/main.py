"""`redis-sessions demo`: what native expiry saves, measured on this machine in about ten seconds.

It imports a small legacy file, then several worker processes run the same plan of turns twice: with IDs that never expire,
and with a max age shorter than what the agent keeps. The agent is a stand-in that really forgets, so its refusals are
counted, not computed.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis_sessions.client import execute
from redis_sessions.client import url as urls
from redis_sessions.demo.plan import AGENT_KEEPS_MS, AGENT_WORKS_MS, MAX_AGE_MS, SEED, PlannedTurn, plan
from redis_sessions.demo.processes import DemoError, run_workers
from redis_sessions.demo.results import Course, DemoFigures, Imported, ImportedEntry, RunFigures
from redis_sessions.demo.view import LiveView
from redis_sessions.errors import InvalidSettings, SessionStoreError
from redis_sessions.keys import COUNTERS, Keys
from redis_sessions.operations.command import Command, Op
from redis_sessions.server import SOCKET_PATH_MAX_BYTES, EmbeddedServer
from redis_sessions.settings import DAY_MS, StoreSettings
from redis_sessions.store import SessionStore
from redis_sessions.text import duration

# As good as never, and still a TTL: a store can't write IDs without one.
NEVER_MS: Final = 365 * DAY_MS
LEGACY_FILE: Final = Path(__file__).with_name("sessions.json")
# The last parts of the namespaces in which it writes.
IMPORTED, WITHOUT, WITH = "imported", "without-expiry", "with-expiry"


class _Stage(NamedTuple):
    """What both runs share."""

    url: str
    namespace: str  # the first part of those in which it writes
    directory: Path
    shares: list[list[PlannedTurn]]
    view: LiveView
    stop: threading.Event

    def settings(self, name: str, max_age_ms: int) -> StoreSettings:
        return StoreSettings(namespace=f"{self.namespace}.{name}", session_max_age_ms=max_age_ms)


def run_demo(*, url: str | None, workers: int, turns: int) -> DemoFigures:
    """Run the demo, show its progress on stderr, and return what was counted. Nothing of it is left, however it ends.

    Args:
        url: the server to use, in namespaces that are removed at the end; None starts an embedded one.
        workers: how many worker processes, at least 1.
        turns: how many turns they run in each of the two runs, at least 1.

    Raises:
        InvalidSettings: an argument is out of range, or the URL can't be used.
        ServerError: no embedded server can be started.
        StoreUnavailable: Redis can't be reached or refuses to serve.
        DemoError: a worker failed, or the system refused something.
    """
    if workers < 1 or turns < 1:
        raise InvalidSettings("the demo needs at least one worker and one turn", remedy="give 1 or more of both")
    stop = threading.Event()
    # Signal handlers raise in the main thread only. In another, nothing comes between starting a process and noting it.
    with ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(_measure, url, plan(turns, workers), stop).result()
        except OSError as error:
            raise DemoError(str(error)) from error
        finally:
            stop.set()


def _measure(url: str | None, shares: list[list[PlannedTurn]], stop: threading.Event) -> DemoFigures:
    began_s = time.monotonic()
    legacy: dict[str, Any] = json.loads(LEGACY_FILE.read_text("utf-8"))
    turns = sum(map(len, shares))
    with ExitStack() as stack:
        view = stack.enter_context(LiveView(len(shares), turns))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-sessions-demo-")))
        server = "an embedded Valkey"
        namespace = f"demo-{secrets.token_hex(4)}"
        if url is None:
            # A socket that only we can reach; a port on loopback where its path would be too long.
            socket = directory / "valkey.sock"
            fits = len(os.fsencode(socket)) <= SOCKET_PATH_MAX_BYTES
            url = stack.enter_context(EmbeddedServer(socket=socket if fits else None)).url
        else:
            server = urls.parse(url).address
            with SessionStore.from_url(url, StoreSettings(namespace=namespace)) as store:
                store.resume_failures_total()  # fails here if it can't be used, while there is nothing to remove yet
            keys = {turn.key for share in shares for turn in share} | legacy.keys()
            stack.callback(_remove, url, namespace, keys, view)
        stage = _Stage(url, namespace, directory, shares, view, stop)
        imported = _import(stage, legacy)
        without = _run(stage, "without expiry", WITHOUT, NEVER_MS)
        expiring = _run(stage, f"expiry after {duration(MAX_AGE_MS)}", WITH, MAX_AGE_MS)
    return DemoFigures(
        server=server,
        workers=len(shares),
        turns=turns,
        seed=SEED,
        agent_keeps_ms=AGENT_KEEPS_MS,
        imported=imported,
        without_expiry=without,
        with_expiry=expiring,
        duration_ms=round((time.monotonic() - began_s) * 1000),
    )


def _import(stage: _Stage, legacy: dict[str, Any]) -> Imported:
    """Write the legacy file with times relative to now, and import it twice."""
    now_ms = time.time_ns() // 1_000_000
    ages_ms = {key: entry.pop("idle_ms") if isinstance(entry, dict) else None for key, entry in legacy.items()}
    for key, age_ms in ages_ms.items():
        if age_ms is not None:
            legacy[key]["last_used_at"] = now_ms - age_ms
    path = stage.directory / "sessions.json"
    path.write_text(json.dumps(legacy), "utf-8")
    with SessionStore.from_url(stage.url, stage.settings(IMPORTED, DAY_MS)) as store:
        result, again = store.import_legacy(path), store.import_legacy(path)
        live = {row.key for row in store.sessions()}
        report = store.report()
    verdicts = {key: "imported" if key in live else "expired" for key in legacy}
    verdicts |= {reject.key: reject.reason for reject in result.rejects}
    entries = tuple(ImportedEntry(key=key, idle_ms=ages_ms[key], verdict=verdict) for key, verdict in verdicts.items())
    return Imported(result=result, again=again, entries=entries, report=report)


def _run(stage: _Stage, title: str, name: str, max_age_ms: int) -> RunFigures:
    """Let the workers run their shares, with an agent that starts without any session."""
    course = Course(stage.shares)
    stage.view.follow(title, course)
    settings = stage.settings(name, max_age_ms)
    agent = stage.directory / settings.namespace
    agent.mkdir()
    journal = agent / "journal"
    arguments = [f"--namespace={settings.namespace}", f"--max-age-ms={max_age_ms}", f"--agent-dir={agent}"]
    arguments += [f"--agent-keeps-ms={AGENT_KEEPS_MS}", f"--agent-works-ms={AGENT_WORKS_MS}", f"--journal={journal}"]
    with closing(run_workers(arguments, stage.url, stage.shares, agent / "log")) as events:
        for reported in events:
            if stage.stop.is_set():
                raise DemoError("it was stopped")
            if reported is not None:
                course.add(*reported)
            stage.view.update()
    now_s = time.time()
    with SessionStore.from_url(stage.url, settings) as store:
        live = {row.session_id for row in store.sessions()}
        report = store.report()
    known = {file.name for file in (agent / "sessions").iterdir() if file.stat().st_mtime > now_s - AGENT_KEEPS_MS / 1000}
    return course.figures(max_age_ms, report, journal.read_text(), live, known)


def _remove(url: str, namespace: str, conversations: set[str], view: LiveView) -> None:
    """Delete every key that the demo may have written, by name: the server belongs to somebody else."""
    try:
        with SessionStore.from_url(url) as store:
            for name in (IMPORTED, WITHOUT, WITH):
                keys = Keys(f"{namespace}.{name}")
                names = [keys.counter(counter) for counter in COUNTERS]
                names += [make(key) for key in conversations for make in (keys.session_id, keys.record, keys.lease)]
                execute.run(store.client, _deletion(names))
    except SessionStoreError as error:
        view.say(f"keys of namespace {namespace} were left behind: {error}")


def _deletion(names: list[bytes]) -> Op[None]:
    yield [Command(("DEL", name)) for name in names]
