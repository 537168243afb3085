"""Names for the array types that the packages exchange, and their form in files."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Floats32: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int64]
Ints16: TypeAlias = npt.NDArray[np.int16]
Bools: TypeAlias = npt.NDArray[np.bool_]


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """An array's bytes in C order: what msgspec writes of it."""

    dtype: str
    shape: tuple[int, ...]
    values: bytes

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> Packed:
        """Pack an array."""
        return cls(array.dtype.str, array.shape, array.tobytes())

    @classmethod
    def smallest(cls, integers: Ints) -> Packed:
        """Pack integers in the smallest type that holds them all."""
        low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
        kind = np.result_type(np.min_scalar_type(low), np.min_scalar_type(high))
        return cls.of(integers.astype(kind))

    def array(self) -> npt.NDArray[Any]:
        """The array, open to writing."""
        return np.frombuffer(self.values, self.dtype).reshape(self.shape).copy()
