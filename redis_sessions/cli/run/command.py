"""`run`: put before an agent's command, it resumes the conversation's session or starts fresh, under a lease."""

import json
import re
import sys
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from redis_sessions.agents import Agent, RecordField, Refusal, UnknownAgent, get_agent, known_agents, load
from redis_sessions.agents.command_line import PlaceUnknown, guess, lacks, name_of
from redis_sessions.agents.output import MAX_BYTES
from redis_sessions.cli import exit_codes as exits
from redis_sessions.cli import output as show
from redis_sessions.cli.options import (
    CliCommand,
    Key,
    Options,
    names_of_runtimes,
    on_a_store,
    register_users_runtimes,
    value,
)
from redis_sessions.cli.run.attempts import NOT_FOUND, NOT_RUNNABLE, TIMED_OUT, AgentFailed, Attempts, judge
from redis_sessions.cli.run.place import place_of
from redis_sessions.cli.run.streams import open_standard_streams
from redis_sessions.cli.signals import Stopped
from redis_sessions.errors import (
    FileNotWritten,
    InvalidSettings,
    LeaseHeld,
    SessionBusy,
    SessionElsewhere,
    StoreUnavailable,
)
from redis_sessions.legacy.atomic_file import clear_file, replace_file
from redis_sessions.operations.text import parse_duration_ms
from redis_sessions.resume.turn import OnElsewhere, OnOutage, ResumeResult, Verdict
from redis_sessions.settings import StoreSettings

# As in sysexits(3).
AWAY: Final = 69
LEASED: Final = 75
ELSEWHERE: Final = 76

CODES: Final = {
    0: "the agent's own code, whatever it is (1 for 0 if it failed or its output was lost); or, if it could not run:",
    AWAY: "Redis is away or refuses access, and --on-outage raise was given",
    LEASED: "another worker has the conversation",
    ELSEWHERE: "the session was made elsewhere, and --on-elsewhere raise was given",
    TIMED_OUT: "it ran out of time",
    NOT_RUNNABLE: "the command can't be run",
    NOT_FOUND: "the command isn't there",
}

_NOT_RUN: Final = (LeaseHeld, SessionElsewhere, StoreUnavailable)
_DASHES: Final = "--"
_USAGE: Final = "write redis-sessions run KEY -- AGENT-COMMAND"
_A_LINE_EACH: Final = "ask for a record on each line, such as by --output-format stream-json"
_OWN: Final = "For a runtime of your own: "

