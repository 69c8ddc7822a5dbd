"""The description of an agent runtime as an immutable, checked value, and how it is read from a TOML file."""

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from string import Template
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ModelWrapValidatorHandler, ValidationError, model_validator

from redis_sessions.agents.command_line import ResumePlace, name_of
from redis_sessions.agents.evidence import READERS, Evidence, of_process
from redis_sessions.agents.judge import RunObserver
from redis_sessions.agents.launchers import MARK, PlaceUnknown, find, launch_of
from redis_sessions.agents.output import ANY, Record, asks_for_json, compiled
from redis_sessions.errors import InvalidSettings
from redis_sessions.operations.text import parse_duration_ms
from redis_sessions.resume.turn import Judgement, Verdict

KNOWN: Final = Path(__file__).with_name("known")
_VARIABLE: Final = re.compile(r"\$[A-Za-z_]\w*(?:/[^$]*)?\Z")

# In the words of TOML. Each pair is one error by its names in older and newer versions of pydantic.
_WRONG: Final = {
    **dict.fromkeys(("missing_argument", "missing"), "is missing"),
    **dict.fromkeys(("unexpected_keyword_argument", "extra_forbidden"), "is not a known key"),
    **dict.fromkeys(("arguments_type", "named_tuple_type", "dict_type"), "must be a table"),
    "string_type": "must be text",
    "tuple_type": "must be a list",
}


def _regular(pattern: str) -> str:
    try:
        compiled(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is not a regular expression ({error})") from None
    return pattern


def _must(be: str, right: Callable[[Any], bool]) -> AfterValidator:
    def checked(value: Any) -> Any:
        if not right(value):
            raise ValueError(f"must {be}")
        return value

    return AfterValidator(checked)


def _duration(text: str) -> str:
    try:
        parse_duration_ms(text, "")
    except InvalidSettings:
        raise ValueError("must be a duration such as 15m, 24h or 30d") from None
    return text


def _reader(value: Any) -> Any:
    if callable(value):
        return value
    if isinstance(value, str) and value in READERS:
        return READERS[value]
    raise ValueError(f"must be one of {', '.join(READERS)}")


def _any_value(record: Any) -> Any:
    if not isinstance(record, dict):
        return record
    return {name: ANY if value is ... else _any_value(value) for name, value in record.items()}


Pattern = Annotated[str, AfterValidator(_regular)]
NamingPattern = Annotated[Pattern, _must("have {id} or a group (?P<id>…) in it", lambda it: "id" in compiled(it).groupindex)]
ResumeWords = Annotated[tuple[str, ...], _must("have {id} in it", lambda words: not words or "{id}" in " ".join(words))]
Refusing = Annotated[Verdict, _must("be a way to refuse", lambda verdict: verdict not in (Verdict.ok, Verdict.other))]
FreeRecord = Annotated[Record, BeforeValidator(_any_value)]
Records = tuple[FreeRecord, ...]
Options = Annotated[tuple[str, ...], _must("be options", lambda words: all(word[:1] == "-" for word in words))]
Formats = bool | tuple[Literal["text", "json"], ...]
# Pydantic says of None what it says of a wrong type, and `_explained` that it is empty.
Paths = Annotated[tuple[str, ...], BeforeValidator(lambda paths: paths or None)]
Versions = Annotated[tuple[str, ...], BeforeValidator(lambda versions: versions or None)]
Binding = tuple[Literal["host", "home", "directory"], ...]
Places = Annotated[tuple[str, ...], _must("begin with a variable", lambda paths: all(map(_VARIABLE.match, paths)))]
Name = Annotated[str, BeforeValidator(lambda name: name or None)]


class Refusal(NamedTuple):
    """A text by which a runtime refuses to resume.

    Attributes:
        verdict: what it means: gone, invalid_id, busy, unusable, or unavailable, which says nothing of the session.
        pattern: a regular expression, matched from the first character of a stderr line or an error text. `{id}`, or a
            group `id`, is the session it names: a refusal of another session than the requested one does not count.
        within_turn: an error of the model's API, which also counts after the turn has begun, and shows that it has.
    """

    verdict: Refusing
    pattern: Pattern
    within_turn: bool = False

    def says(self, text: str, requested: str | None) -> bool:
        """Whether a text is this refusal, of the requested session."""
        found = compiled(self.pattern).match(text)
        named = found.groupdict().get("id") if found else None
        return found is not None and (requested is None or named is None or named == requested)


class RecordField(NamedTuple):
    """A field of some of a runtime's JSON records.

    Attributes:
        path: where it is in the record, dotted: `error.message`.
        record: names and values that the record has; none: any record.
    """

    path: str
    record: FreeRecord = {}  # noqa: RUF012 - never changed; a named tuple has no factories


class ContextTokens(NamedTuple):
    """Where records have the size of the session's context, in tokens.

    Attributes:
        paths: dotted, as in a RecordField; the size is the sum of the last number at each.
        record: names and values that the record has; the last such record counts.
    """

    paths: Paths
    record: FreeRecord


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, dict | ContextTokens) else value


