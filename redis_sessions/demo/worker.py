"""One worker process of the demo: runs turns of shared conversations with `SessionStore.resume()` and a stand-in agent.

    python -m redis_sessions.demo.worker --agent-dir DIR [--conversations 40] [--pause-ms 1000] [--heartbeat FILE]
    python -m redis_sessions.demo.worker --agent-dir DIR --plan-from-stdin

The first form works until SIGTERM and prints a line per turn; the containers of `compose.yaml` run it. The second reads its
turns, `[[at_ms, key], …]`, as one line of JSON from stdin, prints JSON lines, and ends after the last turn or as soon as
stdin is closed, so it can't outlive the demo. The store's URL may come from REDIS_SESSIONS_URL or REDIS_URL, and the
password from the file that REDIS_SESSIONS_PASSWORD_FILE names: there no list of processes shows it.

SIGTERM or SIGINT stops the turn that runs: the agent is killed, the lease is released, the exit code is 0.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import select
import signal
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import DEVNULL, PIPE, CalledProcessError, Popen, SubprocessError
from typing import Any, Final

from redis_sessions import LeaseHeld, SessionStore, SessionStoreError, StoreSettings, Turn
from redis_sessions.client.url import PASSWORD_FILE_VARIABLE, read_password
from redis_sessions.demo import agent as stand_in
from redis_sessions.demo.plan import PlannedTurn, conversations

AGENT_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Event:
    """What a worker reports: that it is ready, or how a turn went."""

    how: str  # "ready", or how the turn went: "resumed", "fresh", "restarted" or "failed"
    key: str = ""
    session_id: str | None = None  # the ID that the next turn is to resume
    took_ms: int = 0
    waited: bool = False  # for the lease
    wasted_ms: int = 0  # how long the agent took to refuse to resume
    saved: bool = False  # Redis now holds the session ID
    alone: bool = True  # the agent saw no other run of this conversation at the same time
    error: str = ""

    def line(self) -> str:
        """A turn as a line of a log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        began = f"{now} {self.how} conversation={self.key}"
        if self.error:
            return f"{began} took_ms={self.took_ms} error={self.error!r}"
        facts = (f"{name}={'yes' if getattr(self, name) else 'no'}" for name in ("waited", "saved", "alone"))
        return " ".join((began, f"session={self.session_id} took_ms={self.took_ms}", *facts))


@dataclass
class Worker:
    """Runs one turn after the other, as the options of `parser` say."""

    options: argparse.Namespace
    store: SessionStore = field(init=False)
    _stopping: bool = False
    _starting_agent: bool = False

    def stop(self, *_: object) -> None:
        """Handle a signal by SystemExit, once: a second one must not interrupt the way out."""
        first, self._stopping = not self._stopping, True
        if first and not self._starting_agent:
            raise SystemExit(0)

    def report(self, event: Event) -> None:
        """Print an event: as JSON for the demo, as a line of a log for people."""
        line = json.dumps(asdict(event)) if self.options.plan_from_stdin else event.line()
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    def run_turn(self, key: str) -> bool:
        """Run one turn of a conversation and report how it went. False if it failed."""
        turn = Event("failed", key)
        began_s = time.monotonic()

        def run(session_id: str | None) -> Turn[bool]:
            asked_s = time.monotonic()
            try:
                return self._run_agent(key, session_id)
            except CalledProcessError:
                turn.wasted_ms += ms_since(asked_s) if session_id else 0
                raise

        try:
            try:
                result = self.store.resume(key, run)
            except LeaseHeld:
                # Two calls only to know that it waited.
                turn.waited = True
                result = self.store.resume(key, run, wait_ms=self.options.wait_ms)
            turn.how, turn.session_id, turn.saved, turn.alone = result.how, result.session_id, result.saved, result.value
        except (SessionStoreError, SubprocessError, OSError) as error:
            text = str(error.stderr if isinstance(error, CalledProcessError) else error).strip()
            # The end of it, in ASCII: several workers may share a pipe, and only a short line is written at once.
            turn.error = f"{type(error).__name__}: {ascii(text)[1:-1][-120:]}"
        turn.took_ms = ms_since(began_s)
        self.report(turn)
        return not turn.error

    def _run_agent(self, key: str, session_id: str | None) -> Turn[bool]:
        """Run the stand-in agent; the value is whether it ran alone. Raises SubprocessError and OSError."""
        options = self.options
        command = [sys.executable, "-I", "-S", stand_in.__file__, f"--dir={options.agent_dir}"]
        command += [f"--conversation={hashlib.sha256(key.encode()).hexdigest()}"]
        command += [f"--keeps-ms={options.agent_keeps_ms}", f"--works-ms={options.agent_works_ms}"]
        command += [f"--resume={session_id}"] if session_id else []
        with ExitStack() as stack:
            # An agent that was started but is not known yet would run on. A signal mask would not do: the store has threads.
            self._starting_agent = True
            try:
                agent = stack.enter_context(Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True))
                stack.callback(agent.kill)
            finally:
                self._starting_agent = False
            if self._stopping:
                raise SystemExit(0)
            stdout, stderr = agent.communicate(timeout=AGENT_TIMEOUT_S)
        if agent.returncode != 0:
            raise CalledProcessError(agent.returncode, command, stdout, stderr)
        record = json.loads(stdout)
        return Turn(record["session_id"], record["alone"])


