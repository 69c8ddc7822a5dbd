"""`run`: put before an agent's command, it resumes the conversation's session or starts fresh, under a lease."""

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from redis_sessions.agents import known_agents
from redis_sessions.cli import exits, show
from redis_sessions.cli.child import Stopped
from redis_sessions.cli.gate import hold_standard_streams
from redis_sessions.cli.options import Options, duration_ms, on_a_store
from redis_sessions.cli.turns import NOT_RUNNABLE, NOT_THERE, TIMED_OUT, AgentFailed, Turns, judge
from redis_sessions.errors import FileNotWritten, InvalidSettings, LeaseHeld, SessionBusy, StoreUnavailable
from redis_sessions.files import replace_file
from redis_sessions.placement import guess, name_of
from redis_sessions.recognise import Agent, Refusal
from redis_sessions.turn import ResumeResult
from redis_sessions.verdicts import Verdict

# As sysexits(3) has them.
AWAY: Final = 69
LEASED: Final = 75

CODES: Final = {
    0: "the agent's own code, whatever it is (1 for 0 if its output was lost); or, if it could not run:",
    AWAY: "Redis is away, and --on-outage raise was given",
    LEASED: "another worker has the conversation",
    TIMED_OUT: "it ran out of time",
    NOT_RUNNABLE: "the command can't be run",
    NOT_THERE: "the command isn't there",
}

_OWN: Final = "For a runtime of your own: "

