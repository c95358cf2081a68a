"""Independent random streams: one for each purpose, so that changing one thing moves nothing else."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, *purpose: str | int) -> np.random.Generator:
    """The generator of `purpose` in the world of `seed`, e.g. ``stream(3, "trees")``.

    Streams of different purposes are independent however much is drawn from either.
    """
    key = [seed, *(zlib.crc32(str(part).encode()) for part in purpose)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
