"""One turn as its caller sees it: what `resume` takes, what it returns, and how an agent's answer is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, TypeAlias, TypeVar

from redis_sessions.errors import InvalidSessionID, InvalidSettings
from redis_sessions.keys import check_session_id
from redis_sessions.operations.conversation import Place, Record

V = TypeVar("V")
Accepts: TypeAlias = Callable[[str], bool]
OnOutage: TypeAlias = Literal["run", "raise"]
OnElsewhere: TypeAlias = Literal["try", "raise"]
How: TypeAlias = Literal["resumed", "fresh", "restarted", "gave_up", "rotated"]

GONE_PHRASE: Final = "No conversation found"
_EXCERPT_CHARS: Final = 60
# A record's numbers have fewer digits.
_TOO_MANY_TOKENS: Final = 10**18


class Verdict(StrEnum):
    """The outcome of an attempt to resume.

    Attributes:
        ok: the turn succeeded.
        gone: the agent says that the session no longer exists.
        invalid_id: the agent says that the ID can't be that of a session.
        busy: another writer has it.
        unusable: it exists and can't be continued (context full, transcript corrupt).
        unavailable: the provider or the login keeps the agent from working: 401, 403, 429, 5xx, a usage limit, no network.
            It says nothing of the session.
        other: any other failure, and every one that can't be decided.
    """

    ok = "ok"
    gone = "gone"
    invalid_id = "invalid_id"
    busy = "busy"
    unusable = "unusable"
    unavailable = "unavailable"
    other = "other"

    @property
    def refused(self) -> bool:
        """Whether the agent positively refused the session, so that trying it again is of no use."""
        return self in (Verdict.gone, Verdict.invalid_id, Verdict.unusable)


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and what else could be read.

    Attributes:
        verdict: the outcome of the attempt.
        session_id: the session's ID once the model has answered in it, whatever the verdict: such a session is real, and is
            saved. None before that, since failed starts print IDs of sessions that never existed.
        turn_began: the agent had begun to work on the turn before it failed; then it is never run again.
        cut_short: the run was ended from outside, by a signal or a time limit, or could not be started, which says
            nothing of the session.
        previous_gone: the turn succeeded, but in another session than the one that was to be resumed, which was gone.

    A verdict may be given by its word: "gone". Raises TypeError for any other, and for a session ID that is not a str.
    """

    verdict: Verdict
    session_id: str | None = None
    turn_began: bool = False
    cut_short: bool = False
    previous_gone: bool = False

    def __post_init__(self) -> None:
        if self.verdict not in list(Verdict):
            words = ", ".join(Verdict)
            raise TypeError(f"the verdict of a Judgement must be one of {words}, not {excerpt(self.verdict)}")
        object.__setattr__(self, "verdict", Verdict(self.verdict))
        if not isinstance(self.session_id, str | None):
            kind = type(self.session_id).__name__
            raise TypeError(f"the session_id of a Judgement must be a str or None, not {kind}: pass str(session_id)")


class Judge(Protocol):
    """`judge(error)` reads what `run` raised while resuming, and returns a Judgement, which decides how `resume` goes on.

    `redis_sessions.agents.get_agent("codex").judge` is one.
    """

    def __call__(self, error: Exception, /) -> Judgement: ...


def judge_by_phrase(error: Exception) -> Judgement:
    """The default judge of `resume`: knows Claude Code's "No conversation found", and nothing else.

    If the error has a `stderr`, as a `subprocess.CalledProcessError` has, only that is read: its own text quotes the
    command, prompt included. Output is never read: an assistant may quote the phrase there.
    """
    text = _text(error.stderr) if hasattr(error, "stderr") else str(error)
    return Judgement(Verdict.gone if GONE_PHRASE in text else Verdict.other)


def _text(output: Any) -> str:
    if isinstance(output, bytes):
        return output.decode("utf-8", "replace")
    return output if isinstance(output, str) else ""


@dataclass(frozen=True, slots=True)
class Turn(Generic[V]):
    """What `run` returns: a turn that succeeded. A turn that failed raises instead.

    Attributes:
        session_id: the session's ID as the agent gave it, which the next turn is to resume; None if it gave none.
        value: whatever the caller of `resume` wants back, in its result's `value`; default: None.
        complete: False if the turn was cut short after the model had answered; default: True.
        context_tokens: size of the session's context after the turn, in tokens; None if it is not known.
        previous_gone: whether the agent started this session because the one it was to resume was gone; default: None, which
            takes another session for that if the agent given to `resume` keeps its IDs.

    Raises TypeError for a session ID that is not a str, such as a UUID: `Turn(str(session_id))`; and for `context_tokens`
    that are not an int, 0 or more.
    """

    session_id: str | None
    value: V = None  # type: ignore[assignment] # Turn("id") is a Turn[None]
    complete: bool = True
    context_tokens: int | None = None
    previous_gone: bool | None = None

    def __post_init__(self) -> None:
        if self.session_id is not None and not isinstance(self.session_id, str):
            kind = type(self.session_id).__name__
            raise InvalidTurn(f"the session_id of a Turn must be a str or None, not {kind}: write Turn(str(session_id), …)")
        tokens = self.context_tokens
        if tokens is not None and (type(tokens) is not int or not 0 <= tokens < _TOO_MANY_TOKENS):
            given = "one that is negative or too large" if type(tokens) is int else type(tokens).__name__
            raise InvalidTurn(f"the context_tokens of a Turn must be an int, 0 or more, or None, not {given}")


