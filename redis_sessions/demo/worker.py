"""One worker process: dispatches turns of shared conversations through `SessionStore.resume()`, a stand-in agent runs them.

    python -m redis_sessions.demo.worker --agent-dir DIR [--conversations 40] [--pause-ms 1000] [--heartbeat FILE]
    python -m redis_sessions.demo.worker --agent-dir DIR --plan-from-stdin

The first form works until SIGTERM and prints a line a dispatch: that is what the containers of `compose.yaml` run. The
second takes its dispatches, `[[at_ms, key], …]`, as one line of JSON from stdin, prints JSON lines, and ends with its
plan or as soon as stdin is closed, so that it can't outlive the demo that started it. The store's URL may also come from
the environment, `REDIS_SESSIONS_URL` or `REDIS_URL`, and its password from the file that `REDIS_SESSIONS_PASSWORD_FILE`
names: there no list of processes shows it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from redis_sessions import SessionStore, SessionStoreError, StoreSettings
from redis_sessions.client.password import PASSWORD_FILE_VARIABLE, read_password
from redis_sessions.demo.plan import Dispatch, conversations
from redis_sessions.demo.turns import Event, StandIn, Worker, ms_since

WAIT_MS: Final = 30_000


def _say_json(event: Event) -> None:
    _put(json.dumps(asdict(event)))


def _say_line(event: Event) -> None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if event.what == "failed":
        _put(f"{now} failed conversation={event.key} took_ms={event.took_ms} error={event.error!r}")
    elif event.what == "done":
        facts = {"conversation": event.key, "session": event.session_id, "took_ms": event.took_ms}
        facts |= {"waited": _yes(event.waited), "saved": _yes(event.saved), "alone": _yes(event.alone)}
        _put(" ".join((now, event.how, *(f"{name}={value}" for name, value in facts.items()))))


def _put(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _log_to_stderr() -> None:
    """What the store has to say, with the time as in the lines on stdout."""
    handler = logging.StreamHandler()
    handler.formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    handler.formatter.converter = time.gmtime
    logging.basicConfig(handlers=[handler])


def _yes(fact: bool) -> str:  # noqa: FBT001 - the fact is all there is to it
    return "yes" if fact else "no"


class _Stopped(BaseException):
    """SIGTERM or SIGINT came. No Exception, so that nothing on the way out takes it for a failure."""


class _Stop:
    """The signal handler: raises _Stopped, once: a second must not disturb the way out, which gives the lease back."""

    def __init__(self) -> None:
        self._asked = False
        self._held = False

    def __call__(self, *_: object) -> None:
        asked, self._asked = self._asked, True
        if not (asked or self._held):
            raise _Stopped

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Put the exception off to the end of the block."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._asked:
            raise _Stopped


def _follow_plan(worker: Worker) -> None:
    """Dispatch what stdin says at its time, until all is done or stdin is closed."""
    worker.say(Event(what="ready"))
    plan = [Dispatch(*item) for item in json.loads(sys.stdin.buffer.readline() or b"[]")]
    began_s = time.monotonic()
    for at_ms, key in plan:
        ahead_s = max(0.0, began_s + at_ms / 1000 - time.monotonic())
        if select.select([sys.stdin], [], [], ahead_s)[0]:
            return
        worker.dispatch(key, late_ms=max(0, ms_since(began_s) - at_ms))


def _work_until_stopped(worker: Worker, count: int, pause_ms: int, heartbeat: Path | None) -> None:
    """Dispatch turns of `count` conversations for ever: a few of them often, most of them now and then."""
    keys = conversations(count)
    weights = [rank**-1.5 for rank in range(1, count + 1)]
    while True:
        [key] = random.choices(keys, weights)
        if worker.dispatch(key) and heartbeat is not None:
            heartbeat.touch()
        time.sleep(random.uniform(0.5, 1.5) * pause_ms / 1000)  # the pace of the work: there is nothing to wait for


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parser() -> argparse.ArgumentParser:
    """What a worker takes on its command line."""
    takes = argparse.ArgumentParser(prog="python -m redis_sessions.demo.worker", description="One worker of the demo.")

    def add(name: str, help_text: str, **options: Any) -> None:
        takes.add_argument(name, help=help_text, **options)

    url = os.environ.get("REDIS_SESSIONS_URL") or os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0"
    add("--url", "the store; else REDIS_SESSIONS_URL, REDIS_URL, redis://127.0.0.1:6379/0", default=url)
    add("--namespace", "first part of every key", default="demo")
    add("--max-age-ms", "how long a session ID may stay unused", type=_positive, default=120_000)
    add("--wait-ms", "how long to wait for a conversation that another worker runs", type=_positive, default=WAIT_MS)
    add("--agent-dir", "where the stand-in agent keeps its sessions", type=Path, required=True)
    add("--agent-keeps-ms", "how long it keeps one that is not used", type=_positive, default=120_000)
    add("--agent-works-ms", "how long a turn takes it", type=_positive, default=200)
    add("--journal", "file that tells how each start of the agent went", type=Path)
    add("--plan-from-stdin", "dispatch what one line of JSON on stdin says", action="store_true")
    add("--conversations", "how many conversations there are", type=_positive, default=40)
    add("--pause-ms", "how long to pause between dispatches, on average", type=_positive, default=1_000)
    add("--heartbeat", "file to touch after each turn", type=Path)
    return takes


def main(arguments: list[str] | None = None) -> int:
    """Work; the exit code: 0 when done or stopped, 2 for arguments that can't be used."""
    options = parser().parse_args(arguments)
    stop = _Stop()
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        _log_to_stderr()
        settings = StoreSettings(namespace=options.namespace, session_max_age_ms=options.max_age_ms)
        agent = StandIn(options.agent_dir, options.agent_keeps_ms, options.agent_works_ms, options.journal, stop.undisturbed)
        file = os.environ.get(PASSWORD_FILE_VARIABLE)
        password = read_password(Path(file) if file else None)
        with SessionStore.from_url(options.url, settings, password=password) as store:
            if options.plan_from_stdin:
                _follow_plan(Worker(store, agent, options.wait_ms, _say_json))
            else:
                worker = Worker(store, agent, options.wait_ms, _say_line)
                _work_until_stopped(worker, options.conversations, options.pause_ms, options.heartbeat)
    except _Stopped:
        pass
    except BrokenPipeError:
        # Whoever read us is gone. Nothing more can be said, at exit neither.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SessionStoreError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
