"""`redis-sessions demo`: what native expiry is good for, measured on this machine in some seconds.

It imports a small legacy file, then lets several worker processes dispatch the same plan of turns twice: over a map that
never forgets, and with a max age set to what the agent itself keeps. The agent is a stand-in that forgets for real, so
every figure is counted and none is computed.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis_sessions.cli.exit_codes import DONE, PARTLY, USAGE, code_of
from redis_sessions.cli.output import complain, put_json
from redis_sessions.client import execute as wire
from redis_sessions.client import url as urls
from redis_sessions.demo.plan import AGENT_KEEPS_MS, AGENT_WORKS_MS, SEED, Dispatch, plan
from redis_sessions.demo.processes import DemoError, Fleet, Interrupted, Signals
from redis_sessions.demo.results import Course, DemoFigures, Imported, ImportedEntry, RunFigures, run_figures
from redis_sessions.demo.view import WITH, WITHOUT, Watch, show_comparison, show_imported, show_reports, watch
from redis_sessions.errors import SessionStoreError
from redis_sessions.keys import COUNTERS, Keys
from redis_sessions.operations.command import Command, Op
from redis_sessions.server import SOCKET_PATH_MAX_BYTES, EmbeddedServer
from redis_sessions.settings import DAY_MS, StoreSettings
from redis_sessions.store import SessionStore

# As good as never, and still a TTL: set writes none without.
NEVER_MS: Final = 365 * DAY_MS
LEGACY_FILE: Final = Path(__file__).with_name("sessions.json")


def run_demo(*, url: str | None, workers: int, turns: int, as_json: bool) -> int:
    """Run the demo and show what it found.

    Args:
        url: the server to use, in a namespace that is removed at the end; None starts an embedded one.
        workers: how many worker processes, at least 1.
        turns: how many turns they dispatch in each of the two runs, at least 1.
        as_json: print one JSON object, a `DemoFigures`, instead of tables.

    Returns the exit code: 0 done; 1 a turn failed, or ran beside another of its conversation; 2 bad usage, or no embedded
    server; 3 Redis can't be reached; 128 + the signal's number if one ended it. Nothing is left running or behind.
    """
    if workers < 1 or turns < 1:
        complain("the demo needs at least one worker and one turn")
        return USAGE
    try:
        with Signals() as signals, watch() as view:
            figures = _measure(url, plan(turns, workers), signals, view)
    except Interrupted as interrupted:
        complain("the demo was stopped; nothing of it is left")
        return interrupted.exit_code
    except (DemoError, OSError) as error:
        complain(f"the demo can't go on: {error}")
        return PARTLY
    except SessionStoreError as error:
        complain(str(error))
        return code_of(error)
    if as_json:
        put_json(figures.model_dump(mode="json"))
    else:
        show_imported(figures.imported)
        show_reports(figures)
        show_comparison(figures)
    return DONE if figures.kept_its_promise else PARTLY


class _Place(NamedTuple):
    """Where a run takes place: the server, our part of it, and a directory for files."""

    url: str
    namespace: str
    directory: Path

    def settings(self, name: str, max_age_ms: int) -> StoreSettings:
        return StoreSettings(namespace=f"{self.namespace}.{name}", session_max_age_ms=max_age_ms)


def _measure(url: str | None, shares: list[list[Dispatch]], signals: Signals, view: Watch) -> DemoFigures:
    began_s = time.monotonic()
    legacy: dict[str, Any] = json.loads(LEGACY_FILE.read_text("utf-8"))
    keys = {dispatch.key for share in shares for dispatch in share} | legacy.keys()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-sessions-demo-")))
        server = "an embedded Valkey"
        namespace = f"demo-{secrets.token_hex(4)}"
        if url is None:
            view.say(f"Starting {server}")
            url = stack.enter_context(EmbeddedServer(socket=_socket(directory))).url
        else:
            server = urls.parse(url).address
            with SessionStore.from_url(url, StoreSettings(namespace=namespace)) as store:
                store.resume_failures_total()  # fails now if it must: then there is nothing to remove
            stack.callback(_remove, url, namespace, keys)
        place = _Place(url, namespace, directory)
        imported = _import(place, legacy)
        signals.check()
        scene = f"The agent forgets after {AGENT_KEEPS_MS / 1000:g}s. Workers: {len(shares)}. Run"
        view.say(f"{scene} 1 of 2: a map that never forgets")
        without = _run(place, shares, signals, view, name=WITHOUT, max_age_ms=NEVER_MS)
        view.say(f"{scene} 2 of 2: native expiry after the same time")
        expiring = _run(place, shares, signals, view, name=WITH, max_age_ms=AGENT_KEEPS_MS)
        view.say("Both runs are done")
    return DemoFigures(
        server=server,
        workers=len(shares),
        turns=sum(map(len, shares)),
        seed=SEED,
        agent_keeps_ms=AGENT_KEEPS_MS,
        imported=imported,
        without_expiry=without,
        with_expiry=expiring,
        duration_ms=round((time.monotonic() - began_s) * 1000),
    )


def _socket(directory: Path) -> Path | None:
    """A socket only we can reach; None, for a port on loopback, where the temporary directory's name is too long for one."""
    path = directory / "valkey.sock"
    return path if len(os.fsencode(path)) <= SOCKET_PATH_MAX_BYTES else None


