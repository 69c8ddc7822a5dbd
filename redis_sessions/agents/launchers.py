"""Programs that start another one, such as `timeout` or `npx`: which word of a command is the agent, by launchers.toml."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path, PurePath
from typing import Any, Final, NamedTuple

from redis_sessions.errors import InvalidSettings
from redis_sessions.operations.text import safe

MARK: Final = "{resume}"
_SHOWN: Final = 40

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*\+?=")
# In a line for the shell: a word that stays one, whatever the shell and the variables are.
_WORD: Final = re.compile(r"""[ \t]*((?:'[^']*'|"(?:[^"\\$`!]|\$\w+|\$\{\w+\})*"|[\w@%+=:,./-])+)(?=[ \t]|$)""")
# A line that runs the words behind it, the first of which is its $0.
_RUNS_ITS_WORDS: Final = re.compile(
    r"""(?P<first>(?:[^'"\\#]|'[^']*'|"[^"\\]*")*(?:&&|;))?\s*(?:exec\s+)?(?P<zero>"\$0"\s+)?"\$@"\s*(?P<rest>[<>;&|].*)?""",
    re.DOTALL,
)
# What such a line may do before without printing anything.
_PRINTS_NOTHING: Final = re.compile(
    r"(?:\s*(?:cd|export|unset|umask)\s+[^-\s;&|<>()`\n][^;&|<>()`\n]*(?:&&|;)|\s*set -[eu]+\s*(?:&&|;))*"
)
_MARK_IN_LINE: Final = re.compile(rf"(?<!\S){re.escape(MARK)}(?![\w{{}}])")
# How programs that start another one end if they can't: as in env(1), timeout(1), podman-exec(1) and shells.
_NOT_STARTED: Final = frozenset({125, 126, 127})
_PACKAGE: Final = re.compile(r"@[^/@]+/[^/@]+|[^/@=<>~![]+")
_INSTALLED: Final = re.compile(r".*\bnode_modules/(@[^/]+/[^/]+|[^/@.][^/]*)")


class PlaceUnknown(InvalidSettings):
    """The place of the resume arguments is not certain from the command."""


def name_of(word: str) -> str:
    """The bare name of a program: `/usr/bin/claude`, `claude.exe` and `codex@latest` are `claude`, `claude` and `codex`."""
    name = PurePath(word).name
    for end in (".exe", ".cmd", ".js"):
        name = name.removesuffix(end)
    head, at, _ = name.partition("@")
    return head if at and head else name


def named(word: str, names: Collection[str]) -> str | None:
    """Which of these programs or packages a word of a command runs, or None."""
    package = _PACKAGE.match(word.removeprefix("npm:"))
    installed = _INSTALLED.match(word)
    # Anybody may publish a package of the same name in a scope of their own.
    candidates = (installed and installed[1], package and package[0], None if word.startswith("@") else name_of(word))
    return next((name for name in candidates if name in names), None)


class Option(NamedTuple):
    """An option of a command: its names (two for `-ab`), how many words it takes, and where its value starts in the last."""

    names: list[str]
    size: int
    value_at: int


def read_option(word: str, value_options: Collection[str], flags: Collection[str]) -> Option | None:
    """An option as getopt and its relatives read it; None if it is not one of these."""
    name, has_value, _ = word.partition("=")
    if name in value_options:
        return Option([name], 1, len(name) + 1) if has_value else Option([name], 2, 0)
    if word in flags or (name in flags and name.startswith("--")):
        return Option([name], 1, 0)
    if word[1:2] in ("", "-"):
        return None
    names = []
    for at, letter in enumerate(word[1:], 2):
        names.append(f"-{letter}")
        if names[-1] in value_options:
            return Option(names, 1, at) if word[at:] else Option(names, 2, 0)
        if names[-1] not in flags:
            return None
    return Option(names, 1, 0)


class LaunchedAgent(NamedTuple):
    """An agent in a command.

    Attributes:
        name: which of the names that were looked for it has.
        words: itself and its arguments.
        before: the words before it.
        put: gives the whole command with these arguments before that one of the words.
    """

    name: str
    words: list[str]
    before: list[str]
    put: Callable[[int, list[str]], list[str]]


class Line(NamedTuple):
    """A line for the shell: these words of a command, joined by spaces, from a character on.

    Attributes:
        first, last: the words `command[first:last]`.
        at: the character.
    """

    first: int
    last: int
    at: int

    def text(self, command: list[str]) -> str:
        """The line."""
        return " ".join(command[self.first : self.last])[self.at :]

    def put(self, command: list[str], offset: int, arguments: list[str]) -> list[str]:
        """The command with arguments, quoted, before the word that begins at that character of the line, or at its end."""
        if not arguments:
            return command
        quoted, rest = [shlex.quote(argument) for argument in arguments], self.at + offset
        for at in range(self.first, self.last):
            word = command[at]
            if rest == 0 and at > self.first:
                return [*command[:at], *quoted, *command[at:]]
            if rest < len(word) or self.last - self.first == 1:
                end = word[rest:] if not word[rest:].strip() else f" {word[rest:]}"
                return [*command[:at], " ".join([word[:rest].rstrip(), *quoted]) + end, *command[at + 1 :]]
            rest -= len(word) + 1
        return [*command[: self.last], *quoted, *command[self.last :]]

    def replace_mark(self, command: list[str], arguments: list[str]) -> list[str] | None:
        """The command with arguments, quoted, in the place of `{resume}` in the line; None if it isn't there."""
        for at in range(self.first, self.last):
            skipped = self.at if at == self.first else 0
            begin, line = command[at][:skipped], command[at][skipped:]
            # A line doesn't begin with it: the agent's name comes before.
            if found := _MARK_IN_LINE.search(line, 1 if at == self.first else 0):
                put = _quoted_again(shlex.join(arguments), line[: found.start()])
                left = line[: found.start()] + put if put else line[: found.start()].rstrip(" \t")
                # Whatever other marks there are, the first says it.
                right = _MARK_IN_LINE.sub("", line[found.end() :])
                return [*command[:at], begin + left + right, *command[at + 1 :]]
        return None


def _quoted_again(text: str, before: str) -> str:
    """A text as it must be written behind that part of a line, where quotes may be open, also those of a line in a line."""
    quote, opened, escaped = "", 0, False
    for at, letter in enumerate(before):
        if escaped:
            escaped = False
        elif letter == "\\" and quote != "'":
            escaped = True
        elif letter in ("'", '"') and quote in ("", letter):
            quote, opened = "" if quote else letter, at
    if not quote:
        return text
    inner = before[opened + 1 :]
    if quote == "'":
        return _quoted_again(text, inner).replace("'", r"'\''")
    return re.sub(r'(["\\$`])', r"\\\1", _quoted_again(text, re.sub(r'\\(["\\$`])', r"\1", inner)))


class Launcher(NamedTuple):
    """A program that starts another one; launchers.toml says what each field means."""

    name: str
    value_options: frozenset[str] = frozenset()
    flags: frozenset[str] = frozenset()
    assignments: bool = False
    words: tuple[str, ...] = ()
    after: frozenset[str] = frozenset()
    shell_options: frozenset[str] = frozenset()
    only_shell_options: bool = False
    shell_flag: str | None = None
    joins: bool = False
    elsewhere: bool = False
    elsewhere_options: frozenset[str] = frozenset()
    repeats_with: frozenset[str] = frozenset()
    refused: str | None = None
    quiet: bool = False
    quiet_unless: frozenset[str] = frozenset()
    own_codes: tuple[int, ...] = ()
    own_line: str | None = None

    def command_of(self, words: list[str], at: int) -> int | Line:
        """Where its command starts, given the first word behind its name. Raises PlaceUnknown."""
        if self.refused is not None:
            raise PlaceUnknown(
                f"{self.name} can't be used here: {self.refused}", remedy="put redis-sessions run behind it, not before"
            )
        if self.after:
            starts = [start for start in range(at, len(words)) if words[start] in self.after]
            at = starts[0] + 1 if starts else len(words)
            self._require(words, at)
            return at
        own, options, given = list(self.words), True, set[str]()
        while at < len(words):
            word = words[at]
            if options and word == "--":
                options, at = False, at + 1
            elif options and (word in self.flags or (word.startswith("-") and word != "-")):
                option = read_option(word, self.value_options | self.shell_options, self._all_flags)
                if option is None:
                    raise PlaceUnknown(f"{shown(word)} is not an option of {self.name} that is known here")
                at += option.size
                if option.names[-1] in self.shell_options:
                    self._require(words, at - 1)
                    return Line(at - 1, at, option.value_at)
                given.update(option.names)
                if again := [*self.repeats_with.intersection(option.names)]:
                    why = f"with {again[0]} {self.name} may run the agent several times, also at once"
                    raise PlaceUnknown(why, remedy="leave it out")
            elif self.only_shell_options or (self.assignments and _ASSIGNMENT.match(word)):
                at += 1
            elif own and re.fullmatch(own[0], word):
                del own[0]
                at += 1
            else:
                break
        if own and at < len(words):
            raise PlaceUnknown(f"{shown(words[at])} is not what {self.name} takes before its command")
        if self.shell_flag is not None and self.shell_flag not in given:
            raise PlaceUnknown(f"what {self.name} runs without {self.shell_flag} is not known here")
        self._require(words, at)
        if self.joins:
            return Line(at, len(words), 0)
        return at if self.shell_flag is None else Line(at, at + 1, 0)

    @property
    def _all_flags(self) -> frozenset[str]:
        return self.flags if self.shell_flag is None else self.flags | {self.shell_flag}

    def _require(self, words: list[str], at: int) -> None:
        if at >= len(words):
            needed = sorted(self.after or (self.shell_options if self.only_shell_options else ()))
            raise PlaceUnknown(f"{self.name} has no command here" + (f" without {' or '.join(needed)}" if needed else ""))


@cache
def _launchers() -> dict[str, Launcher]:
    table = tomllib.loads(Path(__file__).with_name("launchers.toml").read_text("utf-8"))
    return {
        name: Launcher(name, **{key: _value(key, value) for key, value in entry.items() if key != "names"})
        for entry in table["launcher"]
        for name in map(" ".join, map(str.split, entry["names"].split(",")))
    }


def _value(key: str, value: Any) -> Any:
    if key in ("value_options", "flags", "after", "shell_options", "elsewhere_options", "repeats_with", "quiet_unless"):
        return frozenset(value.split())
    return tuple(value) if isinstance(value, list) else value


def launcher_at(words: list[str], at: int) -> tuple[Launcher, int] | None:
    """The launcher that a word is, with its subcommands, and the first word behind it; None if it isn't one."""
    program = name_of(words[at])
    for bare in (program, program.rstrip("0123456789.")):
        for size in (3, 2, 1):
            if launcher := _launchers().get(" ".join([bare, *words[at + 1 : at + size]])):
                return launcher, at + size
    return None


def find(command: list[str], names: Collection[str]) -> LaunchedAgent:
    """The agent of one of these names, behind launchers. Raises PlaceUnknown if another program is met first."""
    at, name = _pass_over(command, names)
    if isinstance(at, Line):
        return _in_line(command, at, names)
    return LaunchedAgent(
        name,
        command[at:],
        command[:at],
        lambda before, arguments: [*command[: at + before], *arguments, *command[at + before :]],
    )


def runs_here(command: list[str], names: Collection[str], variables: Collection[str]) -> bool:
    """Whether an agent certainly runs on this machine, in this directory, and with these variables as they are here."""
    try:
        before = find([word for word in command if word != MARK], names).before
    except PlaceUnknown:
        return False
    if any(re.search(rf"(?<![A-Z0-9_]){name}\+?=", word) for word in before for name in variables):
        return False
    words = [*before, *list(names)[:1]]
    return not any(
        known and _leads_elsewhere(known[0], words, known[1])
        for known in map(partial(launcher_at, before), range(len(before)))
    )


class Launch(NamedTuple):
    """What the launchers of a command may say.

    Attributes:
        quiet: whether what comes on stdout is certainly the agent's.
        codes: exit codes that say that they could not start the agent, or lost it.
        lines: regular expressions for a line on stderr that says so.
    """

    quiet: bool = True
    codes: frozenset[int] = _NOT_STARTED
    lines: tuple[str, ...] = ()


def launch_of(command: list[str], names: Collection[str]) -> Launch:
    """What the launchers before an agent of one of these names may say, or all of a command in which it can't be found."""
    before, found = [word for word in command if word != MARK], not command
    with suppress(PlaceUnknown):
        if before:
            before, found = find(before, names).before, True
    words = [*before, *list(names)[:1]]
    known = [launcher for at in range(len(before)) if (launcher := launcher_at(before, at))]
    return Launch(
        quiet=found and all(_is_quiet(launcher, words, at) for launcher, at in known),
        codes=_NOT_STARTED.union(*(launcher.own_codes for launcher, _ in known)),
        lines=tuple(launcher.own_line for launcher, _ in known if launcher.own_line),
    )


def _is_quiet(launcher: Launcher, words: list[str], at: int) -> bool:
    """Whether a launcher, whose words are those from `at` on, certainly prints nothing on stdout."""
    given, runs = _own_part(launcher, words, at)
    prints = runs is not None and (runs["rest"] or not _PRINTS_NOTHING.fullmatch(runs["first"] or ""))
    return launcher.quiet and not prints and given.isdisjoint(launcher.quiet_unless)


def _leads_elsewhere(launcher: Launcher, words: list[str], at: int) -> bool:
    """Whether the command of a launcher, whose words are those from `at` on, may run in another place than the launcher."""
    given, runs = _own_part(launcher, words, at)
    # Such as to change directory.
    does_more = runs is not None and runs["first"]
    return launcher.elsewhere or bool(does_more) or not given.isdisjoint(launcher.elsewhere_options)


def _own_part(launcher: Launcher, words: list[str], at: int) -> tuple[set[str], re.Match[str] | None]:
    """What may be options of a launcher, whose words are those from `at` on, and how its line runs the words behind it."""
    own, runs = words[at:], None
    with suppress(PlaceUnknown):
        start = launcher.command_of(words, at)
        if isinstance(start, Line):
            runs, start = _RUNS_ITS_WORDS.fullmatch(start.text(words)), start.first
        own = words[at:start]
    # An option, also as one of several letters: too much rather than too little.
    letters = {f"-{letter}" for word in own if re.match("-[^-]", word) for letter in word}
    return letters | {word.partition("=")[0] for word in own}, runs


def marked_lines(command: list[str]) -> Iterator[Line]:
    """The lines for a shell in which `{resume}` stands, behind whatever programs."""
    for at in range(len(command)):
        if known := launcher_at(command, at):
            with suppress(PlaceUnknown):
                line = known[0].command_of(command, known[1])
                if isinstance(line, Line) and line.replace_mark(command, []) is not None:
                    yield line


def _pass_over(words: list[str], names: Collection[str]) -> tuple[int | Line, str]:
    """Where the agent is, at which word or in which line for the shell, and its name, if that is not in the line."""
    at = 0
    while (name := named(words[at], names)) is None:
        if (known := launcher_at(words, at)) is None:
            raise PlaceUnknown(f"{shown(words[at])} is neither the agent nor a launcher that is known here")
        launcher, behind = known
        start = launcher.command_of(words, behind)
        if isinstance(start, int):
            at = start
        elif launcher.shell_flag and (runs := _RUNS_ITS_WORDS.fullmatch(start.text(words))):
            at = start.last + (0 if runs["zero"] else 1)
            if at >= len(words):
                raise PlaceUnknown(f"{launcher.name} has no command here")
        else:
            return start, ""
    return at, name


def _in_line(command: list[str], line: Line, names: Collection[str]) -> LaunchedAgent:
    text = line.text(command).rstrip()
    words, offsets, at = [], [], 0
    while at < len(text) and (found := _WORD.match(text, at)):
        words += shlex.split(found[1])
        offsets.append(found.start(1))
        at = found.end()
    if at < len(text) or not words:
        raise PlaceUnknown(f"it is not certain what the shell makes of {shown(text[at:].strip())}")
    if MARK in words:
        raise PlaceUnknown(f"{MARK} is in quotes, which would make one word of it")
    first = next((at for at, word in enumerate(words) if not _ASSIGNMENT.match(word)), len(words) - 1)
    start, name = _pass_over(words[first:], names)
    if isinstance(start, Line):
        raise PlaceUnknown("a line for the shell stands in another one")
    first += start
    ends = [*offsets[first:], len(text)]
    before = [*command[: line.first], *words[:first]]
    return LaunchedAgent(name, words[first:], before, lambda before, arguments: line.put(command, ends[before], arguments))


def shown(word: str) -> str:
    """A word of a command as a message quotes it."""
    return safe(word if len(word) <= _SHOWN else f"{word[:_SHOWN]}…")
