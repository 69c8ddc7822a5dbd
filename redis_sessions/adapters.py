"""Turns of Python clients of agents, for `resume`. Neither package is imported."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterable, Callable
from typing import Any, TypeVar

from redis_sessions.agents import Agent, get_agent
from redis_sessions.agents.evidence import CLAUDE_FACTS, Evidence, RunFailed, claude_record, of_claude_sdk, of_openai
from redis_sessions.agents.output import size
from redis_sessions.errors import SessionStoreError
from redis_sessions.resume.turn import Turn, Verdict

__all__ = ["RunFailed", "claude_turn", "openai_turn"]

log = logging.getLogger("redis_sessions")
V = TypeVar("V")
_INIT = json.dumps({"type": "system", "subtype": "init"})
_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


async def claude_turn(
    start: Callable[[Callable[[str], None]], AsyncIterable[Any]], save_early: Callable[[str], Any] | None = None
) -> Turn[Any]:
    """Run a turn of claude-agent-sdk to its end; the value is its `ResultMessage`.

    Args:
        start: given a callback for stderr, starts the query: `lambda stderr: query(prompt=…, options=ClaudeAgentOptions(
            resume=session_id, stderr=stderr))`. Some versions say nowhere else that a session is gone.
        save_early: called with the session's ID as soon as the model has answered in it, such as
            `lambda session_id: store.save_early(key, session_id)`; what it returns is awaited if it can be. Default: none.

    Raises RunFailed whatever made the turn fail; `agents.get_agent("claude-agent-sdk").judge`, which reads it, has decided
    that it did. Raises InvalidSettings if a description that you registered for that agent is wrong, and TypeError if the
    result's session ID is not a str.
    """
    agent = get_agent("claude-agent-sdk")
    # As Claude Code prints them, but without what was said.
    records: list[str] = []
    lines: list[str] = []
    session_id = tokens = None
    result: Any = None
    try:
        async for message in start(lines.append):
            kind = type(message).__name__
            if kind == "SystemMessage" and getattr(message, "subtype", None) == "init":
                session_id = (getattr(message, "data", None) or {}).get("session_id")
                _add(records, _INIT)
            elif kind == "AssistantMessage":
                if not records:
                    _add(records, _INIT)
                model, error = getattr(message, "model", None), getattr(message, "error", None)
                session_id = getattr(message, "session_id", None) or session_id
                record = {"type": "assistant", "message": {"model": model}, "error": error, "session_id": session_id}
                _add(records, json.dumps(record))
                if model == "<synthetic>" or error:
                    continue
                tokens = size(getattr(message, "usage", None) or {}, _INPUT) or tokens
                if save_early is not None and isinstance(session_id, str):
                    await _save(save_early, session_id)
                    save_early = None
            elif kind == "ResultMessage":
                facts = {name: getattr(message, name, None) for name in ("is_error", "errors", "result", *CLAUDE_FACTS)}
                end = claude_record(**facts)
                _add(records, end)
                if _succeeded(agent, Evidence(0, end, "")):
                    result = message
    except Exception as error:
        seen = of_claude_sdk(error)
        stdout, stderr = "\n".join([*records, str(seen.stdout)]), "\n".join([*lines, str(seen.stderr)])
        evidence = Evidence(seen.exit_code, stdout, stderr)
        # What is raised after a success may mean nothing.
        if not _succeeded(agent, evidence):
            raise RunFailed(str(error), evidence) from error
    else:
        evidence = Evidence(1 if result is None else 0, "\n".join(records), "\n".join(lines))
        if not _succeeded(agent, evidence):
            raise RunFailed("the turn ended without success", evidence)
    if tokens is None and result.num_turns == 1:
        # Of more than one request it is the sum.
        tokens = size(getattr(result, "usage", None) or {}, _INPUT) or None
    return Turn(result.session_id, result, context_tokens=tokens)


def _add(records: list[str], record: str) -> None:
    """Add a record unless it says again what the last one said: a turn may have thousands of messages."""
    if records[-1:] != [record]:
        records.append(record)


def _succeeded(agent: Agent, evidence: Evidence) -> bool:
    exit_code, stdout, stderr, _ = evidence
    return agent.judge(exit_code=exit_code, stdout=stdout, stderr=stderr).verdict is Verdict.ok


async def _save(save_early: Callable[[str], Any], session_id: str) -> None:
    try:
        saved = save_early(session_id)
        if inspect.isawaitable(saved):
            await saved
    except SessionStoreError as error:
        # The turn goes on, and its end saves the ID again.
        log.warning("the session was not saved early: %s", error)


def openai_turn(response: V) -> Turn[V]:
    """Make a turn of a response of the OpenAI client: its ID, which is new every turn, and itself as the value.

    Args:
        response: what `client.responses.create(previous_response_id=session_id, …)` returned. The turn is not complete if
            the response is not.

    Raises RunFailed for a response that failed; `agents.get_agent("openai").judge` reads it.
    """
    session_id, status = getattr(response, "id", None), getattr(response, "status", None)
    if status == "failed":
        error = getattr(response, "error", None)
        raise RunFailed("the response failed", of_openai(error))
    tokens = size({"total": getattr(getattr(response, "usage", None), "total_tokens", None)}, ["total"])
    return Turn(
        session_id if isinstance(session_id, str) else None,
        response,
        complete=status in (None, "completed"),
        context_tokens=tokens or None,
    )
