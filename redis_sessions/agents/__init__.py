"""What each agent runtime looks like: its IDs, its resume arguments, its records, its ways to say no.

Told from what the runtimes themselves printed, in the versions named. A run is judged by its exit code and the words of
its closing record; only if nothing had been said yet, by the lines of its stderr; never by what an assistant or a tool
said. What can't be decided is `Verdict.other`.

`get_agent("codex").judge` is a judge for `resume`; the names are claude, codex, gemini, opencode, copilot,
claude-agent-sdk and openai. A runtime of your own is an `Agent(...)`, whose `judge` is given to `resume` likewise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from redis_sessions.agents.command_line import after_subcommand, before_prompt, first
from redis_sessions.agents.evidence import Evidence, of_claude_sdk, of_openai
from redis_sessions.agents.judge import UUID, Agent, Refusal
from redis_sessions.errors import InvalidSettings
from redis_sessions.resume.turn import Verdict

__all__ = ["Agent", "Evidence", "Refusal", "UnknownAgent", "get_agent", "known_agents", "register"]

_ID: Final = r"['\"“]?(?P<id>[A-Za-z0-9][A-Za-z0-9._:-]*)['\"”]?"

# Claude Code 1.0.24 to 2.1.330. Of a second writer it says nothing, unless that is a background agent: the transcript forks.
_CLAUDE_CORRUPT: Final = (
    r"tool use concurrency issues|orphaned tool_result in conversation history|Invalid `signature` in `thinking` block|"
    r"unexpected `tool_use_id` found in `tool_result` blocks|`tool_use` ids were found without `tool_result` blocks|"
    r"duplicate tool_use ID in conversation history|prompt is too long: \d+ tokens|"
    r"input length and `max_tokens` exceed context limit"
)
CLAUDE: Final = Agent(
    name="claude",
    commands=("claude",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(resumes=("-r", "--resume", "-c", "--continue", "--session-id", "--from-pr")),
    one_turn=("-p", "--print"),
    session_at=(({"type": "result"}, "session_id"),),
    named_by="--output-format json",
    began=({"type": "system", "subtype": "init"}, {"type": "result", "num_turns": ...}),
    spoken=({"type": "assistant"}, {"type": "user"}, {"type": "stream_event"}, {"type": "result", "num_turns": ...}),
    closed=({"type": "result"},),
    failed=({"type": "result", "is_error": True}, {"type": "result", "subtype": "error_during_execution"}),
    wrong=("errors", "result"),
    refusals=(
        Refusal(Verdict.gone, rf"(?:Error: )?No conversation found with session ID: {_ID}\s*$"),
        Refusal(Verdict.invalid_id, r"(?:Error: )?--resume requires a valid session ID\b"),
        Refusal(Verdict.busy, rf"(?:Error: )?Session {_ID} is (?:currently )?running as a background (?:agent|session)\b"),
        Refusal(Verdict.busy, r"(?:Error: )?That session is running in the background\."),
        Refusal(Verdict.unusable, r"Prompt is too long\b", after_begin=True),
        Refusal(Verdict.unusable, r"API Error: The model has reached its context window limit\b", after_begin=True),
        Refusal(Verdict.unusable, r"Request too large \(.*\bin the conversation pushed the request\b", after_begin=True),
        Refusal(Verdict.unusable, rf"API Error: 400 .*(?:{_CLAUDE_CORRUPT})", after_begin=True),
    ),
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
_CODEX_UNREADABLE: Final = r"is empty|does not start with session metadata"
_CODEX_CORRUPT: Final = r"empty session file|failed to parse (?:thread|conversation) ID from rollout file"
_OPENAI_UNUSABLE: Final = r'"code": ?"context_length_exceeded"|"message": ?"No tool output found for function call '
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
        resumes=("resume",),
        unless=("fork", "review", "help"),
    ),
    session_at=(({"type": "thread.started"}, "thread_id"),),
    session_line=rf"session id: (?P<id>{UUID})$",
    named_by="--json",
    began=({"type": "turn.started"},),
    began_line=r"session id: ",
    closed=({"type": "turn.completed"}, {"type": "turn.failed"}, {"type": "error"}),
    failed=({"type": "turn.failed"}, {"type": "error"}),
    wrong=("error.message", "message"),
    refusals=(
        Refusal(Verdict.gone, rf"{_CODEX_ERROR}no rollout found for (?:thread|conversation) id {_ID}(?: \(code\b|\s*$)"),
        Refusal(Verdict.busy, rf"{_CODEX_ERROR}thread {_ID} already has an active writer\b"),
        Refusal(Verdict.unusable, rf"{_CODEX_ERROR}failed to read thread: .*\brollout at .* (?:{_CODEX_UNREADABLE})\b"),
        Refusal(Verdict.unusable, rf"{_CODEX_ERROR}session {_ID} is archived\."),
        Refusal(Verdict.unusable, rf"{_CODEX_ERROR}(?:failed to load rollout .*: )?(?:{_CODEX_CORRUPT})\s*$"),
        Refusal(Verdict.unusable, r"Codex ran out of room in the model's context window\b", after_begin=True),
        Refusal(Verdict.unusable, r"(?:.*: )?Your input exceeds the context window of this model\b", after_begin=True),
        Refusal(Verdict.unusable, rf"(?:unexpected status 400 Bad Request: )?\{{.*(?:{_OPENAI_UNUSABLE})", after_begin=True),
    ),
)

# Gemini CLI 0.15 to 0.61. Its JSON errors stand on stderr.
_GEMINI_UNUSABLE: Final = (
    r"The input token count \(\d+\) exceeds the maximum number of tokens|"
    r"Please ensure that function call turn comes immediately after"
)
_GEMINI_ERROR: Final = r"(?:Error resuming session: )?"
GEMINI: Final = Agent(
    name="gemini",
    commands=("gemini",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(resumes=("-r", "--resume", "--session-id"), unless=("--list-sessions", "--delete-session")),
    one_turn=("-p", "--prompt"),
    session_at=(({}, "session_id"),),
    named_by="--output-format json",
    began=({"type": "init"}, {"type": "message"}, {"type": "tool_use"}, {"response": ...}),
    closed=({"type": "result"}, {"response": ...}, {"error": ...}),
    failed=({"error": ...}, {"type": "result", "status": "error"}),
    wrong=("error.message",),
    refusals=(
        Refusal(Verdict.gone, rf"{_GEMINI_ERROR}Invalid session identifier \"(?P<id>{UUID})\"\."),
        Refusal(Verdict.invalid_id, rf"{_GEMINI_ERROR}Invalid session identifier \"(?!{UUID}\")[^\"]*\"\."),
        Refusal(Verdict.gone, rf"{_GEMINI_ERROR}No previous sessions found for this project\.\s*$"),
        Refusal(Verdict.unusable, rf".*(?:{_GEMINI_UNUSABLE})\b", after_begin=True),
    ),
)

# opencode 1.0 to 1.18. Two at once on one session run away.
OPENCODE: Final = Agent(
    name="opencode",
    commands=("opencode",),
    session_id=r"ses_[A-Za-z0-9]{1,64}",
    resume=("--session={id}",),
    place=after_subcommand("run", values=("--log-level",), resumes=("-s", "--session", "-c", "--continue")),
    session_at=(({}, "sessionID"),),
    named_by="--format json",
    began=({"type": "step_start"}, {"type": "text"}, {"type": "tool_use"}),
    closed=({"type": "step_start"}, {"type": "step_finish"}, {"type": "error"}),
    failed=({"type": "error"},),
    failed_line=r"(?:Error|NotFoundError): (?:Session not found|NotFoundError)\s*$",
    wrong=("error.name", "error.data.message", "error.data.responseBody"),
    refusals=(
        Refusal(Verdict.gone, r"(?:Error: )?Session not found\s*$"),
        Refusal(Verdict.gone, r"  message: \"Session not found: (?P<id>ses_[A-Za-z0-9]+)\""),
        Refusal(Verdict.gone, r"  message: \"Resource not found: .*/storage/session/.*/(?P<id>ses_[A-Za-z0-9]+)\.json\""),
        Refusal(Verdict.busy, rf"(?:Error: )?Session is busy: {_ID}"),
        Refusal(Verdict.unusable, r"ContextOverflowError$", after_begin=True),
        Refusal(Verdict.unusable, rf"\{{.*(?:{_OPENAI_UNUSABLE})", after_begin=True),
    ),
)

# Copilot CLI 0.0.354 to 1.0.102.
COPILOT: Final = Agent(
    name="copilot",
    commands=("copilot",),
    session_id=UUID,
    resume=("--resume={id}",),
    place=first(resumes=("-r", "--resume", "-c", "--continue", "--session-id", "--connect")),
    one_turn=("-p", "--prompt"),
    session_at=(({"type": "result"}, "sessionId"),),
    named_by="--output-format json",
    session_line=rf"Resume +copilot --resume=(?P<id>{UUID})\s*$",
    began=({"type": "assistant.turn_start"},),
    closed=({"type": "result"}, {"type": "session.error"}),
    failed=({"type": "result", "exitCode": ...}, {"type": "session.error"}),
    wrong=("data.errorType", "data.message"),
    refusals=(
        Refusal(Verdict.gone, r"Error: No session, task, or name matched '(?P<id>[^']*)'\.?\s*$"),
        Refusal(Verdict.invalid_id, r"Error: Invalid session ID format: '"),
        Refusal(Verdict.unusable, r"Error: Session '(?P<id>[^']*)' was found but could not be loaded\."),
        Refusal(Verdict.unusable, r"context_limit$", after_begin=True),
        Refusal(Verdict.unusable, r"400 Your input exceeds the context window of this model\b", after_begin=True),
        Refusal(Verdict.unusable, r"400 No tool output found for function call ", after_begin=True),
    ),
)

# The package claude-agent-sdk, 0.1.80 to 0.2.187: the same sessions, told by exceptions.
CLAUDE_SDK: Final = replace(CLAUDE, name="claude-agent-sdk", commands=(), evidence=of_claude_sdk)

# Responses and conversations of the OpenAI API. A response's ID is new every turn.
OPENAI: Final = Agent(
    name="openai",
    session_id=r"(?:resp|conv)_[A-Za-z0-9_-]{1,250}",
    closed=({"type": "error"},),
    failed=({"type": "error"},),
    wrong=("code",),
    refusals=(
        Refusal(Verdict.gone, r"previous_response_not_found$"),
        Refusal(Verdict.busy, r"conversation_locked$"),
        Refusal(Verdict.unusable, r"context_length_exceeded$"),
    ),
    evidence=of_openai,
)

_KNOWN: dict[str, Agent] = {agent.name: agent for agent in (CLAUDE, CODEX, GEMINI, OPENCODE, COPILOT, CLAUDE_SDK, OPENAI)}


def get_agent(name: str) -> Agent:
    """The runtime of that name. Raises UnknownAgent, which lists the names."""
    try:
        return _KNOWN[name]
    except KeyError:
        raise UnknownAgent(f"no agent runtime {name[:40]!r} is known", remedy=f"name one of {', '.join(_KNOWN)}") from None


def register(agent: Agent) -> None:
    """Make a runtime of your own known under its name, in this process, in the place of one of the same name."""
    _KNOWN[agent.name] = agent


def known_agents() -> tuple[Agent, ...]:
    """All runtimes that are known."""
    return tuple(_KNOWN.values())


class UnknownAgent(InvalidSettings):
    """No runtime goes by that name."""
