"""Nearest neighbors without a full distance matrix: 77,000 x 39,000 numbers would be 12 GB.

On a CPU a KD-tree finds both directions in a tenth of a second; on a GPU distances are made in
chunks. No gradient passes through the choice.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

_CHUNK = 2048


class Neighbors:
    """Points (M, 3) that are asked many times, as the ground truth of a frame is; M is at least 1."""

    def __init__(self, points_m: Tensor) -> None:
        self.points_m = points_m

    @cached_property
    def tree(self) -> cKDTree:
        """The search tree, made when it is first wanted; on a CPU only."""
        # Built for a few thousand questions: half the time of the default, which balances the tree.
        return cKDTree(_array(self.points_m), balanced_tree=False, compact_nodes=False)

    def nearest(self, queries_m: Tensor) -> Tensor:
        """Index (n,) of the point nearest each query (n, 3)."""
        if self.points_m.device.type != "cpu":
            return nearest_in_chunks(queries_m, self.points_m)
        _, index = self.tree.query(_array(queries_m))
        return torch.from_numpy(index)


def nearest_in_chunks(queries_m: Tensor, points_m: Tensor, chunk: int = _CHUNK) -> Tensor:
    """Index (n,) of the point (M, 3) nearest each query (n, 3), `chunk` queries at a time."""
    points = points_m.detach().float()
    squares = points.square().sum(dim=1)
    # Without what is equal for all points of a query, and without a root: two passes over memory, not six.
    parts = queries_m.detach().float().split(chunk)
    return torch.cat([torch.addmm(squares, part, points.T, alpha=-2.0).argmin(dim=1) for part in parts])


def _array(points_m: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = points_m.detach().float().numpy()
    return array
