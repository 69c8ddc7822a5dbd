"""Where the resume arguments go in a command line. A place that is not certain is refused, never guessed.

`{resume}`, as a word of the command or of a line for the shell in it, always says it: the arguments replace it; for a fresh
start it is left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection
from typing import Final, NamedTuple

from redis_sessions.agents.launchers import (
    MARK,
    PlaceUnknown,
    find,
    launcher_at,
    marked_lines,
    name_of,
    named,
    read_option,
    runs_here,
    shown,
)

__all__ = ["MARK", "PlaceUnknown", "ResumePlace", "given", "guess", "lacks", "name_of", "runs_here", "with_resume"]

_WORDS: Final = re.compile(r"""[\s'"();&|]+""")


class ResumePlace(NamedTuple):
    """Where a runtime takes its resume arguments: right after the executable, if nothing more is said.

    Attributes:
        subcommands, before_prompt: they go after one of these words; and before the prompt, or behind the options that
            follow it.
        value_options, list_options, flags: the options that have a value, those that have all words up to the next option,
            and those that have none; others before the place are refused.
        resumes, excludes: options, or words in place of subcommand or prompt, with which nothing can be resumed.
    """

    subcommands: tuple[str, ...] = ()
    before_prompt: bool = False
    value_options: tuple[str, ...] = ()
    list_options: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    resumes: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()

    def find(self, words: list[str]) -> int:
        """How many of the words after the executable come before the arguments. Raises PlaceUnknown."""
        _refuse_resuming(given(words, [option for option in self.resumes if option.startswith("-")]))
        if option := given(words, [option for option in self.excludes if option.startswith("-")]):
            raise PlaceUnknown(f"with {option} nothing can be resumed", remedy="leave it out")
        if not self.subcommands:
            self._refuse_word(self._first_word(words))
            return 0
        at = 0
        while words[at : at + 1] and words[at].startswith("-"):
            start = at
            at, is_list = self._after_option(words, at)
            if is_list and {*words[start:at]} & {*self.subcommands}:
                raise PlaceUnknown(
                    f"{words[start]} takes all words up to the next option for its values, {self.subcommands[0]} among them",
                    remedy=f"write it after {self.subcommands[0]}",
                )
        self._refuse_word(words[at : at + 1])
        if not {*words[at : at + 1]} & {*self.subcommands}:
            raise PlaceUnknown(
                f"without its subcommand {self.subcommands[0]} this agent does not run one turn and end",
                remedy=f"write {self.subcommands[0]} after its name, or {MARK} where its resume argument goes",
            )
        return self._before_prompt(words, at + 1) if self.before_prompt else at + 1

    def _before_prompt(self, words: list[str], at: int) -> int:
        """Before the prompt, or, if options follow it, at their end: what stands before the arguments may be any option."""
        prompt, lists = None, dict[int, int]()
        while at < len(words) and words[at] != "--":
            if words[at].startswith("-") and words[at] != "-":
                start = at
                at, is_list = self._after_option(words, at)
                if is_list:
                    lists[at] = start
            else:
                self._refuse_word(words[at : at + 1])
                if prompt is not None:
                    break
                prompt, at = at, at + 1
        if second := words[at:][words[at : at + 1] == ["--"] :][prompt is None :]:
            raise PlaceUnknown(f'"{shown(second[0])}" is a second prompt', remedy="write the prompt as one word, in quotes")
        if prompt is not None and prompt + 1 == at:
            return prompt
        # A list would take the arguments for its own; behind them such an option has one value.
        while at in lists:
            if at - lists[at] > 2:
                option, value = words[lists[at] : lists[at] + 2]
                attached = shown(f"{option}={value}" if option.startswith("--") else f"{option}{value}")
                raise PlaceUnknown(
                    f"{option} takes all words up to the next option for its values",
                    remedy=f"write {attached}, with its own {option} for each, and the prompt before it or behind --",
                )
            at = lists[at]
        return at

    def _after_option(self, words: list[str], at: int) -> tuple[int, bool]:
        """Behind an option and its values, and whether it would go on taking words."""
        option = read_option(words[at], {*self.value_options, *self.list_options}, self.flags)
        if option is None or at + option.size > len(words):
            raise PlaceUnknown(f"{shown(words[at])} is not an option that is known here, or has no value")
        is_list = option.size == 2 and option.names[-1] in self.list_options
        at += option.size
        while is_list and at < len(words) and (words[at] == "-" or not words[at].startswith("-")):
            at += 1
        return at, is_list

    def _first_word(self, words: list[str]) -> list[str]:
        """The first word that is not an option or its value, as far as these are known: a subcommand, or a prompt."""
        at = 0
        while words[at : at + 1] and words[at].startswith("-") and words[at] != "--":
            option = read_option(words[at], self.value_options, self.flags)
            at += option.size if option else 1
        return words[at : at + 1]

    def _refuse_word(self, words: list[str]) -> None:
        _refuse_resuming(next((word for word in words if word in self.resumes), None))
        for word in words:
            if word in self.excludes:
                raise PlaceUnknown(f"with {word} nothing can be resumed", remedy="leave it out")


def with_resume(command: list[str], names: Collection[str], place: ResumePlace | None, arguments: list[str]) -> list[str]:
    """A command with the resume arguments in their place; with none, the command for a fresh start.

    Args:
        command: program and words, `{resume}` among them or not.
        names: what the agent's executables and packages are called, the usual one first.
        place: where its resume arguments go; None if only `{resume}` can say.
        arguments: the resume arguments; empty for a fresh start, which is refused where a resume would be, so that an error
            shows at the first turn of a conversation, not at its second.

    Raises PlaceUnknown.
    """
    if MARK in command:
        at = command.index(MARK)
        arguments = [shlex.quote(argument) for argument in arguments] if _joined(command[:at]) else arguments
        return [*command[:at], *arguments, *(word for word in command[at + 1 :] if word != MARK)]
    try:
        if place is None:
            raise PlaceUnknown(f"it is not certain where {name_of(command[0])} takes its resume argument in this command")
        agent = find(command, names)
        return agent.put(1 + place.find(agent.words[1:]), arguments)
    except PlaceUnknown as error:
        for line in marked_lines(command):
            if (marked := line.replace_mark(command, arguments)) is not None:
                return marked
        if error.remedy:
            raise
        form = " ".join([*(list(names)[:1] or [name_of(command[0])]), *(place.subcommands[:1] if place else ()), MARK, "…"])
        raise PlaceUnknown(error.message, remedy=f"write {MARK} where its resume argument goes, as in {form}") from None


def guess(command: list[str], names: Collection[str]) -> str:
    """The one of these executables or packages that a command runs.

    If the program behind its launchers is not one of them: the only one that is named before `{resume}`, or at all. That
    is enough for a message, since without `{resume}` such a command is refused. Raises PlaceUnknown.
    """
    try:
        return find(command, names).name
    except PlaceUnknown:
        if found := _only_one(command, names):
            return found
        raise


def _only_one(command: list[str], names: Collection[str]) -> str | None:
    lines = [line.text(command).partition(MARK)[0] for line in marked_lines(command)]
    words = command[: command.index(MARK)] if MARK in command else _WORDS.split(" ".join(lines or command))
    found = {name for word in words if (name := named(word, names))}
    return found.pop() if len(found) == 1 else None


def lacks(command: list[str], names: Collection[str], options: Collection[str]) -> bool:
    """Whether an agent's command certainly has none of these options; False if the agent can't be found in it."""
    try:
        words = find(command, names).words
    except PlaceUnknown:
        return False
    return given(words[1:], options) is None


def given(words: list[str], options: Collection[str]) -> str | None:
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


def _joined(words: list[str]) -> bool:
    """Whether what follows these words becomes part of a line for the shell."""
    return any((known := launcher_at(words, at)) is not None and known[0].joins for at in range(len(words)))


def _refuse_resuming(word: str | None) -> None:
    if word is not None:
        does = "names" if word == "--session-id" else "resumes"
        raise PlaceUnknown(
            f"the command {does} a session by itself ({word})",
            remedy=f"remove that argument, the conversation's own is put there (or where {MARK} stands)",
        )
