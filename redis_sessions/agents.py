"""What each agent runtime looks like: its IDs, its resume arguments, its records, its ways to say no.

Told from what the runtimes themselves printed, in the versions named; `recognise.py` says how a run is judged by it. A
runtime of your own is an `Agent(...)` like these, given to `resume` as `judge=agent.judge`, or registered under its name.
"""

from __future__ import annotations

from typing import Final

from redis_sessions.errors import InvalidSettings
from redis_sessions.output import Record
from redis_sessions.placement import after_subcommand, before_prompt, first
from redis_sessions.recognise import UUID, Agent, Refusal
from redis_sessions.verdicts import Verdict

_ID: Final = r"['\"“]?(?P<id>[A-Za-z0-9][A-Za-z0-9._:-]*)['\"”]?"

# Claude Code 1.0.24 to 2.1.330. Says nothing of a second writer: the transcript forks.
CLAUDE: Final = Agent(
    name="claude",
    commands=("claude",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(unless=("-r", "--resume", "-c", "--continue", "--session-id", "--from-pr")),
    session_at=(({"type": "result"}, "session_id"),),
    began=({"type": "system", "subtype": "init"}, {"type": "result", "num_turns": ...}),
    closed=({"type": "result"},),
    failed=({"type": "result", "is_error": True}, {"type": "result", "subtype": "error_during_execution"}),
    wrong=("errors", "result"),
    refusals=(
        Refusal(Verdict.gone, rf"(?:Error: )?No conversation found with session ID: {_ID}\s*$"),
        Refusal(Verdict.invalid_id, r"(?:Error: )?--resume requires a valid session ID\b"),
        Refusal(Verdict.unusable, r"Prompt is too long\b", after_begin=True),
        Refusal(Verdict.unusable, r"API Error: 400 .*\bprompt is too long: \d+ tokens", after_begin=True),
        Refusal(Verdict.unusable, r"API Error: 400 .*`?tool_use`? ids were found without `?tool_result`?", after_begin=True),
    ),
    drop_environment=("CLAUDECODE",),
)

# Codex 0.44 to 0.169. Older ones answer an unknown or malformed ID with a new thread, exit code 0.
_CODEX_VALUES: Final = """
-c --config -m --model -p --profile -s --sandbox -C --cd -o --output-last-message -a --ask-for-approval --enable --disable
--local-provider --add-dir --output-schema --color --thread-source --cyber-access-program"""
_CODEX_FLAGS: Final = """
--json --experimental-json --oss --full-auto --skip-git-repo-check --include-plan-tool --search --yolo --strict-config
--dangerously-bypass-approvals-and-sandbox --dangerously-bypass-hook-trust --approve-for-me --worktree --trust
--ignore-user-config --ignore-rules --no-alt-screen"""
_CODEX_ERROR: Final = r"(?:Error: )?(?:thread/resume: )?(?:thread/resume failed: )?"
CODEX: Final = Agent(
    name="codex",
    commands=("codex",),
    session_id=UUID,
    resume=("resume", "{id}"),
    place=before_prompt(
        "exec",
        "e",
        values=_CODEX_VALUES.split(),
        flags=_CODEX_FLAGS.split(),
        unless=("resume", "fork", "review", "help"),
    ),
    session_at=(({"type": "thread.started"}, "thread_id"),),
    session_line=rf"session id: (?P<id>{UUID})$",
    began=({"type": "turn.started"},),
    began_line=r"session id: ",
    closed=({"type": "turn.completed"}, {"type": "turn.failed"}, {"type": "error"}),
    failed=({"type": "turn.failed"}, {"type": "error"}),
    wrong=("error.message", "message"),
    refusals=(
        Refusal(Verdict.gone, rf"{_CODEX_ERROR}no rollout found for (?:thread|conversation) id {_ID}(?: \(code\b|\s*$)"),
        Refusal(Verdict.busy, rf"{_CODEX_ERROR}thread {_ID} already has an active writer\b"),
        Refusal(
            Verdict.unusable,
            rf"{_CODEX_ERROR}failed to read thread: .*\brollout at .* (?:is empty|does not start with session metadata)\b",
        ),
        Refusal(Verdict.unusable, r"(?:ERROR: )?Codex ran out of room in the model's context window\b", after_begin=True),
        Refusal(
            Verdict.unusable,
            r"(?:ERROR: )?unexpected status 400 Bad Request: .*\"code\": ?\"context_length_exceeded\"",
            after_begin=True,
        ),
        Refusal(
            Verdict.unusable,
            r"(?:ERROR: )?unexpected status 400 Bad Request: .*\bNo tool output found for function call\b",
            after_begin=True,
        ),
    ),
)

# Gemini CLI 0.15 to 0.61. Its JSON errors stand on stderr.
GEMINI: Final = Agent(
    name="gemini",
    commands=("gemini",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(unless=("-r", "--resume", "--session-id", "--list-sessions", "--delete-session")),
    session_at=(({}, "session_id"),),
    began=({"type": "init"}, {"type": "message"}, {"type": "tool_use"}, {"response": ...}),
    closed=({"type": "result"}, {"response": ...}, {"error": ...}),
    failed=({"error": ...}, {"type": "result", "status": "error"}),
    wrong=("error.message",),
    refusals=(
        Refusal(Verdict.gone, rf"(?:Error resuming session: )?Invalid session identifier {_ID}\."),
        Refusal(Verdict.gone, r"(?:Error resuming session: )?No previous sessions found for this project\.\s*$"),
    ),
)

# opencode 1.0 to 1.18. Two at once on one session run away.
OPENCODE: Final = Agent(
    name="opencode",
    commands=("opencode",),
    session_id=r"ses_[A-Za-z0-9]{1,64}",
    resume=("--session={id}",),
    place=after_subcommand("run", values=("--log-level",), unless=("-s", "--session", "-c", "--continue")),
    session_at=(({}, "sessionID"),),
    began=({"type": "step_start"}, {"type": "text"}, {"type": "tool_use"}),
    closed=({"type": "step_finish"}, {"type": "error"}),
    failed=({"type": "error"},),
    wrong=("error.data.message", "error.message", "error.name"),
    refusals=(Refusal(Verdict.gone, r"(?:Error: )?Session not found\s*$"),),
)

# Copilot CLI 0.0.354 to 1.0.102.
COPILOT: Final = Agent(
    name="copilot",
    commands=("copilot",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(unless=("-r", "--resume", "-c", "--continue", "--session-id", "--connect")),
    refusals=(Refusal(Verdict.gone, rf"Error: No session, task, or name matched {_ID}\.\s*$"),),
)

_KNOWN: dict[str, Agent] = {agent.name: agent for agent in (CLAUDE, CODEX, GEMINI, OPENCODE, COPILOT)}


def get_agent(name: str) -> Agent:
    """The runtime of that name. Raises UnknownAgent, which lists the names."""
    try:
        return _KNOWN[name]
    except KeyError:
        raise UnknownAgent(f"no agent runtime {name[:40]!r} is known", remedy=f"name one of {', '.join(_KNOWN)}") from None


def register(agent: Agent) -> None:
    """Make a runtime of your own known under its name, in this process."""
    _KNOWN[agent.name] = agent


def known_agents() -> tuple[Agent, ...]:
    """All runtimes that are known."""
    return tuple(_KNOWN.values())


class UnknownAgent(InvalidSettings):
    """No runtime goes by that name."""


__all__ = [
    "CLAUDE",
    "CODEX",
    "COPILOT",
    "GEMINI",
    "OPENCODE",
    "Agent",
    "Record",
    "UnknownAgent",
    "get_agent",
    "known_agents",
    "register",
]
