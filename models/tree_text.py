"""A strict reader of LightGBM's text format, to be run before LightGBM's own.

LightGBM trusts its text: a child index that is out of range reads foreign memory when it predicts,
a loop never ends, a wrong size makes the parser run off the text. So whatever would be followed
blindly is checked here: sizes, indices, the shape of each tree and that all values are finite.
Only what LightGBM writes is taken, so that it cannot read something else than what was checked: of
``0_1`` Python reads 1 and LightGBM 0, and lines end for it at a carriage return too.
"""

from __future__ import annotations

import math
import re

from models.errors import ArtifactError

MAX_TREES = 5_000
"""Trees in a model; training makes about a hundred."""

MAX_LEAVES = 1_024
"""Leaves of a tree; training makes eight."""

_HEADER = frozenset(
    {
        "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx",
        "objective", "feature_names", "feature_infos", "tree_sizes",
    }
)  # fmt: skip
_INTEGERS = ("split_feature", "decision_type", "left_child", "right_child")
_NUMBERS = ("split_gain", "threshold", "internal_value", "internal_weight", "internal_count")
_LEAVES = ("leaf_value", "leaf_weight", "leaf_count")
_SCALARS = ("num_leaves", "num_cat", "is_linear", "shrinkage")
_END = "end of trees\n"
_PLAIN = re.compile(r"[ -~\n]*")
_INTEGER = re.compile(r"-?[0-9]{1,9}")
_DECIMAL = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")


def trees_only(text: str) -> str:
    """LightGBM's text without what follows the trees: parameters, which predicting never reads."""
    return text[: text.index(_END) + len(_END)]


def check_tree_text(text: str, features: tuple[str, ...]) -> None:
    """Check that a text from `trees_only` is a model of numeric trees over given features.

    Raises:
        ArtifactError: with what is wrong.
    """
    if not _PLAIN.fullmatch(text):
        raise ArtifactError("a tree model holds something other than plain text")
    if not text.startswith("tree\n") or not text.endswith(_END):
        raise ArtifactError("a tree model is cut off, or is not one")
    start = text.find("Tree=0\n")
    if start < 0:
        raise ArtifactError("a tree model holds no tree")
    trees = [f"Tree={part}" for part in text[start : -len(_END)].split("Tree=")[1:]]
    header = _fields(text[len("tree\n") : start])
    _check_header(header, features, [len(tree) for tree in trees])
    for number, tree in enumerate(trees):
        _check_tree(number, tree, len(features))


def _check_header(header: dict[str, str], features: tuple[str, ...], sizes: list[int]) -> None:
    unknown = header.keys() - _HEADER
    if unknown:
        raise ArtifactError(f"a tree model has an unknown entry '{min(unknown)[:40]}'")
    expected = {
        "version": "v4",
        "objective": "quantile",
        "label_index": "0",
        "num_class": "1",
        "num_tree_per_iteration": "1",
        "max_feature_idx": str(len(features) - 1),
        "feature_names": " ".join(features),
        "tree_sizes": " ".join(map(str, sizes)),
    }
    for name, value in expected.items():
        if header.get(name) != value:
            raise ArtifactError(f"a tree model's {name} is not what its features and trees need")
    if len(header.get("feature_infos", "").split(" ")) != len(features):
        raise ArtifactError("a tree model's feature_infos do not match its features")
    if len(sizes) > MAX_TREES:
        raise ArtifactError(f"a tree model has {len(sizes)} trees, at most {MAX_TREES} may serve")


def _check_tree(number: int, text: str, features: int) -> None:
    first, _, rest = text.partition("\n")
    fields = _fields(rest)
    if first != f"Tree={number}" or fields.keys() - {*_INTEGERS, *_NUMBERS, *_LEAVES, *_SCALARS}:
        raise ArtifactError(f"tree {number} of a model is malformed")
    leaves = _integers(fields, "num_leaves", 1, number)[0]
    plain = fields.get("num_cat") == "0" and fields.get("is_linear", "0") == "0"
    if not 1 <= leaves <= MAX_LEAVES or not plain:
        raise ArtifactError(f"tree {number} of a model is not a numeric tree of sensible size")
    for name in _LEAVES:
        _numbers(fields, name, leaves, number, optional=name != "leaf_value")
    for name in _NUMBERS:
        _numbers(fields, name, leaves - 1, number, optional=name != "threshold")
    if leaves > 1:
        _check_shape(number, fields, leaves, features)


def _check_shape(number: int, fields: dict[str, str], leaves: int, features: int) -> None:
    """Each split and leaf must hang from exactly one earlier split, so that every path ends."""
    split, kind, left, right = (_integers(fields, name, leaves - 1, number) for name in _INTEGERS)
    children = sorted(left + right)
    below = all(
        child < 0 or child > parent for side in (left, right) for parent, child in enumerate(side)
    )
    # Leaves count down from -1 (the bitwise complement of their number), splits up from 0.
    if children != [*range(-leaves, 0), *range(1, leaves - 1)] or not below:
        raise ArtifactError(f"tree {number} of a model is no tree")
    if not all(0 <= feature < features for feature in split):
        raise ArtifactError(f"tree {number} of a model splits on a feature that does not exist")
    # Bit 0: categorical. Bit 1: the default side. Bits 2 and 3: what counts as missing.
    if not all(0 <= value <= 10 and value % 2 == 0 for value in kind):
        raise ArtifactError(f"tree {number} of a model has a split of an unknown kind")


def _fields(text: str) -> dict[str, str]:
    """``name=value`` lines. Of a line without ``=``, LightGBM would make one with the next."""
    fields: dict[str, str] = {}
    for line in filter(None, text.split("\n")):
        name, equals, value = line.partition("=")
        if not equals:
            raise ArtifactError(f"a tree model's entry '{name[:40]}' has no value")
        if name in fields:
            raise ArtifactError(f"a tree model has the entry '{name[:40]}' twice")
        fields[name] = value
    return fields


def _integers(fields: dict[str, str], name: str, count: int, number: int) -> list[int]:
    values = _values(fields, name, number, _INTEGER)
    if len(values) != count:
        raise ArtifactError(f"tree {number} of a model has {len(values)} {name}, not {count}")
    return [int(value) for value in values]


def _numbers(fields: dict[str, str], name: str, count: int, number: int, *, optional: bool) -> None:
    if not fields.get(name) and (optional or count == 0):
        return
    values = [float(value) for value in _values(fields, name, number, _DECIMAL)]
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ArtifactError(f"tree {number} of a model has a {name} that is missing or not finite")


def _values(fields: dict[str, str], name: str, number: int, form: re.Pattern[str]) -> list[str]:
    values = fields.get(name, "").split(" ")
    if not all(map(form.fullmatch, values)):
        raise ArtifactError(f"tree {number} of a model has no proper {name}")
    return values