class TurnStart(NamedTuple):
    """How a turn was started that runs now.

    Attributes:
        how: as in the ResumeResult that it leads to, unless the agent refuses, or starts another session by itself.
        previous: the ID that was live when the turn was taken up, or None: what a fresh run may hand over from.
    """

    how: How
    previous: str | None


class ResumeResult(NamedTuple, Generic[V]):
    """A turn that ran.

    Attributes:
        value: the `value` of the Turn that `run` returned.
        session_id: the ID that the next turn is to resume: this turn's, or the one that it resumed; else None.
        how: "resumed", "fresh", "restarted" (fresh after a refused resume), "gave_up" (fresh after too many failures), or
            "rotated" (fresh because the session had reached a limit).
        previous: the ID that was live when the turn was taken up, or None.
        saved: whether Redis now holds `session_id` because of this turn.
        session_changed: a resume came back with another ID: context may be lost.
        reason: why it was not a plain resume or fresh start, or why nothing was saved; None if there is nothing to say.
        moved: the session was refused as gone, and had been made elsewhere: it may still live there.
        replicated: whether as many replicas have it as the settings ask for; None if they ask for none, or it wasn't saved.
    """

    value: V
    session_id: str | None
    how: How
    previous: str | None
    saved: bool
    session_changed: bool
    reason: str | None
    moved: bool = False
    replicated: bool | None = None


@dataclass(slots=True)
class Request:
    """One call of `resume`: the conversation and the caller's choices. Raises InvalidSettings."""

    key: str
    judge: Judge
    agent: str | None = None
    keeps_id: bool = False
    accepts: Accepts | None = None
    wait_ms: int = 0
    lease: bool = True
    on_outage: OnOutage = "run"
    place: Place | None = None
    on_elsewhere: OnElsewhere = "try"
    # In what its agent's sessions are bound to a place: all versions of it, and some.
    bound_to: tuple[str, ...] = Place.__slots__
    once_bound_to: tuple[str, ...] = ()
    # The turns that run now, by the tokens of their claims: where `save_early` finds them.
    running: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.on_outage not in ("run", "raise"):
            raise InvalidSettings("is neither 'run' nor 'raise'", setting="on_outage", remedy="pass one of them")
        if self.on_elsewhere not in ("try", "raise"):
            raise InvalidSettings("is neither 'try' nor 'raise'", setting="on_elsewhere", remedy="pass one of them")
        if self.place is None and self.on_elsewhere == "raise":
            raise InvalidSettings("'raise' needs a place to compare", setting="on_elsewhere", remedy="pass place=Place(…)")
        if self.place is not None and not isinstance(self.place, Place):
            raise TypeError(f"place must be a redis_sessions.Place, not {type(self.place).__name__}")
        if not isinstance(self.wait_ms, int) or isinstance(self.wait_ms, bool) or self.wait_ms < 0:
            raise InvalidSettings("must be a number of milliseconds", setting="wait_ms", remedy="pass an int, 0 or more")
        if not isinstance(self.lease, bool):
            raise InvalidSettings(
                "must be True or False", setting="lease", remedy="pass one of them; resume claims the conversation itself"
            )
        if not callable(self.judge):
            # A runtime or its name, which is what `agent` takes.
            runtime = type(self.judge) is str or hasattr(self.judge, "judge")
            remedy = "pass agent= instead" if runtime else "pass a function that takes an exception"
            raise InvalidSettings("can't be called", setting="judge", remedy=remedy)
        if self.accepts is not None and not callable(self.accepts):
            raise InvalidSettings("can't be called", setting="accepts", remedy="pass a function that takes a session ID")

    def objection(self, session_id: str) -> str | None:
        """Why this can't be the ID of a session to resume here; None if it can."""
        try:
            check_session_id(self.key, session_id)
        except InvalidSessionID:
            return "is not a valid session ID"
        return self.foreign(session_id)

    def foreign(self, session_id: str) -> str | None:
        """Same as `objection`, for an ID that was checked before."""
        return None if self.accepts is None or self.accepts(session_id) else "this agent can't resume"

    def elsewhere(self, made: Record, *, ever: bool = False) -> str | None:
        """In what the place that a session was made in is another one, for its agent: "host, directory"; None if it isn't.

        Args:
            made: what is known of the session.
            ever: whether what only some versions of the agent are bound to counts too.
        """
        if self.place is None:
            return None
        names = [
            name
            for name in (*self.bound_to, *(self.once_bound_to if ever else ()))
            if (there := getattr(made, name)) and (here := getattr(self.place, name)) and there != here
        ]
        return ", ".join(names) or None


def excerpt(session_id: object) -> str:
    """A supposed session ID for a message: quoted, escaped, and cut after 60 characters."""
    text = str(session_id)
    return repr(text) if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]!r}…"


class InvalidTurn(TypeError):
    """`run` did not return a Turn: a programming error, not a failure of the agent to be judged."""
