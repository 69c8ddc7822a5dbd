"""A stand-in for an agent's command line: it keeps sessions as files, forgets them, and reports it as Claude Code does.

    python -I -S agent.py --dir=DIR --conversation=NAME --keeps-ms=N --works-ms=N [--resume=ID]

| asked to resume | stdout | stderr | exit code |
| --- | --- | --- | --- |
| nothing, or an ID it still has | a `result` record with `session_id` | | 0 |
| an ID unused for longer than `--keeps-ms`, or unknown | | "No conversation found with session ID: <id>" | 1 |

It holds an exclusive lock per conversation while it works, so it detects when a conversation runs twice at once: `"alone"`
in its record.

Run it by its path: `-m` would import the whole package first, which takes ten times as long as the program. For the same
reason it imports neither `json` nor `argparse`.
"""

# Importing pathlib would take longer than all the rest.
# ruff: noqa: PTH103, PTH108, PTH110, PTH123
import fcntl
import os
import sys
import time

ID_CHARACTERS = frozenset("0123456789abcdef-")


def main(arguments: list[str]) -> int:
    """Run one turn and return the exit code."""
    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    sessions, locks = (f"{options['dir']}/{name}" for name in ("sessions", "locks"))
    for directory in (sessions, locks):
        os.makedirs(directory, mode=0o700, exist_ok=True)
    with open(f"{locks}/{options['conversation']}", "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = "true"
        except BlockingIOError:
            alone = "false"
        _forget(sessions, int(options["keeps-ms"]))
        asked = options.get("resume")
        session_id = asked or _new_id()
        path = f"{sessions}/{session_id}"
        if asked is not None and not (ID_CHARACTERS.issuperset(asked) and os.path.exists(path)):
            sys.stderr.write(f"No conversation found with session ID: {asked}\n")
            return 1
        time.sleep(int(options["works-ms"]) / 1000)  # the work
        # One byte per turn: appending is atomic, counts the turns, and sets the time of last use.
        with open(path, "ab") as session:
            session.write(b".")
            turns = session.tell()
        sys.stdout.write(
            '{"type": "result", "subtype": "success", "is_error": false, '
            f'"session_id": "{session_id}", "num_turns": {turns}, "alone": {alone}}}\n'
        )
    return 0


def _forget(sessions: str, keeps_ms: int) -> None:
    """Remove every session that was not used for longer than `keeps_ms`; several agents may do so at once."""
    oldest_ns = time.time_ns() - keeps_ms * 1_000_000
    with os.scandir(sessions) as files:
        for file in files:
            try:
                if file.stat().st_mtime_ns < oldest_ns:
                    os.unlink(file.path)
            except FileNotFoundError:
                continue  # another agent was quicker


def _new_id() -> str:
    digits = os.urandom(16).hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
