"""Where the resume arguments go in a command line. What can't be found is refused, never guessed.

`{resume}` in the command always says it: a word of its own, replaced by the arguments, or left out for a fresh start.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import PurePath
from typing import Final, TypeAlias

from redis_sessions.errors import InvalidSettings

# Given the words after the executable, how many of them come before the resume arguments; None if that can't be told.
Place: TypeAlias = Callable[[list[str]], int | None]

MARK: Final = "{resume}"

# Programs that start another: what follows them may be their own options, so the agent must be found behind them by name.
_LAUNCHERS: Final = frozenset(
    """
    bash bun bunx chroot dash deno doas docker env fish flock ionice kubectl mise nerdctl nice node nohup npm npx
    nsenter perl pipx pnpm podman poetry python python3 ruby runuser screen script setsid sh ssh stdbuf su sudo
    systemd-run taskset time timeout tmux tsx unbuffer uv uvx watch xargs yarn zsh
    """.split()  # noqa: SIM905 - a list of quoted words would be four times as long
)


class PlaceUnknown(InvalidSettings):
    """The place of the resume arguments can't be told from the command."""


def name_of(word: str) -> str:
    """The bare name of a program: `/usr/bin/claude`, `claude.exe` and `codex@latest` are `claude`, `claude` and `codex`."""
    name = PurePath(word).name
    for end in (".exe", ".cmd", ".js"):
        name = name.removesuffix(end)
    head, at, _ = name.partition("@")
    return head if at and head else name


def with_resume(command: list[str], names: Collection[str], place: Place | None, arguments: list[str]) -> list[str]:
    """A command with the resume arguments in their place; with none, the command for a fresh start.

    Args:
        command: program and words, `{resume}` among them or not.
        names: what the agent's executable is called.
        place: where its resume arguments go; None if only `{resume}` can say.
        arguments: the resume arguments; empty for a fresh start, which is refused where a resume would be, so that the
            first turn of a conversation tells what its second would.

    Raises PlaceUnknown.
    """
    if MARK in command:
        at = command.index(MARK)
        return [*command[:at], *arguments, *(word for word in command[at + 1 :] if word != MARK)]
    start = _executable(command, names)
    words = command[start + 1 :]
    before = place(words) if place else None
    if before is None:
        raise PlaceUnknown(
            f"it can't be told where {name_of(command[start])} takes its resume argument in this command",
            remedy=f"write {MARK} where it goes, and leave resuming to this program",
        )
    at = start + 1 + before
    return [*command[:at], *arguments, *command[at:]]


def guess(command: list[str], names: Collection[str]) -> str | None:
    """The one of these executables that a command runs, or None: it itself, or the only one behind a launcher."""
    if name_of(command[0]) in names:
        return name_of(command[0])
    behind = {name_of(word) for word in command[1:] if name_of(word) in names}
    return behind.pop() if _launches(command) and len(behind) == 1 else None


def _executable(command: list[str], names: Collection[str]) -> int:
    if name_of(command[0]) in names or not _launches(command):
        return 0
    behind = [at for at, word in enumerate(command) if name_of(word) in names]
    if len(behind) != 1:
        raise PlaceUnknown(
            f"it can't be told which word behind {name_of(command[0])} is the agent",
            remedy=f"write {MARK} where its resume argument goes",
        )
    return behind[0]


def _launches(command: list[str]) -> bool:
    name = name_of(command[0])
    return name in _LAUNCHERS or name.startswith("python")


def first(*, resumes: Collection[str], unless: Collection[str] = ()) -> Place:
    """Right after the executable, as for options that may stand anywhere.

    Args:
        resumes: options by which a command resumes a session by itself; refused as such.
        unless: others that leave no place.
    """

    def place(words: list[str]) -> int | None:
        _refuse_resuming(_given(words, resumes))
        return None if _given(words, unless) else 0

    return place


def after_subcommand(name: str, *, values: Collection[str] = (), resumes: Collection[str]) -> Place:
    """Right after a subcommand, which must be the first word that is neither an option nor the value of one of `values`.

    `resumes` is as for `first`.
    """

    def place(words: list[str]) -> int | None:
        _refuse_resuming(_given(words, resumes))
        return _after((name,), words, values)

    return place


def before_prompt(
    *subcommands: str, values: Collection[str], flags: Collection[str], resumes: Collection[str], unless: Collection[str]
) -> Place:
    """After a subcommand and its options, before the prompt; an option that is not known may take a value, so it is refused.

    Args:
        subcommands: names of the subcommand.
        values: options that take one value.
        flags: options that take none.
        resumes: words in the place of the subcommand or the prompt by which a command resumes a session by itself.
        unless: other words that must not stand where the prompt does.
    """

    def place(words: list[str]) -> int | None:
        begin = _first_word(words, values)
        _refuse_resuming(words[begin] if begin is not None and words[begin] in resumes else None)
        at = _after(subcommands, words, values)
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
            name, has_value, _ = words[at].partition("=")
            if name in values:
                at += 1 if has_value else 2
            elif name in flags or (len(name) > 2 and name[1] != "-" and name[:2] in values):
                at += 1
            else:
                return None
        if at < len(words):
            _refuse_resuming(words[at] if words[at] in resumes else None)
        return None if at > len(words) or (at < len(words) and words[at] in unless) else at

    return place


def _after(subcommands: Collection[str], words: list[str], values: Collection[str]) -> int:
    at = _first_word(words, values)
    if at is not None and words[at] in subcommands:
        return at + 1
    wanted = next(iter(subcommands))
    raise PlaceUnknown(
        f"without its subcommand {wanted} this agent does not run one turn and end",
        remedy=f"write {wanted} after its name, or {MARK} where its resume argument goes",
    )


def _refuse_resuming(word: str | None) -> None:
    if word is not None:
        does = "names" if word == "--session-id" else "resumes"
        raise PlaceUnknown(
            f"the command {does} a session by itself ({word})",
            remedy=f"remove that argument, the conversation's own is put there (or where {MARK} stands)",
        )


def lacks(command: list[str], names: Collection[str], options: Collection[str]) -> bool:
    """Whether an agent's command has surely none of these options; where the agent can't be found, that can't be told."""
    try:
        start = _executable(command, names)
    except PlaceUnknown:
        return False
    return name_of(command[start]) in names and _given(command[start + 1 :], options) is None


def _first_word(words: list[str], values: Collection[str]) -> int | None:
    at = 0
    while at < len(words) and words[at].startswith("-"):
        at += 2 if words[at] in values else 1
    return at if at < len(words) else None


def _given(words: list[str], options: Collection[str]) -> str | None:
    """Which of these options is among the words; of one letter also with its value, `-rID`, or as one of two, `-pc`."""
    for word in words[: words.index("--")] if "--" in words else words:
        name = word.partition("=")[0]
        if name in options:
            return name
        if name[:1] == "-" and name[1:2].isalpha() and not any(map(str.isspace, word)):
            letters = name[1:] if len(name) == 3 else name[1]
            if letter := next((letter for letter in letters if f"-{letter}" in options), None):
                return f"-{letter}"
    return None
