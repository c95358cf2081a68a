"""What every accumulator shares: its state adds up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError


class UnscorableError(InputError):
    """One sample cannot be scored; the text says why. Callers list it, they never drop it silently."""


STATE = {"adds": True}  # metadata of a dataclass field that adds up when metrics are merged


def zeros(shape: int | tuple[int, ...], dtype: type = float) -> Callable[[], NDArray[Any]]:
    """A default factory for a state that starts at zero."""
    return lambda: np.zeros(shape, dtype)


@dataclass
class Additive:
    """A metric whose state is a sum over samples. Fields marked STATE add up, the others are settings."""

    def merge(self, other: Self, times: int = 1) -> None:
        """Add another metric's samples, `times` over (a scene drawn twice counts twice).

        Raises:
            ValueError: the other metric has other settings; their figures must not be mixed.
        """
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if item.metadata.get("adds"):
                setattr(self, item.name, mine + times * theirs)
            elif mine != theirs:
                raise ValueError(
                    f"{type(self).__name__}.{item.name} is {mine!r} here, {theirs!r} in the metric to merge"
                )

    def empty(self) -> Self:
        """A metric of the same settings without samples."""
        return type(self)(
            **{f.name: getattr(self, f.name) for f in fields(self) if not f.metadata.get("adds")}
        )
