"""The options that every command on a store has, defined once, the store that they lead to, and how errors name them."""

import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, Final

import typer
from typer.core import TyperCommand

from redis_sessions.cli import output as show
from redis_sessions.client.url import PASSWORD_FILE_VARIABLE, read_password
from redis_sessions.errors import InvalidSettings, StoreUnavailable
from redis_sessions.operations.text import DURATIONS, parse_duration_ms, safe

if TYPE_CHECKING:
    from redis_sessions.settings import StoreSettings
    from redis_sessions.store import SessionStore

DEFAULT_URL: Final = "redis://127.0.0.1:6379/0"
URL_VARIABLES: Final = ("REDIS_SESSIONS_URL", "REDIS_URL")
NAMESPACE_VARIABLE: Final = "REDIS_SESSIONS_NAMESPACE"
MAX_AGE_VARIABLE: Final = "REDIS_SESSIONS_MAX_AGE"
AGENTS_VARIABLE: Final = "REDIS_SESSIONS_AGENTS"
# The common options that a command without a use for the max age leaves out.
MAX_AGE_OPTIONS: Final = ("max_age", "config")


def value(name: str, metavar: str, text: str, **more: Any) -> Any:
    """An option that takes a value; `more` are further arguments of `typer.Option`."""
    return typer.Option(name, metavar=metavar, help=text, **more)


