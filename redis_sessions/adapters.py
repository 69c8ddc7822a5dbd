"""Turns of Python clients of agents, for `resume`. Neither package is imported."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import AsyncIterable, Callable
from typing import Any, TypeVar

from redis_sessions.agents.evidence import CLAUDE_FACTS, Evidence, RunFailed, claude_record, of_claude_sdk, of_openai
from redis_sessions.agents.output import size
from redis_sessions.errors import SessionStoreError
from redis_sessions.resume.turn import Turn

__all__ = ["RunFailed", "claude_turn", "openai_turn"]

log = logging.getLogger("redis_sessions")
V = TypeVar("V")
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

    Raises RunFailed whatever made the turn fail; `agents.get_agent("claude-agent-sdk").judge` reads it.
    """
    lines: list[str] = []
    records: dict[str, str] = {}
    session_id = result = tokens = None
    try:
        async for message in start(lines.append):
            kind = type(message).__name__
            if kind == "SystemMessage" and getattr(message, "subtype", None) == "init":
                session_id = (getattr(message, "data", None) or {}).get("session_id")
                records["init"] = json.dumps({"type": "system", "subtype": "init"})
            elif kind == "AssistantMessage":
                records.setdefault("init", json.dumps({"type": "system", "subtype": "init"}))
                model, error = getattr(message, "model", None), getattr(message, "error", None)
                session_id = getattr(message, "session_id", None) or session_id
                record = {"type": "assistant", "message": {"model": model}, "error": error, "session_id": session_id}
                if model == "<synthetic>" or error:
                    records.setdefault("assistant", json.dumps(record))
                    continue
                records["assistant"] = json.dumps(record)
                tokens = size(getattr(message, "usage", None) or {}, _INPUT) or tokens
                if save_early is not None and isinstance(session_id, str):
                    await _save(save_early, session_id)
                    save_early = None
            elif kind == "ResultMessage":
                result = message
    except Exception as error:
        seen = of_claude_sdk(error)
        stdout = [*records.values(), _failed(result) if result is not None else str(seen.stdout)]
        evidence = Evidence(seen.exit_code, "\n".join(stdout), "\n".join([*lines, str(seen.stderr)]))
        raise RunFailed(str(error), evidence) from error
    if result is None or result.is_error:
        stdout = [*records.values(), *([] if result is None else [_failed(result)])]
        raise RunFailed("the turn ended without success", Evidence(1, "\n".join(stdout), "\n".join(lines)))
    if tokens is None and result.num_turns == 1:
        # Of more than one request it is the sum.
        tokens = size(getattr(result, "usage", None) or {}, _INPUT) or None
    return Turn(result.session_id, result, context_tokens=tokens)


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


def _failed(result: Any) -> str:
    return claude_record(**{name: getattr(result, name, None) for name in ("errors", "result", *CLAUDE_FACTS)})
