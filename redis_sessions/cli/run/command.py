"""`run`: put before an agent's command, it resumes the conversation's session or starts fresh, under a lease."""

import json
import os
import re
import signal
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from redis_sessions.agents.command_line import lacks
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import Options, on_a_store
from redis_sessions.cli.program import NAME
from redis_sessions.cli.run.attempts import NOT_RUNNABLE, NOT_THERE, TIMED_OUT, AgentFailed, Turns, judge
from redis_sessions.cli.run.gate import hold_standard_streams
from redis_sessions.cli.run.process import Stopped
from redis_sessions.cli.run.runtimes import runtime_of
from redis_sessions.cli.warnings import warnings_aloud
from redis_sessions.errors import FileNotWritten, InvalidSettings, LeaseHeld, SessionBusy, StoreUnavailable
from redis_sessions.legacy.atomic_file import replace_file
from redis_sessions.resume.turn import ResumeResult
from redis_sessions.text import parse_duration_ms

# As sysexits(3) has them.
AWAY: Final = 69
LEASED: Final = 75

CODES: Final = {
    0: "the agent's own code, whatever it is (1 for 0 if its output was lost); or, if it could not run:",
    AWAY: "Redis is away or refuses access, and --on-outage raise was given",
    LEASED: "another worker has the conversation",
    TIMED_OUT: "it ran out of time",
    NOT_RUNNABLE: "the command can't be run",
    NOT_THERE: "the command isn't there",
}

# As a word of a command it asks for JSON, in whatever option of whatever runtime.
_JSON: Final = re.compile(r"(?:--|--experimental-|-.*=)?(?:stream-)?json")
_OWN: Final = "For a runtime of your own: "

