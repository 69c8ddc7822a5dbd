"""What an exception says about a run: exit code, records and stderr, as they are judged.

Exceptions of claude-agent-sdk and of the OpenAI client are recognized by their attributes, without importing either package.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple


class Evidence(NamedTuple):
    """What is known about a run that raised.

    Attributes:
        exit_code: of the process; 1 also for a failure without one, None if it is not known.
        stdout: its output, or the records that it would have printed.
        stderr: its standard error, as far as it is known.
    """

    exit_code: int | None
    stdout: str | bytes
    stderr: str | bytes


class RunFailed(Exception):
    """A run that failed under an adapter; the runtime's own error is its cause.

    Attributes:
        evidence: what the adapter saw, for a `judge` to read.
    """

    def __init__(self, why: str, evidence: Evidence) -> None:
        self.evidence = evidence
        super().__init__(why)


def of_process(error: Exception) -> Evidence:
    """Read an error like `subprocess.CalledProcessError`: `returncode`, `stdout`, `stderr`."""
    if isinstance(error, RunFailed):
        return error.evidence
    return Evidence(
        getattr(error, "returncode", None), getattr(error, "stdout", None) or "", getattr(error, "stderr", None) or ""
    )


def of_claude_sdk(error: Exception) -> Evidence:
    """Read an error of claude-agent-sdk: a `ResultError` has the CLI's result, a `ProcessError` at best its stderr.

    Before 0.2.187 the text may have gone to the stderr callback alone, which `adapters.claude_turn` collects.
    """
    if isinstance(error, RunFailed):
        return error.evidence
    stderr = getattr(error, "stderr", None)
    stderr = stderr if isinstance(stderr, str) else ""
    errors, result = getattr(error, "errors", None), getattr(error, "result", None)
    if errors is None and result is None:
        return Evidence(1, "", stderr)
    data = getattr(error, "data", None)
    turns = data.get("num_turns") if isinstance(data, dict) else None
    return Evidence(1, claude_record(errors=errors, result=result, num_turns=turns), stderr)


def claude_record(*, errors: Any, result: Any, num_turns: Any) -> str:
    """The result record that Claude Code prints for a run that failed."""
    record = {"type": "result", "is_error": True, "errors": errors, "result": result, "num_turns": num_turns}
    return json.dumps(record, default=str)


def of_openai(error: Exception) -> Evidence:
    """Read an error of the OpenAI client: the `code` of an `APIStatusError`, such as `previous_response_not_found`."""
    code = getattr(error, "code", None)
    return Evidence(None, json.dumps({"type": "error", "code": code}) if isinstance(code, str) else "", "")


# By the word that a description has for them.
READERS: Final[Mapping[str, Callable[[Exception], Evidence]]] = {
    "process": of_process,
    "claude_sdk": of_claude_sdk,
    "openai": of_openai,
}
