"""What an exception says about a run: exit code, records and stderr, as they are judged.

Exceptions of claude-agent-sdk and of the OpenAI client are recognized by their attributes, without importing either package.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from redis_sessions.agents.judge import TIMED_OUT

# What a result of Claude Code says about its failure, besides its words.
CLAUDE_FACTS: Final = ("subtype", "num_turns", "session_id", "usage", "api_error_status")


class Evidence(NamedTuple):
    """What is known about a run that raised.

    Attributes:
        exit_code: of the process; 1 also for a failure without one, None if it is not known.
        stdout: its output, or the records that it would have printed.
        stderr: its standard error, as far as it is known.
        command: its program and words; None if they are not known.
    """

    exit_code: int | None
    stdout: str | bytes
    stderr: str | bytes
    command: Sequence[str] | None = None


class RunFailed(Exception):
    """A run that failed under an adapter; the runtime's own error is its cause.

    Attributes:
        evidence: what the adapter saw, for a `judge` to read.
    """

    def __init__(self, why: str, evidence: Evidence) -> None:
        self.evidence = evidence
        super().__init__(why)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.evidence), self.__dict__


def of_process(error: Exception) -> Evidence:
    """Read an error like `subprocess.CalledProcessError`: `returncode`, `stdout`, `stderr`, `cmd`.

    One that says that time ran out, such as `subprocess.TimeoutExpired`, is read as timeout(1) ends.
    """
    if isinstance(error, RunFailed):
        return error.evidence
    exit_code = TIMED_OUT if _timed_out(error) else getattr(error, "returncode", None)
    command = getattr(error, "cmd", None)
    words = [str(word) for word in command] if isinstance(command, list | tuple) else None
    return Evidence(exit_code, getattr(error, "stdout", None) or "", getattr(error, "stderr", None) or "", words)


def of_claude_sdk(error: Exception) -> Evidence:
    """Read an error of claude-agent-sdk: a `ResultError` has the CLI's result, a `ProcessError` at best its stderr.

    Before 0.2.187 the text may have gone to the stderr callback alone, which `adapters.claude_turn` collects.
    """
    if isinstance(error, RunFailed):
        return error.evidence
    if _timed_out(error):
        return Evidence(TIMED_OUT, "", "")
    stderr = getattr(error, "stderr", None)
    stderr = stderr if isinstance(stderr, str) else ""
    errors, result = getattr(error, "errors", None), getattr(error, "result", None)
    if errors is None and result is None:
        return Evidence(1, "", stderr)
    data = getattr(error, "data", None)
    known = {name: data.get(name) for name in CLAUDE_FACTS} if isinstance(data, dict) else {}
    return Evidence(1, claude_record(**known | {"errors": errors, "result": result}), stderr)


def claude_record(**facts: Any) -> str:
    """The result record that Claude Code prints for a run that failed."""
    return json.dumps({"type": "result", "is_error": True, **facts}, default=str)


def of_openai(error: object) -> Evidence:
    """Read an error of the OpenAI client: its class, and the code, status and words of an `APIStatusError`.

    The `error` of a response that failed has a code and words, too.
    """
    if isinstance(error, RunFailed):
        return error.evidence
    classes = [kind.__name__ for kind in type(error).__mro__]
    record = {"type": "error", "classes": classes} | {
        name: getattr(error, name, None) for name in ("code", "status_code", "message")
    }
    return Evidence(TIMED_OUT if _timed_out(error) else None, json.dumps(record, default=str), "")


def _timed_out(error: object) -> bool:
    return isinstance(error, TimeoutError | subprocess.TimeoutExpired)


# By the word that a description has for them.
READERS: Final[Mapping[str, Callable[[Exception], Evidence]]] = {
    "process": of_process,
    "claude_sdk": of_claude_sdk,
    "openai": of_openai,
}
