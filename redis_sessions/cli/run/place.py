"""Where an agent runs, for the record of its session: what is not certain is left out."""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

from redis_sessions.agents import Agent
from redis_sessions.agents.command_line import given, runs_here
from redis_sessions.operations.conversation import Place

# Docker and Podman put one of them into a container, whose default name is a random one.
_IN_CONTAINER: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_RANDOM_NAME: Final = re.compile(r"[0-9a-f]{12}")
_VARIABLE: Final = re.compile(r"\$(\w+)")


def place_of(runtime: Agent, command: list[str]) -> Place | None:
    """The place of a command's agent; None if nothing is known of it, as behind ssh or on a server of the agent's.

    The host is left out where its name says nothing: in a container that has been given none, and in a pod of Kubernetes.
    """
    variables = {name for path in runtime.home_at for name in _VARIABLE.findall(path)}
    words = runtime.own_words(command)
    if not runs_here(command, runtime.programs, variables) or given(words, runtime.elsewhere_options):
        return None
    home = runtime.home(os.environ)
    return Place(
        _host(),
        None if home is None else _resolved(home),
        None if given(words, runtime.directory_options) else _directory(),
    )


def _resolved(path: str) -> str | None:
    # A relative one is unknown where the working directory was deleted.
    with suppress(OSError):
        return os.path.realpath(path)
    return None


def _directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 - a text is what is wanted
    except OSError:
        # It was deleted.
        return None


def _host() -> str | None:
    name = socket.gethostname()
    is_random = _RANDOM_NAME.fullmatch(name) and any(path.exists() for path in _IN_CONTAINER)
    return None if is_random or "KUBERNETES_SERVICE_HOST" in os.environ else name