Contexts = Annotated[tuple[ContextTokens, ...], BeforeValidator(_one_or_more)]


class Verified(NamedTuple):
    """Versions of a runtime for which a description was checked.

    Attributes:
        versions: oldest first.
        evidence: "ran offline" if their real output was seen, "documents" if only their documentation was read.
    """

    versions: Versions
    evidence: Literal["ran offline", "documents"]


class Agent(BaseModel, frozen=True, extra="forbid"):
    """One runtime, described: its session IDs, its JSON records, its ways to refuse. Immutable; only `name` is required.

    What a TOML file says by its keys, Python says by keyword arguments, with `...` for "any true value":

    >>> mine = Agent(
    ...     name="mine",
    ...     session_id_at=(RecordField("session.id", {"type": "end"}),),
    ...     turn_began=({"type": "step"},),
    ...     turn_ended=({"type": "end"},),
    ...     turn_failed=({"type": "end", "error": ...},),
    ...     error_paths=("error.message",),
    ...     refusals=(Refusal(Verdict.gone, "no such session"), Refusal(Verdict.busy, "session is locked")),
    ... )
    >>> mine.judge(exit_code=1, stdout='{"type": "end", "error": {"message": "no such session: 7"}}').verdict
    <Verdict.gone: 'gone'>
    >>> mine.judge(exit_code=0, stdout='{"type": "end", "session": {"id": "8"}}').session_id
    '8'

    `store.resume(key, run, judge=mine.judge)` then reads what `run` raises, such as a `subprocess.CalledProcessError`.
    Raises InvalidSettings, which names the key, for a description that can't be right.

    Attributes:
        name, executables, packages, keeps_sessions, sessions_of, verified: which runtime it is.
        home_at, bound_to, once_bound_to: where its sessions are, and where they can be resumed.
        directory_options, elsewhere_options: when that is not where it was started.
        session_id, resume, place, print_mode, json_output: how it is called. `place` None: only `{resume}` can say.
        keeps_id, new_id_options, mint, ephemeral, ephemeral_resumes: what becomes of the session's ID.
        session_id_at, session_id_line, session_id_stdout_line: where it names the session.
        turn_began, turn_began_line, turn_ended, turn_failed, turn_failed_line, failed_stdout_line: how a turn goes.
        answered, answered_unless, answered_line, answer_on_stdout: what shows that the model has answered.
        turn_closed, spurious_failures, context_tokens_at: how a turn ends.
        ignore_stderr_after, error_paths, refusals, silent_refusal: how it refuses.
        error_reader: reads an exception as Evidence: a word that a TOML file may have, or a function.

    The documentation of `redis_sessions.agents` says what each of them means.
    """

    name: Name
    executables: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    keeps_sessions: Annotated[str, AfterValidator(_duration)] | None = None
    sessions_of: Name | None = None
    home_at: Places = ("$HOME",)
    directory_options: Options = ()
    elsewhere_options: Options = ()
    bound_to: Binding = ()
    once_bound_to: Binding = ()
    verified: tuple[Verified, ...] = ()
    session_id: Pattern = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,255}"
    resume: ResumeWords = ()
    place: ResumePlace | None = None
    keeps_id: bool = False
    new_id_options: Options = ()
    mint: ResumeWords = ()
    ephemeral: Options = ()
    ephemeral_resumes: bool = True
    silent_refusal: Formats = False
    print_mode: tuple[str, ...] = ()
    json_output: str | None = None
    session_id_at: tuple[RecordField, ...] = ()
    session_id_line: NamingPattern | None = None
    session_id_stdout_line: NamingPattern | None = None
    turn_began: Records = ()
    turn_began_line: Pattern | None = None
    answered: Records = ()
    answered_unless: Records = ()
    answered_line: Pattern | None = None
    answer_on_stdout: bool = False
    turn_ended: Records = ()
    turn_failed: Records = ()
    turn_failed_line: Pattern | None = None
    failed_stdout_line: Pattern | None = None
    spurious_failures: Records = ()
    turn_closed: Records = ()
    context_tokens_at: Contexts = ()
    ignore_stderr_after: Records = ()
    error_paths: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    error_reader: Annotated[Callable[[Exception], Evidence], BeforeValidator(_reader)] = of_process

    @model_validator(mode="wrap")
    @classmethod
    def _typed_errors(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(data)
        except ValidationError as error:
            raise InvalidSettings(_explained(error)) from None

    @property
    def keeps_sessions_ms(self) -> int | None:
        """How long it keeps a session, in milliseconds; None if that is not established."""
        return None if self.keeps_sessions is None else parse_duration_ms(self.keeps_sessions, "keeps_sessions")

    def home(self, environment: Mapping[str, str]) -> str | None:
        """Path of the directory where it keeps its sessions: the first of `home_at` whose variable is set, or None."""
        variables = {name: value for name, value in environment.items() if value}
        for path in self.home_at:
            with suppress(KeyError):
                return Template(path).substitute(variables)
        return None

    @property
    def programs(self) -> tuple[str, ...]:
        """What may stand for it in a command: its executables and packages."""
        return self.executables + self.packages

    def __repr_args__(self) -> Iterator[tuple[str, str]]:
        yield "name", self.name

    def judge(
        self,
        error: Exception | None = None,
        *,
        exit_code: int | None = None,
        stdout: str | bytes = "",
        stderr: str | bytes = "",
        requested: str | None = None,
        command: Sequence[str] | None = None,
    ) -> Judgement:
        """Judge a finished run; also the `judge` of `resume`, given what `run` raised.

        Args:
            error: an exception with `returncode`, `stdout` and `stderr`, as `subprocess.CalledProcessError` has, or whatever
                else `error_reader` reads; the arguments below are then ignored.
            exit_code: of the process; None if it is not known.
            stdout: all of it, as text or bytes.
            stderr: the same.
            requested: the session that was to be resumed, if known; a refusal that names another one is then ignored.
            command: its program and words, if known: they say whether JSON was asked for. Default: what the error has.
        """
        if error is not None:
            evidence = self.error_reader(error)
            exit_code, stdout, stderr = evidence[:3]
            command = command or evidence.command
        observer = self.observer(requested, command)
        observer.stdout(_bytes(stdout))
        observer.stderr(_bytes(stderr))
        return observer.judge(exit_code)

    def observer(
        self, requested: str | None = None, command: Sequence[str] | None = None, *, minted: bool = False
    ) -> RunObserver:
        """What follows a run of this command while it goes on.

        Args:
            requested: the session that it is to resume, or, if `minted`, the ID that it gives to a fresh one.
            command: program and words, if they are known.
            minted: see there.
        """
        given = command or ()
        options = self.new_id_options
        new_id = options and any(word.partition("=")[0] in options for word in self.own_words(given))
        pattern = self.answered_line
        # A word of one line may be the program or a subcommand.
        lines = [line.rstrip() for word in given if "\n" in word for line in word.split("\n")]
        quoted = sum(compiled(pattern).match(line) is not None for line in lines) if pattern else 0
        keeps_id = minted or (self.keeps_id and not new_id)
        launch = launch_of([*given], self.programs)
        return RunObserver(self, requested, json=self.wants_json(given), keeps_id=keeps_id, quoted=quoted, launch=launch)

    def wants_json(self, command: Sequence[str]) -> bool | None:
        """Whether a command asks this runtime for JSON; None if that can't be seen, as in a script's name."""
        if asks_for_json(self.own_words(command)):
            return True
        return False if self.json_output and any(map(self._is_program, command)) else None

    def own_words(self, command: Sequence[str]) -> list[str]:
        """The words of a command that are this runtime's own, up to `--`; all of them if it can't be found behind others."""
        with suppress(PlaceUnknown):
            words = find([word for word in command if word != MARK], self.programs).words if command else []
            return words[: words.index("--")] if "--" in words else words
        if any(map(self._is_program, command)):
            return [*command]
        # In a line for the shell it is one of the words inside.
        lines = [inside for word in command if any(map(self._is_program, inside := _split(word)))]
        return [*command, *chain.from_iterable(lines)]

    def _is_program(self, word: str) -> bool:
        head, _, _ = word[1:].partition("@")
        return name_of(word) in self.executables or word[:1] + head in self.packages

    def can_be(self, session_id: str) -> bool:
        """Whether this can be a session ID of this runtime."""
        return compiled(self.session_id).fullmatch(session_id) is not None


def load(path: str | Path) -> Agent:
    """Read the description of a runtime from a TOML file. Raises InvalidSettings, which names the file and the key."""
    try:
        return Agent.model_validate(_table(Path(path)))
    except InvalidSettings as error:
        raise InvalidSettings(f"{path}: {error.message}", remedy=error.remedy) from None


def _table(path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text("utf-8-sig"))  # editors on Windows write a mark before the text
    except OSError as error:
        raise InvalidSettings(f"can't be read ({error.strerror})", remedy="name a TOML file") from None
    except UnicodeDecodeError:
        raise InvalidSettings("is not UTF-8", remedy="save it as UTF-8") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidSettings(f"is not TOML ({error})") from None
    if (like := table.pop("like", None)) is None:
        return table
    ours = sorted(each.stem for each in KNOWN.glob("*.toml"))
    if like not in ours:
        raise InvalidSettings(f"like must be one of {', '.join(ours)}")
    # What was checked for the one is not checked for the other; and one's packages don't have the other's executables.
    own = {"name", "verified"} | ({"packages"} if "executables" in table else set())
    return {name: value for name, value in _table(KNOWN / f"{like}.toml").items() if name not in own} | table


def _explained(error: ValidationError) -> str:
    """The first of what is wrong: which key, and how."""
    first = error.errors(include_url=False)[0]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).removeprefix(".")
    if first["input"] is None:
        return f"{key} is empty"
    wrong = _WRONG.get(first["type"]) or first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{key} {wrong}"


def _split(word: str) -> list[str]:
    """The words inside of one that a shell may be to read."""
    try:
        return shlex.split(word)
    except ValueError:
        return []


def _bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
