"""Where the resume arguments go in a command line. A place that is not certain is refused, never guessed.

`{resume}`, as a word of the command, always says it: the arguments replace it; for a fresh start it is left out.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePath
from typing import Final, NamedTuple

from redis_sessions.errors import InvalidSettings

MARK: Final = "{resume}"

# Programs that start another one. The words that follow may be their own, so the agent is looked for by its name.
_LAUNCHERS: Final = frozenset(
    """
    bash bun bunx chroot dash deno doas docker env fish flock ionice kubectl mise nerdctl nice node nohup npm npx
    nsenter perl pipx pnpm podman poetry python python3 ruby runuser screen script setsid sh ssh stdbuf su sudo
    systemd-run taskset time timeout tmux tsx unbuffer uv uvx watch xargs yarn zsh
    """.split()  # noqa: SIM905 - a list of quoted words would be four times as long
)


class PlaceUnknown(InvalidSettings):
    """The place of the resume arguments is not certain from the command."""


def name_of(word: str) -> str:
    """The bare name of a program: `/usr/bin/claude`, `claude.exe` and `codex@latest` are `claude`, `claude` and `codex`."""
    name = PurePath(word).name
    for end in (".exe", ".cmd", ".js"):
        name = name.removesuffix(end)
    head, at, _ = name.partition("@")
    return head if at and head else name


class Place(NamedTuple):
    """Where a runtime takes its resume arguments: right after the executable, if nothing more is said.

    Attributes:
        subcommands, before_prompt: they go after one of these words; and after the options that follow it.
        value_options, flags: the options that have a value, and those that have none; others may, and are refused.
        resumes, excludes: options, or words in place of subcommand or prompt, with which nothing can be resumed.
    """

    subcommands: tuple[str, ...] = ()
    before_prompt: bool = False
    value_options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    resumes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    def find(self, words: list[str]) -> int | None:
        """How many of the words after the executable come before the arguments; None if uncertain. Raises PlaceUnknown."""
        _refuse_resuming(_given(words, [option for option in self.resumes if option.startswith("-")]))
        if _given(words, [option for option in self.excludes if option.startswith("-")]):
            return None
        if not self.subcommands:
            return 0
        at = 0
        while words[at : at + 1] and words[at].startswith("-"):
            at += 2 if words[at] in self.value_options else 1
        self._refuse_resuming_word(words[at : at + 1])
        if not {*words[at : at + 1]} & {*self.subcommands}:
            raise PlaceUnknown(
                f"without its subcommand {self.subcommands[0]} this agent does not run one turn and end",
                remedy=f"write {self.subcommands[0]} after its name, or {MARK} where its resume argument goes",
            )
        return self._before_prompt(words, at + 1) if self.before_prompt else at + 1

    def _before_prompt(self, words: list[str], at: int) -> int | None:
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
            name, has_value, _ = words[at].partition("=")
            if name in self.value_options:
                at += 1 if has_value else 2
            elif name in self.flags or (len(name) > 2 and name[1] != "-" and name[:2] in self.value_options):
                at += 1
            else:
                return None
        self._refuse_resuming_word(words[at : at + 1])
        return None if at > len(words) or {*words[at : at + 1]} & {*self.excludes} else at

    def _refuse_resuming_word(self, words: list[str]) -> None:
        _refuse_resuming(next((word for word in words if word in self.resumes), None))


def with_resume(command: list[str], names: Collection[str], place: Place | None, arguments: list[str]) -> list[str]:
    """A command with the resume arguments in their place; with none, the command for a fresh start.

    Args:
        command: program and words, `{resume}` among them or not.
        names: what the agent's executable is called.
        place: where its resume arguments go; None if only `{resume}` can say.
        arguments: the resume arguments; empty for a fresh start, which is refused where a resume would be, so that an error
            shows at the first turn of a conversation, not at its second.

    Raises PlaceUnknown.
    """
    if MARK in command:
        at = command.index(MARK)
        return [*command[:at], *arguments, *(word for word in command[at + 1 :] if word != MARK)]
    start = _executable(command, names)
    before = None if place is None else place.find(command[start + 1 :])
    if before is None:
        raise PlaceUnknown(
            f"it is not certain where {name_of(command[start])} takes its resume argument in this command",
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


def lacks(command: list[str], names: Collection[str], options: Collection[str]) -> bool:
    """Whether an agent's command certainly has none of these options; False if the agent can't be found in it."""
    try:
        start = _executable(command, names)
    except PlaceUnknown:
        return False
    return name_of(command[start]) in names and _given(command[start + 1 :], options) is None


def _executable(command: list[str], names: Collection[str]) -> int:
    if name_of(command[0]) in names or not _launches(command):
        return 0
    behind = [at for at, word in enumerate(command) if name_of(word) in names]
    if len(behind) != 1:
        raise PlaceUnknown(
            f"it is not certain which word behind {name_of(command[0])} is the agent",
            remedy=f"write {MARK} where its resume argument goes",
        )
    return behind[0]


def _launches(command: list[str]) -> bool:
    name = name_of(command[0])
    return name in _LAUNCHERS or name.startswith("python")


def _refuse_resuming(word: str | None) -> None:
    if word is not None:
        does = "names" if word == "--session-id" else "resumes"
        raise PlaceUnknown(
            f"the command {does} a session by itself ({word})",
            remedy=f"remove that argument, the conversation's own is put there (or where {MARK} stands)",
        )


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
