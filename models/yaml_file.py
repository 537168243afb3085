"""Files that people write, in YAML or JSON: one reader, so that all keep to the same rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import yaml

from models.errors import SettingsError
from models.struct_words import in_words

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
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)  # noqa: S506 - it is safe
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError(f"{what} {path} cannot be read: {e}") from e
    except yaml.YAMLError as e:
        raise SettingsError(f"{what} {path} is not YAML: {' '.join(str(e).split())}") from e
    try:
        return parse(content)
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


class _OnceLoader(yaml.SafeLoader):
    """YAML in which each key of a mapping stands once: of two, one would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} stands there twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)