def _import(place: _Place, legacy: dict[str, Any]) -> Imported:
    """Write the legacy file with times relative to now, and import it twice."""
    now_ms = time.time_ns() // 1_000_000
    ages_ms = {key: entry["idle_ms"] if isinstance(entry, dict) else None for key, entry in legacy.items()}
    entries = {
        key: {"id": entry["id"], "last_used_at": now_ms - entry["idle_ms"]} if isinstance(entry, dict) else entry
        for key, entry in legacy.items()
    }
    path = place.directory / "sessions.json"
    path.write_text(json.dumps(entries), "utf-8")
    with SessionStore.from_url(place.url, place.settings("imported", DAY_MS)) as store:
        result, again = store.import_legacy(path), store.import_legacy(path)
        live = {row.key for row in store.sessions()}
        report = store.report()
    verdicts = {key: "imported" if key in live else "expired" for key in entries}
    verdicts |= {reject.key: reject.reason for reject in result.rejects}
    return Imported(
        result=result,
        again=again,
        entries=tuple(ImportedEntry(key=key, idle_ms=ages_ms[key], verdict=verdict) for key, verdict in verdicts.items()),
        report=report,
    )


def _run(
    place: _Place, shares: list[list[Dispatch]], signals: Signals, view: Watch, *, name: str, max_age_ms: int
) -> RunFigures:
    """Let the workers dispatch their shares, with an agent that starts without any session."""
    course = Course(shares)
    view.follow(name, course)
    settings = place.settings(name.replace(" ", "-"), max_age_ms)
    agent = place.directory / settings.namespace
    agent.mkdir()
    journal = agent / "journal"
    arguments = [f"--namespace={settings.namespace}", f"--max-age-ms={max_age_ms}", f"--agent-dir={agent}"]
    arguments += [f"--agent-keeps-ms={AGENT_KEEPS_MS}", f"--agent-works-ms={AGENT_WORKS_MS}", f"--journal={journal}"]
    with Fleet(arguments, place.url, shares, agent / "log") as fleet:
        for said in fleet.events():
            signals.check()
            if said is None:
                view.update()
            else:
                course.add(said.worker, said.event)
    view.update()
    now_s = time.time()
    with SessionStore.from_url(place.url, settings) as store:
        live = frozenset(row.session_id for row in store.sessions())
        report = store.report()
    sessions = (agent / "sessions").iterdir()
    known = frozenset(file.name for file in sessions if file.stat().st_mtime > now_s - AGENT_KEEPS_MS / 1000)
    return run_figures(course, report, max_age_ms=max_age_ms, journal=journal, live=live, known=known)


def _remove(url: str, namespace: str, conversations: set[str]) -> None:
    """Delete every key that the demo may have written, by its name: the server is not ours."""
    for name in ("imported", WITHOUT, WITH):
        keys = Keys(f"{namespace}.{name.replace(' ', '-')}")
        names = [keys.counter(counter) for counter in COUNTERS]
        names += [make(key) for key in conversations for make in (keys.session_id, keys.lease)]
        try:
            with SessionStore.from_url(url) as store:
                wire.run(store.client, _deletion(names))
        except SessionStoreError as error:
            complain(f"keys of namespace {namespace} were left behind: {error}")
            return


def _deletion(names: list[bytes]) -> Op[None]:
    yield [Command(("DEL", name)) for name in names]
