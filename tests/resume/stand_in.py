"""A stand-in agent with prepared answers, and a judge of what it raises. No tests."""

from __future__ import annotations

from redis_sessions import Judgement, Turn

KEY = "acme/shop#42:reviewer"


class AgentError(Exception):
    """What a stand-in agent raises."""


class Agent:
    """A stand-in agent with one answer for each run: an ID, None, or an exception to raise."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, session_id):
        self.asked.append(session_id)
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return Turn(answer, f"value {len(self.asked)}")


def says(verdict, *, turn_began=False):
    return lambda error: Judgement(verdict, turn_began=turn_began)
