"""One turn as its caller sees it: what `resume` is asked for, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypeAlias, TypeVar

from redis_sessions.errors import InvalidSettings
from redis_sessions.verdicts import Judgement

V = TypeVar("V")
Judge: TypeAlias = Callable[[Exception], Judgement]
OnOutage: TypeAlias = Literal["run", "raise"]


@dataclass(frozen=True, slots=True)
class Turn(Generic[V]):
    """What `run` returns: the agent's session ID, None if it gave none, and whatever value the caller wants back."""

    session_id: str | None
    value: V


@dataclass(frozen=True, slots=True)
class ResumeResult(Generic[V]):
    """A turn that ran.

    Attributes:
        value: what `run` gave.
        session_id: the ID that the next turn is to resume; None if this turn gave none.
        how: "resumed", "fresh", or "restarted": fresh after a refused resume.
        previous: the ID that was live when the turn was taken up, or None.
        saved: whether Redis now holds `session_id` because of this turn.
        session_changed: a resume came back with another ID: context may be lost.
        reason: why it was no plain resume or fresh start, or why nothing was saved; None if there is nothing to say.
    """

    value: V
    session_id: str | None
    how: Literal["resumed", "fresh", "restarted"]
    previous: str | None
    saved: bool
    session_changed: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `resume`: the conversation and the caller's choices. Raises InvalidSettings."""

    key: str
    judge: Judge
    wait_ms: int = 0
    lease: bool = True
    on_outage: OnOutage = "run"

    def __post_init__(self) -> None:
        if self.on_outage not in ("run", "raise"):
            raise InvalidSettings("on_outage is neither 'run' nor 'raise'", remedy="pass one of them")
        if not isinstance(self.wait_ms, int) or isinstance(self.wait_ms, bool) or self.wait_ms < 0:
            raise InvalidSettings("wait_ms is no number of milliseconds", remedy="pass an int, 0 or more")
        if not callable(self.judge):
            raise InvalidSettings("judge can't be called", remedy="pass a function that takes an exception")


class NoTurn(TypeError):
    """`run` is not what it should be. A mistake in the program, and no failure of the agent's to be judged."""
