"""A struct's fields for those who write them into a file: what is allowed, and what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches

import msgspec
from msgspec import inspect


def in_words(problem: str, kind: type[msgspec.Struct], what: str) -> str:
    """The text of a msgspec.ValidationError, as a sentence that begins with the field's name.

    Args:
        problem: such as "Expected `int` <= 65535 - at `$.port`".
        kind: the struct that was to be made.
        what: what a field is called, such as "setting".
    """
    text, _, path = problem.partition(" - at `$")
    where = path.strip("`").removeprefix(".").removesuffix("[...]")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", text):
        name = ".".join(filter(None, (where, unknown[1])))
        like = get_close_matches(name, [name for name, _ in _fields(kind, "")], 1)
        return f"there is no {what} {name}" + "".join(f"; did you mean {each}?" for each in like)
    if text == "Expected `object`, got `null`":
        return f"{where or 'the file'}: is empty; leave it out, or write what belongs under it"
    if text.startswith("Invalid enum value"):
        allowed = dict(_fields(kind, ""))[where]
        return f"{where}: {text.removeprefix('Invalid enum value ')} is none of {_range(allowed)}"
    text = text.replace("`", "").replace("object", "a mapping", 1)
    return f"{where or 'the file'}: {text[:1].lower()}{text[1:]}"


def allowed(kind: type[msgspec.Struct], name: str) -> str:
    """Which values a field may have; empty where its type says no more than its default does."""
    return _range(dict(_fields(kind, ""))[name])


def _fields(kind: type[msgspec.Struct], prefix: str) -> Iterator[tuple[str, inspect.Type]]:
    """The dotted names of all fields, those of structs within included, and their types."""
    described = inspect.type_info(kind)
    assert isinstance(described, inspect.StructType)  # noqa: S101 - it is a struct
    for field in described.fields:
        yield prefix + field.name, field.type
        if isinstance(field.type, inspect.StructType):
            yield from _fields(field.type.cls, f"{prefix}{field.name}.")


def _range(of: inspect.Type) -> str:
    if isinstance(of, inspect.LiteralType):
        return ", ".join(map(str, of.values))
    if not isinstance(of, inspect.IntType | inspect.FloatType):
        return ""
    if of.ge is not None and of.le is not None:
        return f"{of.ge:,} to {of.le:,}"
    bounds = {"at least": of.ge, "above": of.gt, "at most": of.le, "below": of.lt}
    return ", ".join(f"{word} {at:,}" for word, at in bounds.items() if at is not None)