Words = Annotated[list[str], typer.Argument(metavar="AGENT-COMMAND", help="What to run, after --.")]
Name = Annotated[
    str | None,
    typer.Option(
        "--agent",
        metavar="NAME",
        show_default="found by its name",
        help="Which runtime it is.",
        autocompletion=names_of_runtimes,
    ),
]
AgentFile = Annotated[
    Path | None, typer.Option("--agent-file", metavar="FILE", help=f"{_OWN}its TOML file; see redis-sessions agents.")
]
Wait = Annotated[str | None, typer.Option("--wait", metavar="TIME", help="Wait this long for another worker's turn to end.")]
Timeout = Annotated[
    str | None, typer.Option("--timeout", metavar="TIME", help="End a run that takes longer: exit code 124.")
]
Linger = Annotated[
    str,
    typer.Option("--linger", metavar="TIME", help="End an agent that runs on this long after its turn; its result counts."),
]
GiveUp = Annotated[
    int | None,
    typer.Option(
        "--give-up-after",
        metavar="N",
        show_default="3",
        help="Start fresh after this many failures in a row to resume a session that may or may not be gone. 0: never.",
    ),
]
MaxTurns = Annotated[
    int | None,
    value("--max-turns", "N", "Start fresh once the session has had this many turns.", envvar="REDIS_SESSIONS_MAX_TURNS"),
]
MaxLifetime = Annotated[
    str | None,
    value("--max-lifetime", "TIME", "Start fresh once the session is this old.", envvar="REDIS_SESSIONS_MAX_LIFETIME"),
]
MaxContext = Annotated[
    int | None,
    value("--max-context", "TOKENS", "Start fresh once its context is this large.", envvar="REDIS_SESSIONS_MAX_CONTEXT"),
]
Replicas = Annotated[
    int | None,
    value("--replicas", "N", "Say so if fewer replicas than this have the saved session.", envvar="REDIS_SESSIONS_REPLICAS"),
]
Mint = Annotated[bool, typer.Option("--mint", help="Give a fresh session its ID, so that no output has to name it.")]
Outage = Annotated[OnOutage, typer.Option("--on-outage", help="Without Redis: run, or raise (exit code 69).")]
Elsewhere = Annotated[
    OnElsewhere,
    typer.Option(
        "--on-elsewhere", help="A session of another host, home or directory that its agent is bound to: try, or raise (76)."
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing on stderr but why it failed.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Say on stderr what was decided and why.")]
ResultFile = Annotated[Path | None, typer.Option("--result", metavar="FILE", help="Write the outcome there, as JSON.")]
Resume = Annotated[str | None, typer.Option("--resume-argument", metavar="TEXT", help=f"{_OWN}what resumes {{id}}.")]
IDField = Annotated[str | None, typer.Option("--id-field", metavar="PATH", help=f"{_OWN}where its JSON has the ID.")]
Gone = Annotated[str | None, typer.Option("--gone", metavar="REGEX", help=f'{_OWN}a line on stderr that says "gone".')]


class RunCommand(CliCommand):
    """The words of `run`: a key and options, then `--`, then the agent's command, whose options are never ours."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ARG002 - typer's name and parameters
        """The usage line, with the dashes."""
        return ["[OPTIONS]", "KEY", _DASHES, "AGENT-COMMAND..."]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse. Raises InvalidSettings if the key, `--` or the command is missing."""
        if ctx.resilient_parsing:  # for shell completion, of words that are not all there yet
            return list(super().parse_args(ctx, args))
        own = args[: args.index(_DASHES)] if _DASHES in args else args
        if not {*ctx.help_option_names}.isdisjoint(own):
            return list(super().parse_args(ctx, ctx.help_option_names[:1]))
        if _DASHES not in args:
            # Otherwise an option of the agent's could be taken for one of ours.
            raise InvalidSettings("-- is missing before the agent's command", remedy=_USAGE)
        rest = args[len(own) + 1 :]
        if rest[1:2] == [_DASHES] and rest[0].startswith("-"):
            # No agent has such a name, but a key may.
            own, rest = [*own, _DASHES, rest[0]], rest[2:]
        # Two dashes mark where the command starts. If the key is missing, one of them is taken for it, and parsing never
        # fails because the command is empty.
        dashes = [_DASHES] * (2 if _DASHES in own else 3)
        left: list[str] = super().parse_args(ctx, [*own, *dashes, *rest])
        command = ctx.params["command"]
        for wrong, problem in (
            (ctx.params["key"] == _DASHES, "KEY is missing before --"),
            (command[:2] != [_DASHES, _DASHES], "more than KEY stands before --"),
            (len(command) == 2, "AGENT-COMMAND is missing after --"),
        ):
            if wrong:
                raise InvalidSettings(problem, remedy=_USAGE)
        ctx.params["command"] = command[2:]
        return left


# --json would mean nothing: the output is the agent's.
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
    linger: Linger = "60s",
    give_up_after: GiveUp = None,
    max_turns: MaxTurns = None,
    max_lifetime: MaxLifetime = None,
    max_context: MaxContext = None,
    replicas: Replicas = None,
    mint: Mint = False,
    on_outage: Outage = "run",
    on_elsewhere: Elsewhere = "try",
    verbose: Verbose = False,
    quiet: Quiet = False,
    result: ResultFile = None,
    resume_argument: Resume = None,
    id_field: IDField = None,
    gone: Gone = None,
) -> int:
    """Run an agent: resume the session, or start fresh.

    For agents that run one turn and end, in print mode: their output is read here while it is passed on.

    It takes the conversation's lease, looks up its session ID, adds the runtime's resume argument if there is one, and
    passes on input, output, signals and exit code. The ID is saved once the output shows that the model has answered,
    however the turn then ends.
    If the agent says that the session is gone, invalid or unusable, the ID is deleted, that is counted, and the command runs
    once more, fresh, with the same input; the output of the refused attempt is left out. Once a turn has begun, nothing is
    run again. Signals and time limits reach all that the agent started. Without Redis the agent still runs, fresh; stderr
    says so, and says whatever else keeps a turn from being resumed later.

    A session that has reached --max-turns, --max-lifetime or --max-context is left for a fresh one. The agent finds how the
    turn was started in REDIS_SESSIONS_HOW, and the session that was there before in REDIS_SESSIONS_PREVIOUS_ID.

    --result has how (resumed, fresh, restarted after a refusal, gave_up, rotated; null if it failed), verdict, session_id,
    previous, session_changed, moved, saved, replicated, complete (false: cut short), context_tokens, gave_up, reason and
    exit_code.

    {resume} as a word of the command marks where the resume argument goes; by default each runtime has its place.

    Examples:
      redis-sessions run "$KEY" -- claude -p --output-format json "Review the pull request"
      redis-sessions run "$KEY" --wait 30s --timeout 1h -- codex exec --json "Go on" > turn.jsonl
      redis-sessions run "$KEY" --max-turns 50 --max-context 150000 -- claude -p --output-format json "Go on"
      redis-sessions run "$KEY" --agent claude -- ssh build-7 claude {resume} -p --output-format json < prompt.txt
      redis-sessions run "$KEY" --agent-file bot.toml -- ./bot -p "Go on"
      redis-sessions run "$KEY" --resume-argument=--session={id} --id-field session.id -- ./bot {resume}
    """
    open_standard_streams()
    if result is not None:
        # That of an earlier run must not be taken for this one's, whatever happens to it.
        clear_file(result)
    if quiet and verbose:
        raise InvalidSettings("--quiet and --verbose exclude each other", remedy="give one of them")
    timeout_ms = parse_duration_ms(timeout, "--timeout") if timeout is not None else None
    if timeout_ms == 0:
        raise InvalidSettings("--timeout leaves the agent no time at all", remedy="give more, or leave it out")
    limits = {
        "give_up_after": give_up_after,
        "max_turns": max_turns,
        "max_lifetime_ms": None if max_lifetime is None else parse_duration_ms(max_lifetime, "--max-lifetime"),
        "max_context_tokens": max_context,
        "replicas": replicas,
    }
    changed = {name: limit for name, limit in limits.items() if limit is not None}
    attempts = Attempts(
        runtime=runtime_of(
            command, name=agent, file=agent_file, resume_argument=resume_argument, id_field=id_field, gone=gone
        ),
        command=command,
        timeout_s=None if timeout_ms is None else timeout_ms / 1000,
        verbose=verbose,
        quiet=quiet,
        linger_s=parse_duration_ms(linger, "--linger") / 1000,
        mint=mint,
        described=resume_argument is not None,
        gone=gone,
    )
    # A command that could not be resumed, or would wait for a person, is refused before anything is run.
    attempts.place(None)
    _refuse_interactive(attempts)
    _check_mint(attempts)
    place = place_of(attempts.runtime, command)
    if on_elsewhere == "raise" and place is None:
        raise InvalidSettings(
            "--on-elsewhere raise needs to know where the agent runs, which this command does not show",
            remedy="leave it out, or start redis-sessions run where the agent runs",
        )
    names = ("how", "session_id", "previous", "session_changed", "moved", "saved", "replicated", "reason")
    outcome: dict[str, Any] = dict.fromkeys(names) | {"session_changed": False, "moved": False, "saved": False}
    wait_ms = 0 if wait is None else parse_duration_ms(wait, "--wait")
    warnings = nullcontext() if quiet else show.logged_warnings(attempts.say, once=True)
    with attempts.signals.installed(), at.store(attempts.remark, **changed) as store, warnings:
        attempts.save_early, attempts.start = partial(store.save_early, key), partial(store.running_turn, key)
        if attempts.ephemeral:
            attempts.remark(
                f"{attempts.ephemeral} leaves nothing that could be resumed later: "
                f"no session is saved{'' if attempts.resumes else ' or resumed'}"
            )
        try:
            done = store.resume(
                key,
                attempts,
                agent=attempts.runtime,
                judge=judge,
                accepts=None if attempts.resumes else lambda _: False,
                wait_ms=wait_ms,
                on_outage=on_outage,
                place=place,
                on_elsewhere=on_elsewhere,
            )
        except (AgentFailed, SessionBusy, SessionElsewhere, LeaseHeld, StoreUnavailable, Stopped) as error:
            code, why = _failure(error, attempts, wait)
            code = _delivered(code, attempts)
            outcome |= {"session_id": attempts.saved, "previous": attempts.previous, "reason": why}
            outcome["saved"] = attempts.saved is not None
            attempts.discard()
            if verbose or attempts.timed_out or attempts.unexpected or isinstance(error, _NOT_RUN):
                attempts.say(why)
        else:
            code = _delivered(done.value, attempts)
            outcome = {name: getattr(done, name) for name in outcome}
            if not quiet:
                _say_what_lacks(attempts, done, store.settings)
            if verbose:
                attempts.say(_story(done))
    if result is not None:
        judgement = attempts.judgement
        outcome |= {
            "verdict": judgement and judgement.verdict,
            "complete": judgement and judgement.verdict is Verdict.ok,
            "context_tokens": attempts.context_tokens,
            "gave_up": outcome["how"] == "gave_up",
            "exit_code": code,
        }
        try:
            replace_file(result, f"{json.dumps(outcome)}\n")
        except FileNotWritten as error:
            # The turn was run: its exit code is what the caller needs.
            attempts.say(str(error))
    return code


def runtime_of(
    command: list[str],
    *,
    name: str | None,
    file: Path | None,
    resume_argument: str | None,
    id_field: str | None,
    gone: str | None,
) -> Agent:
    """The runtime of a command, as the options of the same names say. Raises InvalidSettings."""
    if file is not None:
        return _loaded(file, name, resume_argument, id_field, gone)
    if resume_argument is not None:
        return _described(name or name_of(command[0]), command, resume_argument, id_field, gone)
    if id_field is not None or gone is not None:
        raise InvalidSettings("--id-field and --gone describe a runtime of your own", remedy="add --resume-argument")
    register_users_runtimes()
    program = name_of(command[0])
    with suppress(UnknownAgent):
        # One file is read, not all of them.
        agent = get_agent(name or program)
        if (name is not None and agent.executables) or program in agent.executables:
            return agent
    runtimes = [agent for agent in known_agents() if agent.executables]
    problem = f"{name} is not an agent that can be run here"
    if name is None:
        try:
            chosen = guess(command, [program for agent in runtimes for program in agent.programs])
        except PlaceUnknown as error:
            problem = error.message
        else:
            return next(agent for agent in runtimes if chosen in agent.programs)
    names = ", ".join(agent.name for agent in runtimes)
    raise InvalidSettings(
        problem,
        remedy=f"name one with --agent ({names}), or describe it: --agent-file or --resume-argument",
    )


def _loaded(file: Path, *others: str | None) -> Agent:
    if any(other is not None for other in others):
        raise InvalidSettings(
            "--agent-file describes a runtime whole",
            remedy="leave out --agent, --resume-argument, --id-field and --gone",
        )
    agent = load(file)
    if not agent.resume:
        raise InvalidSettings(f"{file}: resume is missing", remedy='add the arguments, resume = ["--resume={id}"]')
    return agent


def _described(name: str, command: list[str], resume_argument: str, id_field: str | None, gone: str | None) -> Agent:
    if "{id}" not in resume_argument:
        raise InvalidSettings("--resume-argument has no {id} in it", remedy="write it as --session={id}")
    try:
        refusals = (Refusal(Verdict.gone, _anywhere(gone)),) if gone and re.compile(gone) else ()
    except re.error as error:
        raise InvalidSettings(f"--gone is not a regular expression ({error})", remedy="fix it") from None
    return Agent(
        name=name,
        executables=(name_of(command[0]),),
        resume=tuple(resume_argument.split()),
        session_id_at=(RecordField(id_field),) if id_field else (),
        turn_began=({},),
        turn_ended=({},),
        refusals=refusals,
    )


def _anywhere(pattern: str) -> str:
    """A regular expression that matches from the first character where this one is found anywhere in the text."""
    flags = re.match(r"\(\?[aiLmsux]+\)", pattern)
    head = flags[0] if flags else ""
    return f"{head}(?s:.*?)(?:{pattern.removeprefix(head)})"


def _check_mint(attempts: Attempts) -> None:
    if not attempts.mint:
        return
    if not attempts.runtime.mint:
        able = ", ".join(agent.name for agent in known_agents() if agent.mint and agent.executables)
        raise InvalidSettings(
            f"{attempts.runtime.name} takes no session ID for a fresh session", remedy=f"leave out --mint; it is for {able}"
        )
    if attempts.ephemeral:
        raise InvalidSettings(f"--mint and {attempts.ephemeral} exclude each other", remedy="give one of them")


def _refuse_interactive(attempts: Attempts) -> None:
    """At a terminal, refuse an agent that would talk to a person: its output is a pipe, since it is read here."""
    runtime = attempts.runtime
    at_a_terminal = show.is_terminal(sys.stdin) and show.is_terminal(sys.stdout)
    if at_a_terminal and runtime.print_mode and lacks(attempts.command, runtime.programs, runtime.print_mode):
        raise InvalidSettings(
            f"without {' or '.join(runtime.print_mode)}, {runtime.name} talks to a terminal, and here it has none",
            remedy=f"add {runtime.print_mode[0]} and a prompt, or start it without redis-sessions",
        )


def _failure(error: BaseException, attempts: Attempts, wait: str | None) -> tuple[int, str]:
    """The exit code for what `resume` raised, and its reason."""
    match error:
        case Stopped():
            return error.exit_code, f"stopped by {error.number.name} while no agent ran"
        case AgentFailed():
            return error.exit_code, str(error)
        case SessionBusy():
            return attempts.exit_code, str(error)
        case SessionElsewhere():
            return ELSEWHERE, f"{error.message}: run the turn there, or give --on-elsewhere try"
        case LeaseHeld():
            longer = "--wait 30s" if wait is None else f"more than --wait {wait}"
            hint = "" if error.holder is None else f", or wait for it with {longer}"
            return LEASED, f"{error.message}: try later{hint}"
    return AWAY, str(error)


def _say_what_lacks(attempts: Attempts, done: ResumeResult[int], settings: StoreSettings) -> None:
    """Say what the output of a turn that succeeded should have had."""
    if done.session_id is None and not attempts.named and not attempts.ephemeral:
        attempts.say(_unnamed(attempts))
    if settings.max_context_tokens is not None and attempts.context_tokens is None:
        name = attempts.runtime.name
        attempts.say(f"the output does not say how large the context of {name} is, so --max-context has no effect")


def _unnamed(attempts: Attempts) -> str:
    """Say that nothing could be saved without a session ID, and what would give one."""
    runtime = attempts.runtime
    what = f"no session ID in the output of {runtime.name}, so nothing was saved and the next turn starts fresh"
    if attempts.skipped and runtime.wants_json(attempts.command) is not False:
        limit = MAX_BYTES // 1024**2
        return f"{what}: more than {limit} MiB of one JSON document are not read: {_A_LINE_EACH}"
    if not (runtime.session_id_at or runtime.session_id_line or runtime.session_id_stdout_line):
        if runtime.mint:
            return f"{what}: add --mint"
        return f"{what}: say where it is with --id-field"
    if runtime.json_output and not runtime.wants_json(attempts.command):
        return f"{what}: add {runtime.json_output}"
    return what


def _delivered(code: int, attempts: Attempts) -> int:
    """The exit code, which is not 0 if some of the output was lost."""
    if attempts.lost is None:
        return code
    attempts.say(f"the output can't be written ({attempts.lost.strerror})")
    return code or exits.PARTLY


def _story(done: ResumeResult[int]) -> str:
    ways = {
        "fresh": "started fresh",
        "resumed": f"resumed {done.previous}",
        "restarted": "started fresh after a refusal",
        "gave_up": f"gave up {done.previous} and started fresh",
        "rotated": f"left {done.previous} and started fresh",
    }
    kept = f"saved {done.session_id}" if done.saved else "saved nothing"
    return "; ".join(part for part in (ways[done.how], kept, done.reason) if part)