def ms_since(then_s: float) -> int:
    """Milliseconds that have passed since a time of `time.monotonic()`."""
    return round((time.monotonic() - then_s) * 1000)


def _follow_plan(worker: Worker) -> None:
    """Run the turns that stdin lists, each at its time, until all are done or stdin is closed."""
    worker.report(Event("ready"))
    planned = [PlannedTurn(*item) for item in json.loads(sys.stdin.buffer.readline() or b"[]")]
    began_s = time.monotonic()
    for at_ms, key in planned:
        ahead_s = max(0.0, began_s + at_ms / 1000 - time.monotonic())
        if select.select([sys.stdin], [], [], ahead_s)[0]:
            return
        worker.run_turn(key)


def _work_until_stopped(worker: Worker) -> None:
    """Run turns without end: a few of the conversations often, most of them now and then."""
    options = worker.options
    keys = conversations(options.conversations)
    weights = [rank**-1.5 for rank in range(1, len(keys) + 1)]
    while True:
        [key] = random.choices(keys, weights)
        if worker.run_turn(key) and options.heartbeat is not None:
            options.heartbeat.touch()
        time.sleep(random.uniform(0.5, 1.5) * options.pause_ms / 1000)  # the pace of the work: there is nothing to wait for


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """The worker's command line."""
    takes = argparse.ArgumentParser(prog="python -m redis_sessions.demo.worker", description="One worker of the demo.")

    def add(name: str, help_text: str, **options: Any) -> None:
        takes.add_argument(name, help=help_text, **options)

    url = os.environ.get("REDIS_SESSIONS_URL") or os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"
    add("--url", "the store; default: REDIS_SESSIONS_URL, REDIS_URL, redis://127.0.0.1:6379/0", default=url)
    add("--namespace", "first part of every key", default="demo")
    add("--max-age-ms", "how long Redis keeps an unused session ID", type=_positive, default=120_000)
    add("--wait-ms", "how long to wait for a conversation that another worker runs", type=_positive, default=30_000)
    add("--agent-dir", "where the stand-in agent keeps its sessions", type=Path, required=True)
    add("--agent-keeps-ms", "how long the agent keeps an unused session", type=_positive, default=120_000)
    add("--agent-works-ms", "how long the agent takes for a turn", type=_positive, default=200)
    add("--plan-from-stdin", "run the turns that one line of JSON on stdin lists", action="store_true")
    add("--conversations", "how many conversations there are", type=_positive, default=40)
    add("--pause-ms", "average pause between turns", type=_positive, default=1_000)
    add("--heartbeat", "file to touch after each turn", type=Path)
    return takes


def main(arguments: list[str] | None = None) -> int:
    """Work, and return the exit code: 0 when done or stopped, 2 for arguments that can't be used."""
    options = parser().parse_args(arguments)
    worker = Worker(options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.stop)
    # Warnings of the store go to stderr, with the same times as the lines on stdout.
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(format="%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%S")
    file = os.environ.get(PASSWORD_FILE_VARIABLE)
    try:
        settings = StoreSettings(namespace=options.namespace, session_max_age_ms=options.max_age_ms)
        password = read_password(Path(file) if file else None)
        with SessionStore.from_url(options.url, settings, password=password) as worker.store:
            (_follow_plan if options.plan_from_stdin else _work_until_stopped)(worker)
    except BrokenPipeError:
        # Nobody reads stdout any more; the interpreter must not try to flush it at exit.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SessionStoreError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
