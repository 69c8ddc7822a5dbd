"""A worker for tests: `python -m tests.hammer URL NAMESPACE KEY TURNS DIRECTORY WORKER` resumes one conversation.

Each run takes a lock file that must be free, and appends what it was asked and what it gave to `DIRECTORY/runs`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from redis_sessions import SessionStore, StoreSettings, Turn


def main() -> None:
    url, namespace, key, turns, directory, worker = sys.argv[1:]
    lock = Path(directory) / "lock"
    log = os.open(Path(directory) / "runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    with SessionStore.from_url(url, StoreSettings(namespace=namespace, max_connections=4)) as store:
        for turn in range(int(turns)):
            given = f"{worker}-{turn}"

            def run(asked: str | None, given: str = given) -> Turn[None]:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL))  # FileExistsError: run twice at a time
                os.write(log, f"{asked} {given}\n".encode())
                lock.unlink()
                return Turn(given, None)

            result = store.resume(key, run, wait_ms=100_000)
            assert result.saved, result


if __name__ == "__main__":
    main()
