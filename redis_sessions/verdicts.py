"""What an agent's answer means, in words that are the same for every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol


class Verdict(StrEnum):
    """What became of an attempt to resume.

    Attributes:
        ok: the turn succeeded.
        gone: the agent says that the session no longer exists.
        invalid_id: it can't be the name of one.
        busy: another writer has it.
        unusable: it exists and can't be continued (context full, transcript corrupt).
        other: any other failure, and every one that can't be decided.
    """

    ok = "ok"
    gone = "gone"
    invalid_id = "invalid_id"
    busy = "busy"
    unusable = "unusable"
    other = "other"

    @property
    def refused(self) -> bool:
        """Whether the agent positively refused the session, so that trying it again is of no use."""
        return self in (Verdict.gone, Verdict.invalid_id, Verdict.unusable)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict and what else could be read.

    Attributes:
        verdict: what became of the attempt.
        session_id: the session's ID, only from a turn that succeeded.
        turn_began: the agent had begun to work on the turn before it failed; then it is never run again.
    """

    verdict: Verdict
    session_id: str | None = None
    turn_began: bool = False


class Judge(Protocol):
    """`judge(error)` reads what `run` raised while resuming, and returns a Judgement, by which `resume` goes on.

    `redis_sessions.agents.get_agent("codex").judge` is one.
    """

    def __call__(self, error: Exception, /) -> Judgement: ...


GONE_PHRASE = "No conversation found"


def judge_by_phrase(error: Exception) -> Judgement:
    """The judge that `resume` uses unless told: knows Claude Code's «No conversation found», and nothing else.

    Of an error with a `stderr`, as of a `subprocess.CalledProcessError`, only that is read: its own text quotes the
    command, prompt included. Output is never read: that is where an assistant may quote the phrase.
    """
    text = _text(error.stderr) if hasattr(error, "stderr") else str(error)
    return Judgement(Verdict.gone if GONE_PHRASE in text else Verdict.other)


def _text(output: Any) -> str:
    if isinstance(output, bytes):
        return output.decode("utf-8", "replace")
    return output if isinstance(output, str) else ""