Key = Annotated[str, typer.Argument(metavar="KEY", help="The conversation, such as acme/shop#42:reviewer.")]
Words = Annotated[list[str], typer.Argument(metavar="AGENT-COMMAND", help="What to run, after --.")]
Name = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Which runtime it is; else told by its name.")]
Wait = Annotated[str | None, typer.Option("--wait", metavar="TIME", help="Wait this long for another worker's turn to end.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="End a run that takes longer: exit code 124.")
]
OnOutage = Annotated[str, typer.Option("--on-outage", metavar="HOW", help="Without Redis: run, or raise (exit code 69).")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say on stderr what was decided and why.")]
ResultFile = Annotated[Path | None, typer.Option("--result", metavar="FILE", help="Write the outcome there, as JSON.")]
Resume = Annotated[str | None, typer.Option("--resume-argument", metavar="TEXT", help=f"{_OWN}what resumes {{id}}.")]
IDField = Annotated[str | None, typer.Option("--id-field", metavar="PATH", help=f"{_OWN}where its JSON has the ID.")]
Gone = Annotated[str | None, typer.Option("--gone", metavar="REGEX", help=f"{_OWN}a stderr line that says «gone».")]


@on_a_store
def run(
    at: Options,
    key: Key,
    command: Words,
    *,
    agent: Name = None,
    wait: Wait = None,
    timeout: Timeout = None,
    on_outage: OnOutage = "run",
    verbose: Verbose = False,
    result: ResultFile = None,
    resume_argument: Resume = None,
    id_field: IDField = None,
    gone: Gone = None,
) -> int:
    """Run an agent: resume the session, or start fresh.

    Takes the conversation's lease, looks up its session ID, adds the runtime's resume argument if there is one, and passes
    input, output, signals and exit code through. The ID of a turn that succeeded is saved. If the agent says that the
    session is gone, invalid or unusable, the ID is deleted, that is counted, and the command runs once more, fresh, with
    the same input; what the refused attempt printed is left out. Once a turn had begun, nothing is run again. Without
    Redis the agent still runs.

    {resume} as a word of the command says where the resume argument goes; without it each runtime has its place.

    Examples:
      redis-sessions run "$KEY" -- claude -p --output-format json "Review the pull request"
      redis-sessions run "$KEY" --wait 30s --timeout 1h -- codex exec --json "Go on" > turn.jsonl
      redis-sessions run "$KEY" --agent claude -- ssh build-7 claude {resume} -p < prompt.txt
      redis-sessions run "$KEY" --resume-argument=--session={id} --id-field session.id -- ./bot {resume}
    """
    if on_outage not in ("run", "raise"):
        raise InvalidSettings("--on-outage is neither run nor raise", remedy="write one of them")
    turns = Turns(
        runtime=_runtime(command, agent, resume_argument, id_field, gone),
        command=command,
        timeout_s=None if timeout is None else duration_ms(timeout, "--timeout") / 1000,
        verbose=verbose,
    )
    hold_standard_streams()
    if result is not None and not os.access(result.parent, os.W_OK):
        raise FileNotWritten(
            f"{result} can't be written", remedy="name a place for --result that is there and can be written"
        )
    turns.place(None)  # a command that could not be resumed is refused before anything is run
    wait_ms = 0 if wait is None else duration_ms(wait, "--wait")
    with turns.signals.installed(), at.store() as store:
        try:
            done = store.resume(
                key,
                turns,
                judge=judge,
                accepts=turns.runtime.can_be,
                wait_ms=wait_ms,
                on_outage="raise" if on_outage == "raise" else "run",
            )
        except (AgentFailed, SessionBusy, LeaseHeld, StoreUnavailable, Stopped) as error:
            code = _delivered(_exit_code(error, turns), turns)
            outcome = _outcome(None, turns.previous, code, str(error))
            turns.discard()
            if verbose or isinstance(error, LeaseHeld | StoreUnavailable):
                show.complain(str(error))
        else:
            code = _delivered(done.value, turns)
            outcome = _outcome(done, done.previous, code, done.reason)
            if verbose:
                show.complain(_story(done))
    if result is not None:
        try:
            replace_file(result, f"{json.dumps(outcome)}\n")
        except FileNotWritten as error:
            # The turn was run: its exit code is what the caller goes by.
            show.complain(str(error))
    return code


def _exit_code(error: BaseException, turns: Turns) -> int:
    if isinstance(error, AgentFailed | Stopped):
        return error.exit_code
    if isinstance(error, LeaseHeld):
        return LEASED
    return turns.exit_code if isinstance(error, SessionBusy) else AWAY


def _delivered(code: int, turns: Turns) -> int:
    """The exit code, which is not 0 where some of the output was lost on its way."""
    if turns.lost is None:
        return code
    show.complain(f"the output can't be written ({turns.lost.strerror})")
    return code or exits.PARTLY


def _outcome(done: ResumeResult[int] | None, previous: str | None, code: int, reason: str | None) -> dict[str, Any]:
    return {
        "how": done and done.how,
        "session_id": done and done.session_id,
        "previous": previous,
        "session_changed": bool(done and done.session_changed),
        "saved": bool(done and done.saved),
        "reason": reason,
        "exit_code": code,
    }


def _story(done: ResumeResult[int]) -> str:
    what = {"fresh": "started fresh", "resumed": f"resumed {done.previous}", "restarted": "started fresh after a refusal"}[
        done.how
    ]
    kept = f"saved {done.session_id}" if done.saved else "saved nothing"
    return "; ".join(part for part in (what, kept, done.reason) if part)


def _runtime(
    command: list[str], name: str | None, resume_argument: str | None, id_field: str | None, gone: str | None
) -> Agent:
    if resume_argument is not None:
        return _described(name or name_of(command[0]), command, resume_argument, id_field, gone)
    if id_field is not None or gone is not None:
        raise InvalidSettings("--id-field and --gone describe a runtime of your own", remedy="add --resume-argument")
    # Those without a command are clients in Python, which no command line resumes.
    runtimes = [agent for agent in known_agents() if agent.commands]
    chosen = name or guess(command, [program for agent in runtimes for program in agent.commands])
    for agent in runtimes:
        if chosen == agent.name or (name is None and chosen in agent.commands):
            return agent
    raise InvalidSettings(
        f"{name or name_of(command[0])} is no agent that can be run here",
        remedy=f"name one with --agent ({', '.join(agent.name for agent in runtimes)}), or describe it: --resume-argument",
    )


def _described(name: str, command: list[str], resume_argument: str, id_field: str | None, gone: str | None) -> Agent:
    if "{id}" not in resume_argument:
        raise InvalidSettings("--resume-argument has no {id} in it", remedy="write it as --session={id}")
    try:
        refusals = (Refusal(Verdict.gone, gone),) if gone and re.compile(gone) else ()
    except re.error as error:
        raise InvalidSettings(f"--gone is no regular expression ({error})", remedy="mend it") from None
    return Agent(
        name=name,
        commands=(name_of(command[0]),),
        resume=tuple(resume_argument.split()),
        session_at=(({}, id_field),) if id_field else (),
        began=({},),
        closed=({},),
        refusals=refusals,
    )
