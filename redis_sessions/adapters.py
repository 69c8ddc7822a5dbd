"""Turns of Python clients of agents, for `resume`. Neither package is imported."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable
from typing import Any, TypeVar

from redis_sessions.agents.evidence import Evidence, RunFailed, claude_record, of_claude_sdk
from redis_sessions.resume.turn import Turn

__all__ = ["RunFailed", "claude_turn", "openai_turn"]

V = TypeVar("V")


async def claude_turn(start: Callable[[Callable[[str], None]], AsyncIterable[Any]]) -> Turn[Any]:
    """Run a turn of claude-agent-sdk to its end; the value is its `ResultMessage`.

    Args:
        start: given a callback for stderr, starts the query: `lambda stderr: query(prompt=…, options=ClaudeAgentOptions(
            resume=session_id, stderr=stderr))`. Some versions say nowhere else that a session is gone.

    Raises RunFailed whatever made the turn fail; `agents.get_agent("claude-agent-sdk").judge` reads it.
    """
    lines: list[str] = []
    began = ""
    result: Any = None
    try:
        async for message in start(lines.append):
            kind = type(message).__name__
            if kind == "SystemMessage" and getattr(message, "subtype", None) == "init":
                began = '{"type": "system", "subtype": "init"}\n'
            elif kind == "AssistantMessage":
                began = '{"type": "system", "subtype": "init"}\n{"type": "assistant"}\n'
            elif kind == "ResultMessage":
                result = message
    except Exception as error:
        seen = of_claude_sdk(error)
        stdout = _failed(result) if result is not None else seen.stdout
        raise RunFailed(str(error), Evidence(1, began + str(stdout), "\n".join([*lines, str(seen.stderr)]))) from error
    if result is None or result.is_error:
        stdout = _failed(result) if result is not None else ""
        raise RunFailed("the turn ended without success", Evidence(1, began + stdout, "\n".join(lines)))
    return Turn(result.session_id, result)


def openai_turn(response: V) -> Turn[V]:
    """Make a turn of a response of the OpenAI client: its ID, which is new every turn, and itself as the value.

    Args:
        response: what `client.responses.create(previous_response_id=session_id, …)` returned.
    """
    session_id = getattr(response, "id", None)
    return Turn(session_id if isinstance(session_id, str) else None, response)


def _failed(result: Any) -> str:
    return claude_record(errors=getattr(result, "errors", None), result=result.result, num_turns=result.num_turns)
