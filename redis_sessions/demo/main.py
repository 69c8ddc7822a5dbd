"""`redis-sessions demo`: what native expiry saves, measured on this machine in about ten seconds.

Several worker processes run the same plan of turns twice: with IDs that never expire, and with a max age shorter than what
the agent keeps. The agent is a stand-in that really forgets, so its refusals are counted, not computed.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final, NamedTuple

from redis_sessions.client import execute
from redis_sessions.client import url as urls
from redis_sessions.demo.plan import AGENT_KEEPS_MS, AGENT_WORKS_MS, MAX_AGE_MS, PlannedTurn, plan
from redis_sessions.demo.processes import DemoError, run_workers
from redis_sessions.demo.results import Course, DemoFigures
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
# The last parts of the namespaces in which it writes.
WITHOUT, WITH = "without-expiry", "with-expiry"


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
            stack.callback(_remove, url, namespace, {turn.key for share in shares for turn in share}, view)
        stage = _Stage(url, namespace, directory, shares, view, stop)
        without = stage.run("without expiry", WITHOUT, NEVER_MS)
        expiring = stage.run(f"expiry after {duration(MAX_AGE_MS)}", WITH, MAX_AGE_MS)
    return DemoFigures(server, len(shares), turns, AGENT_KEEPS_MS, without, expiring)


class _Stage(NamedTuple):
    """What both runs share."""

    url: str
    namespace: str  # the first part of those in which it writes
    directory: Path
    shares: list[list[PlannedTurn]]
    view: LiveView
    stop: threading.Event

    def run(self, title: str, name: str, max_age_ms: int) -> dict[str, int]:
        """Let the workers run their shares, with an agent that starts without any session, and count."""
        course = Course(self.shares, max_age_ms)
        self.view.follow(title, course)
        agent = self.directory / name
        agent.mkdir()
        arguments = [f"--namespace={self.namespace}.{name}", f"--max-age-ms={max_age_ms}", f"--agent-dir={agent}"]
        arguments += [f"--agent-keeps-ms={AGENT_KEEPS_MS}", f"--agent-works-ms={AGENT_WORKS_MS}"]
        with closing(run_workers(arguments, self.url, self.shares, agent / "log")) as events:
            for event in events:
                if self.stop.is_set():
                    raise DemoError("it was stopped")
                if event is not None:
                    course.add(event)
                    if event.error:
                        self.view.say(f"failed: {event.key}: {event.error}")
                self.view.update()
        return dict(course.counts)


def _remove(url: str, namespace: str, conversations: set[str], view: LiveView) -> None:
    """Delete every key that the demo may have written, by name: the server belongs to somebody else."""
    try:
        with SessionStore.from_url(url) as store:
            for name in (WITHOUT, WITH):
                keys = Keys(f"{namespace}.{name}")
                names = [keys.settings(), *(keys.counter(counter) for counter in COUNTERS)]
                names += [make(key) for key in conversations for make in (keys.session_id, keys.record, keys.lease)]
                execute.run(store.client, _deletion(names))
    except SessionStoreError as error:
        view.say(f"keys of namespace {namespace} were left behind: {error}")


def _deletion(names: list[bytes]) -> Op[None]:
    yield [Command(("DEL", name)) for name in names]
