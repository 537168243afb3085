"""What people write, in YAML or JSON: one reader, so that all keep to the same rules."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from models.errors import SettingsError
from models.struct_words import in_words

_MAX_DEPTH = 8
"""Of collections within collections: files have three, and PyYAML's own recursion has no bound."""

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where built

T = TypeVar("T")
Struct = TypeVar("Struct", bound=msgspec.Struct)


def read_yaml(path: Path, what: str, parse: Callable[[object], T]) -> T:
    """What is made of a YAML file, or of a JSON file, which is YAML as well.

    Args:
        path: the file.
        what: what it is called, such as "settings file".
        parse: from what the file holds, None where that is nothing; may raise SettingsError.

    Raises:
        SettingsError: the file cannot be read, has a key twice, or holds what is refused.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"{what} {path} cannot be read: {e}") from e
    try:
        return parse(plain_objects(text))
    except NotYamlError as e:
        raise SettingsError(f"{what} {path} {e}") from e
    except SettingsError as e:
        raise SettingsError(f"{what} {path}: {e}") from e


def to_struct(content: object, kind: type[Struct], field: str) -> Struct:
    """A struct from what a file holds.

    Args:
        content: plain objects.
        kind: the struct that they shall make.
        field: what a field of it is called, such as "setting".

    Raises:
        SettingsError: a field is unknown, ill-typed or out of range.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as e:
        raise SettingsError(in_words(str(e), kind, field)) from e


class NotYamlError(ValueError):
    """A text from which nothing can be read, in words for whoever wrote it."""


def plain_objects(text: str) -> object:
    """What a YAML text holds.

    Raises:
        NotYamlError: it is no YAML, is nested too deeply, or holds a key twice, a reference, or a
            value that is not what its tag says.
    """
    try:
        _check_shape(text)
        return yaml.load(text, _OnceLoader)  # noqa: S506 - a safe one
    except NotYamlError:
        raise
    except yaml.YAMLError as e:
        raise NotYamlError(f"is not YAML: {' '.join(str(e).split())}") from e
    except ValueError as e:  # such as the 31st of February
        raise NotYamlError(f"has a value that does not exist: {e}") from e
    except Exception as e:  # PyYAML raises KeyError for `!!bool x`, and the like
        raise NotYamlError("is not YAML: a value is not what its tag says") from e


class _OnceLoader(_SafeLoader):  # type: ignore[misc]
    """YAML in which each key of a mapping stands once: of two, one would be ignored."""

    def construct_mapping(
        self, node: yaml.MappingNode, deep: bool = False
    ) -> dict[Hashable, object]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{key.value} stands there twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        content: dict[Hashable, object] = super().construct_mapping(node, deep)
        return content


def _check_shape(text: str) -> None:
    """Refuse what PyYAML would not survive: it recurses in C, and copies what is referred to."""
    depth = 0
    for event in yaml.parse(text, _SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise NotYamlError(f"refers to *{event.anchor}: write what it means in its place")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise NotYamlError("is nested too deeply")