Key = Annotated[str, typer.Argument(metavar="KEY", help="The conversation, such as acme/shop#42:reviewer.")]
Yes = Annotated[bool, typer.Option("--yes", help="Don't ask.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
URL: Final = (
    "Where Redis is: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://. Other users can read a command "
    "line: give a password in the environment."
)
PASSWORD: Final = "File with the password of the URL's user, if the URL has none."  # noqa: S105 - a help text
NAMESPACE: Final = "First part of every key. Workers that can't resume each other's sessions use separate ones."
MAX_AGE: Final = f"How long an ID may stay unused: {DURATIONS}."
CONFIG: Final = "JSON file with session_max_age_ms (or sessionMaxAgeMs), and max_turns and so on, at its top level."


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the store is and how it behaves, as given on the command line."""

    url: Annotated[str, value("--url", "URL", URL, envvar=list(URL_VARIABLES))] = DEFAULT_URL
    password_file: Annotated[Path | None, value("--password-file", "FILE", PASSWORD, envvar=PASSWORD_FILE_VARIABLE)] = None
    namespace: Annotated[
        str | None,
        value("--namespace", "NAME", NAMESPACE, envvar=NAMESPACE_VARIABLE, show_default="sessions"),
    ] = None
    max_age: Annotated[
        str | None,
        value("--max-age", "TIME", MAX_AGE, envvar=MAX_AGE_VARIABLE, show_default="as in --config, or 24h"),
    ] = None
    config: Annotated[Path | None, value("--config", "FILE", CONFIG, envvar="REDIS_SESSIONS_CONFIG")] = None
    as_json: Json = False

    def settings(self) -> "StoreSettings":
        """The store's settings. Raises InvalidSettings."""
        from redis_sessions.settings import StoreSettings

        given: dict[str, Any] = {} if self.namespace is None else {"namespace": self.namespace}
        if self.max_age is not None:
            given["session_max_age_ms"] = parse_duration_ms(self.max_age, "--max-age")
        if self.config is None:
            return StoreSettings(**given)
        try:
            settings = StoreSettings.from_json_file(self.config, **given)
        except InvalidSettings as error:
            raise InvalidSettings(error.problem, setting=error.setting or "config", remedy=error.remedy) from None
        if "session_max_age_ms" not in settings.model_fields_set:
            show.complain(f"{self.config} has no session_max_age_ms at its top level: it sets no max age")
        return settings

    def put_json(self, result: Any) -> None:
        """Write a result as a line of JSON, with the namespace that it is about and the time by this machine's clock."""
        values = result.model_dump(mode="json") if hasattr(result, "model_dump") else result
        show.put_json({"namespace": self.namespace or "sessions", "at_ms": round(time.time() * 1000)} | values, flush=True)

    def put_result(self, result: Any, shown: Callable[[], object]) -> None:
        """Write a result as JSON, or let `shown` write it for people; say if a scan behind it may have missed keys.

        If its reader is gone, the command goes on, and ends with its own exit code.
        """
        with suppress(BrokenPipeError):
            if self.as_json:
                self.put_json(result)
            else:
                shown()
        if getattr(result, "approximate", False):
            show.complain(show.APPROXIMATE)

    @contextmanager
    def store(self, say: Callable[[str], None] = show.complain, **changed: Any) -> Iterator["SessionStore"]:
        """The store, with some settings changed; it connects at its first operation, and says if that takes long.

        Raises InvalidSettings.
        """
        from redis_sessions.store import SessionStore

        settings = self.settings().model_copy(update=changed)
        password = read_password(self.password_file)
        # While it closes, a thread that is left in an operation finds its connection closed: no problem of the server.
        with SessionStore.from_url(self.url, settings, password=password) as store, show.logged_tries(say):
            yield store


def confirmed(question: str, *, yes: bool) -> bool:
    """Whether to go on: `yes`, or what a person at a terminal answers. Raises InvalidSettings where nobody can be asked."""
    if not yes and not (show.is_terminal(sys.stdin) and show.is_terminal(sys.stderr)):
        raise InvalidSettings("--yes is missing, and there is no terminal to ask at", remedy="add it")
    if yes or typer.confirm(safe(question), err=True):
        return True
    show.complain("nothing was done")
    return False


def say_empty(store: "SessionStore") -> None:
    """Say that a namespace has no sessions; if it has no keys at all, name those that others have on the same server."""
    near = store.near_namespaces()
    others = f"; there are {', '.join(near)}: name one with --namespace" if near else ""
    show.complain(f"namespace {store.settings.namespace} has no {'keys' if near else 'live session'}{others}")


def register_users_runtimes() -> None:
    """Make the runtimes of the directory that REDIS_SESSIONS_AGENTS names known. Raises InvalidSettings."""
    if directory := os.environ.get(AGENTS_VARIABLE):
        from redis_sessions.agents import register_directory

        register_directory(directory)


def names_of_runtimes(incomplete: str) -> list[str]:
    """Names of the known runtimes that begin so, for shell completion."""
    from redis_sessions.agents import known_agents

    register_users_runtimes()
    return [agent.name for agent in known_agents() if agent.name.startswith(incomplete)]


class CliCommand(TyperCommand):
    """A command whose errors name the option, or the environment variable, that has the invalid value."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. An InvalidSettings about a setting of the library becomes one about the option for it."""
        try:
            return super().invoke(ctx)
        except InvalidSettings as error:
            name, remedy = _MEANT.get(error.setting or "", (error.setting, error.remedy))
            for param in self.params:
                if name is not None and name in (param.name, *param.opts):
                    joint = ":" if isinstance(ctx.params.get(param.name), Path) else ""
                    raise InvalidSettings(
                        error.problem, setting=f"{_source(ctx, param) or param.opts[0]}{joint}", remedy=remedy
                    ) from None
            raise
        except StoreUnavailable as error:
            for param in self.params:
                if param.name == "url" and (variable := _source(ctx, param)):
                    error.add_note(f"{variable} names this server")
            raise


# Settings of the library whose option has another name, or takes something else: that name, and what to do.
_MEANT: Final = {
    "assume_used_at": (
        "assume_used_at",
        "write 2026-11-22T09:30:00+01:00, milliseconds since 1970 such as 1795336200000, or mtime with a regular file",
    ),
    "id_fields": ("id_field", "name a field"),
    "used_fields": ("used_field", "name a field"),
    "session_max_age_ms": ("max_age", f"write {DURATIONS}, a century at most"),
    "max_lifetime_ms": ("max_lifetime", f"write {DURATIONS}, a century at most"),
    "max_context_tokens": ("max_context", "give a whole number of tokens, 1 or more"),
    "to_others": ("--show-keys-to-others", "listen on 127.0.0.1, or give it"),
    "wait_ms": ("wait", f"write {DURATIONS}"),
    "show_keys": ("show_keys", "listen on 127.0.0.1, or give --show-keys-to-others"),
}


def _source(ctx: Any, param: Any) -> str | None:
    """The environment variable that a parameter's value came from, or None."""
    source, names = ctx.get_parameter_source(param.name), param.envvar or ()
    if source is None or source.name != "ENVIRONMENT":
        return None
    return next(name for name in ([names] if isinstance(names, str) else names) if os.environ.get(name))


def given_words(ctx: Any) -> list[str]:
    """The common options that stand before the command's name, as words that may stand after it as well."""
    words = []
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name)
        if param.name in Options.__dataclass_fields__ and source is not None and source.name == "COMMANDLINE":
            given = ctx.params[param.name]
            values = given if param.multiple else [given]
            words += [param.opts[0] if param.is_flag else f"{param.opts[0]}={value}" for value in values]
    return words


def on_a_store(command: Callable[Concatenate[Options, ...], int], *, but: Collection[str] = ()) -> Callable[..., int]:
    """Add the common options to a command, after its own; it takes them as its first argument, an Options.

    An option of the command's own, such as a namespace that may be given more than once, replaces the common one of that
    name; those in `but` are left out.
    """
    own = list(inspect.signature(command).parameters.values())[1:]
    taken = {*but, *(parameter.name for parameter in own)}
    names = [field.name for field in fields(Options) if field.name not in taken]

    @functools.wraps(command)
    def with_options(**given: Any) -> int:
        return command(Options(**{name: given.pop(name) for name in names}), **given)

    return with_common(with_options, own, names)


def with_common(function: Callable[..., Any], own: list[inspect.Parameter], names: Collection[str]) -> Callable[..., Any]:
    """Tell typer that a function takes its own parameters and the common options of these names."""
    common = [parameter for name, parameter in inspect.signature(Options).parameters.items() if name in names]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in (*own, *common)]
    vars(function)["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return function
