"""Which errors a function of the package can raise, by its source: itself, or in what it calls by a plain name. No tests."""

from __future__ import annotations

import ast
import builtins
import functools
import importlib
import inspect
import sys
import textwrap
import typing

from redis_sessions.keys import Keys
from redis_sessions.legacy.atomic_file import Replacement
from redis_sessions.operations.conversation import Operations
from redis_sessions.settings import StoreSettings

# The objects that the methods of a store or of its operations call.
_HOLDERS = {
    "self._ops": Operations,
    "self.keys": Keys,
    "self.settings": StoreSettings,
    "self._replacement": Replacement,
}
# What runs when a class is called, or entered by `with`; the last is a validator of pydantic's.
_MAKING = ("__init__", "__enter__", "__exit__", "_wrap_errors")


def errors_of(function, owner=None):
    """Classes of errors that it raises by name, or that what it calls does, and that nothing between them catches.

    Args:
        function: of the package.
        owner: the class whose method it is.
    """
    return _errors_of(function, owner, ())[0]


# What is known of functions that don't lead back to those that led to them.
_KNOWN = {}


def _errors_of(function, owner, below):
    """Same as errors_of, and which of the functions `below`, that have led here, are left out."""
    if (function, owner) in _KNOWN:
        return _KNOWN[function, owner], set()
    node = _parsed(function)
    names = dict(vars(sys.modules[function.__module__]))
    for late in (each for each in ast.walk(node) if isinstance(each, ast.ImportFrom)):
        names |= {alias.name: getattr(importlib.import_module(late.module), alias.name) for alias in late.names}
    reader = _Reader(names, owner, (*below, function))
    found = reader.all_of(node.body)
    if not (left_out := reader.left_out - {function}):
        _KNOWN[function, owner] = found
    return found, left_out


@functools.cache
def _parsed(function):
    [node] = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    return node


_unparsed = functools.cache(ast.unparse)


class _Reader:
    def __init__(self, names, owner, below):
        self.names, self.owner, self.below, self.left_out = names, owner, below, set()

    def all_of(self, nodes):
        return set().union(*map(self.one, nodes))

    def one(self, node):
        if isinstance(node, ast.Try):
            return self.tried(node)
        found = self.all_of(ast.iter_child_nodes(node))
        if isinstance(node, ast.Raise) and node.exc is not None:
            found |= self.raised(node.exc)
        if isinstance(node, ast.Call):
            for callee, owner in self.called(node):
                if callee in self.below:
                    self.left_out.add(callee)
                    continue
                more, left_out = _errors_of(callee, owner, self.below)
                found |= more
                self.left_out |= left_out
        return found

    def tried(self, node):
        found = self.all_of(node.body)
        for handler in node.handlers:
            if not any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(handler)):
                types = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
                caught = tuple(self.value(each) for each in types)
                found = {error for error in found if not issubclass(error, caught)}
        return found | self.all_of([*node.handlers, *node.orelse, *node.finalbody])

    def raised(self, node):
        """The class of what is raised: it itself, one of it, or what a helper says that it returns."""
        value = self.value(node.func if isinstance(node, ast.Call) else node)
        helpers = [] if isinstance(value, type) or not isinstance(node, ast.Call) else self.called(node)
        values = [value, *(typing.get_type_hints(helper).get("return") for helper, _ in helpers)]
        return {each for each in values if isinstance(each, type) and issubclass(each, Exception)}

    def called(self, call):
        """The functions of the package that are called here, and the class whose methods they are."""
        node, owner = call.func, None
        value = self.value(node)
        if value is StoreSettings and not call.args and not call.keywords:
            found = []  # the defaults are right
        elif isinstance(value, type):
            found, owner = [getattr(value, name, None) for name in _MAKING], value
        elif value is None and isinstance(node, ast.Attribute):
            holder = _unparsed(node.value)
            beyond = {"self": self.owner, "cls": self.owner, "super()": self.owner and self.owner.__mro__[1]}
            owner = (beyond | _HOLDERS).get(holder)
            found = [getattr(owner, node.attr, None)]
        else:
            found = [value]
        for each in found:
            function = inspect.unwrap(getattr(each, "__func__", each))
            ours = inspect.isfunction(function) and function.__module__.startswith("redis_sessions")
            if ours and function.__code__.co_filename != "<string>":  # where a dataclass has its own from
                yield function, owner

    def value(self, node):
        if _unparsed(node) in ("cls", "type(self)"):
            return self.owner
        if isinstance(node, ast.Name):
            return self.names.get(node.id, getattr(builtins, node.id, None))
        if isinstance(node, ast.Attribute) and inspect.ismodule(module := self.value(node.value)):
            return getattr(module, node.attr, None)
        return None
