"""A worker to be stopped and killed: `python -m tests.faults.worker URL SETTINGS-JSON [KEYS LOG]`.

Without KEYS it takes orders: each line of its stdin is a turn, `{"key", "gives", "stop_at"}`. It prints `{"at", "asked"}`
at the point `stop_at`, waits there for a line, and ends with `{"saved", "reason", "log"}`.

With KEYS (comma-separated) it runs turns on any of them until its stdin ends, and appends what it does to the file LOG.
"""

from __future__ import annotations

import json
import logging
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from redis_sessions import Lease, LeaseHeld, SessionStore, StoreSettings, StoreUnavailable, Turn

WORK_S = 0.15


class Watched(SessionStore):
    """Reports the points of a turn: "claimed", "ran" (and not saved), "saved" (and counted), "renewed"."""

    at: Callable[..., None]

    def _run(self, op: Any) -> Any:
        name, began_s = op.__name__, time.monotonic()
        if name == "save":
            self.at("ran")
        result = super()._run(op)
        if name == "acquire" and isinstance(result, Lease):
            self.at("claimed", token=result.token, contact_s=began_s)
        elif name == "renew" and result:
            self.at("renewed", contact_s=began_s)
        elif name == "save":
            self.at("saved")
        return result


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def obey(store: Watched, log: Lines) -> None:
    for line in sys.stdin:
        turn = json.loads(line)
        asked: list[str | None] = [None]

        def at(point: str, turn: Any = turn, asked: Any = asked, **_: Any) -> None:
            if point == turn["stop_at"]:
                say(at=point, asked=asked[0])
                sys.stdin.readline()

        def run(session_id: str | None, turn: Any = turn, asked: Any = asked, at: Any = at) -> Turn[None]:
            asked[0] = session_id
            at("run")
            return Turn(turn["gives"], None)

        store.at = at
        log.said.clear()
        result = store.resume(turn["key"], run)
        say(saved=result.saved, reason=result.reason, log=list(log.said))


def work(store: Watched, log: Lines, keys: list[str], path: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    turn = 0
    while not over.is_set():
        turn += 1
        name = f"{os.getpid()}-{turn}"
        key = random.choice(keys)

        def at(point: str, name: str = name, key: str = key, **what: Any) -> None:
            event = {"turn": name, "key": key, "point": point, "at_s": time.monotonic(), **what}
            os.write(file, f"{json.dumps(event)}\n".encode())

        def run(session_id: str | None, name: str = name, at: Any = at) -> Turn[None]:
            at("run", asked=session_id)
            over.wait(random.uniform(0, WORK_S))
            at("end")
            return Turn(session_id if session_id and random.random() < 0.5 else name, None)

        store.at = at
        log.said.clear()
        try:
            result = store.resume(key, run, wait_ms=1_000, on_outage="raise")
            at("done", saved=result.saved, session_id=result.session_id, reason=result.reason, log=list(log.said))
        except (LeaseHeld, StoreUnavailable) as error:
            at("refused", error=type(error).__name__)
        except Exception as error:  # noqa: BLE001 - counted as harm by the test
            at("untyped", error=repr(error))


def main() -> None:
    url, settings, *rest = sys.argv[1:]
    log = Lines()
    logging.getLogger("redis_sessions").addHandler(log)
    with Watched.from_url(url, StoreSettings(**json.loads(settings))) as store:
        if rest:
            work(store, log, rest[0].split(","), rest[1])
        else:
            obey(store, log)


if __name__ == "__main__":
    main()