Key = Annotated[str, typer.Argument(metavar="KEY", help="The conversation, such as acme/shop#42:reviewer.")]
Words = Annotated[list[str], typer.Argument(metavar="AGENT-COMMAND", help="What to run, after --.")]
Name = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Which runtime it is; else told by its name.")]
AgentFile = Annotated[
    Path | None, typer.Option("--agent-file", metavar="FILE", help=f"{_OWN}its TOML file; see redis-sessions agents.")
]
Wait = Annotated[str | None, typer.Option("--wait", metavar="TIME", help="Wait this long for another worker's turn to end.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="End a run that takes longer: exit code 124.")
]
OnOutage = Annotated[str, typer.Option("--on-outage", metavar="HOW", help="Without Redis: run, or raise (exit code 69).")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but why it failed.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say on stderr what was decided and why.")]
ResultFile = Annotated[Path | None, typer.Option("--result", metavar="FILE", help="Write the outcome there, as JSON.")]
Resume = Annotated[str | None, typer.Option("--resume-argument", metavar="TEXT", help=f"{_OWN}what resumes {{id}}.")]
IDField = Annotated[str | None, typer.Option("--id-field", metavar="PATH", help=f"{_OWN}where its JSON has the ID.")]
Gone = Annotated[str | None, typer.Option("--gone", metavar="REGEX", help=f"{_OWN}a stderr line that says «gone».")]


# Its output is the agent's.
@partial(on_a_store, but=("as_json",))
def run(
    at: Options,
    key: Key,
    command: Words,
    *,
    agent: Name = None,
    agent_file: AgentFile = None,
    wait: Wait = None,
    timeout: Timeout = None,
    on_outage: OnOutage = "run",
    verbose: Verbose = False,
    quiet: Quiet = False,
    result: ResultFile = None,
    resume_argument: Resume = None,
    id_field: IDField = None,
    gone: Gone = None,
) -> int:
    """Run an agent: resume the session, or start fresh.

    It is for agents that run one turn and end, in print mode: their output is read here on its way.

    Takes the conversation's lease, looks up its session ID, adds the runtime's resume argument if there is one, and passes
    input, output, signals and exit code through. The ID of a turn that succeeded is saved. If the agent says that the
    session is gone, invalid or unusable, the ID is deleted, that is counted, and the command runs once more, fresh, with
    the same input; what the refused attempt printed is left out. Once a turn had begun, nothing is run again. Without
    Redis the agent still runs, fresh; stderr says so, as it does of all else that keeps a turn from being resumed later.

    {resume} as a word of the command says where the resume argument goes; without it each runtime has its place.

    Examples:
      redis-sessions run "$KEY" -- claude -p --output-format json "Review the pull request"
      redis-sessions run "$KEY" --wait 30s --timeout 1h -- codex exec --json "Go on" > turn.jsonl
      redis-sessions run "$KEY" --agent claude -- ssh build-7 claude {resume} -p < prompt.txt
      redis-sessions run "$KEY" --agent-file bot.toml -- ./bot -p "Go on"
      redis-sessions run "$KEY" --resume-argument=--session={id} --id-field session.id -- ./bot {resume}
    """
    if on_outage not in ("run", "raise"):
        raise InvalidSettings("--on-outage is neither run nor raise", remedy="write one of them")
    if quiet and verbose:
        raise InvalidSettings("--quiet and --verbose exclude each other", remedy="give one of them")
    timeout_ms = None if timeout is None else parse_duration_ms(timeout, "--timeout")
    if timeout_ms == 0:
        raise InvalidSettings("--timeout leaves the agent no time at all", remedy="give more, or leave it out")
    turns = Turns(
        runtime=runtime_of(
            command, name=agent, file=agent_file, resume_argument=resume_argument, id_field=id_field, gone=gone
        ),
        command=command,
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
        verbose=verbose,
        quiet=quiet,
    )
    hold_standard_streams()
    if result is not None and not os.access(result.parent, os.W_OK):
        raise FileNotWritten(
            f"{result} can't be written", remedy="name a place for --result that is there and can be written"
        )
    # A command that could not be resumed, or would wait for a person, is refused before anything is run.
    turns.place(None)
    _refuse_interactive(turns)
    wait_ms = 0 if wait is None else parse_duration_ms(wait, "--wait")
    with turns.signals.installed(), at.store() as store, nullcontext() if quiet else warnings_aloud(turns.say, once=True):
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
            why = _why(error, wait)
            outcome = _outcome(None, turns.previous, code, why)
            turns.discard()
            if verbose or turns.timed_out or isinstance(error, LeaseHeld | StoreUnavailable):
                turns.say(why)
        else:
            code = _delivered(done.value, turns)
            outcome = _outcome(done, done.previous, code, done.reason)
            if done.session_id is None and not turns.named and not quiet:
                turns.say(_unnamed(turns))
            if verbose:
                turns.say(_story(done))
    if result is not None:
        try:
            replace_file(result, f"{json.dumps(outcome)}\n")
        except FileNotWritten as error:
            # The turn was run: its exit code is what the caller goes by.
            turns.say(str(error))
    return code


def _refuse_interactive(turns: Turns) -> None:
    """At a terminal: the agent's output is a pipe, since it is read here, so it could not talk to anybody."""
    runtime = turns.runtime
    at_a_terminal = show.is_terminal(sys.stdin) and show.is_terminal(sys.stdout)
    if at_a_terminal and runtime.print_mode and lacks(turns.command, runtime.executables, runtime.print_mode):
        raise InvalidSettings(
            f"without {' or '.join(runtime.print_mode)}, {runtime.name} talks to a terminal, and here it has none",
            remedy=f"add {runtime.print_mode[0]} and a prompt, or start it without {NAME}",
        )


def _exit_code(error: BaseException, turns: Turns) -> int:
    if isinstance(error, AgentFailed | Stopped):
        return error.exit_code
    if isinstance(error, LeaseHeld):
        return LEASED
    return turns.exit_code if isinstance(error, SessionBusy) else AWAY


def _why(error: BaseException, wait: str | None) -> str:
    if isinstance(error, Stopped):
        return f"stopped by {signal.Signals(error.exit_code - 128).name} while no agent ran"
    if not isinstance(error, LeaseHeld):
        return str(error)
    if error.holder is None:
        return f"{error.message}: try later"
    return f"{error.message}: try later, or wait for it with {'--wait 30s' if wait is None else f'more than --wait {wait}'}"


def _unnamed(turns: Turns) -> str:
    """That nothing could be saved for want of an ID, and what gives one."""
    what = f"no session ID in the output of {turns.runtime.name}, so nothing was saved and the next turn starts fresh"
    if not turns.runtime.session_id_at:
        return f"{what}: say where it is with --id-field"
    if turns.runtime.json_output and not any(map(_JSON.fullmatch, turns.command)):
        return f"{what}: add {turns.runtime.json_output}"
    return what


def _delivered(code: int, turns: Turns) -> int:
    """The exit code, which is not 0 where some of the output was lost on its way."""
    if turns.lost is None:
        return code
    turns.say(f"the output can't be written ({turns.lost.strerror})")
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
