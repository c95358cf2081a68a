"""Occupancy queries to tokens of a language model: Q_L plus a 3-D position encoding, through an MLP.

Dimension legend:
    B batch    Q queries    R points per query    C query width    D token width    N pooled tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparseoccvla.contracts import OCC3D_GRID


@dataclass(frozen=True)
class ConnectorConfig:
    """From `query_width` to `token_width`."""

    query_width: int = 256
    token_width: int = 4096


class PointEncoding(nn.Module):
    """Where a query is: an MLP on the mean and the spread of its points.

    Mean and spread do not depend on how many points there are nor on their order, so that a stage
    behind fits any last layer of the encoder.
    """

    _INPUTS = 6
    middle_m: Tensor
    half_m: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(self._INPUTS, width), nn.ReLU(), nn.Linear(width, width))
        low, high = torch.tensor(OCC3D_GRID.min_m), torch.tensor(OCC3D_GRID.max_m)
        self.register_buffer("middle_m", ((low + high) / 2).float(), persistent=False)
        self.register_buffer("half_m", ((high - low) / 2).float(), persistent=False)

    def forward(self, points_m: Tensor) -> Tensor:
        """Encoding (B, Q, width) of points (B, Q, R, 3)."""
        mean = (points_m.mean(dim=2) - self.middle_m) / self.half_m
        spread = points_m.std(dim=2, correction=0) / 4.0
        encoding: Tensor = self.net(torch.cat([mean, spread], dim=-1))
        return encoding


class Connector(nn.Module):
    """Occupancy tokens T_o of a scene."""

    def __init__(self, config: ConnectorConfig) -> None:
        super().__init__()
        self.position = PointEncoding(config.query_width)
        self.norm = nn.LayerNorm(config.query_width)
        self.net = nn.Sequential(
            nn.Linear(config.query_width, config.token_width), nn.GELU(),
            nn.Linear(config.token_width, config.token_width),
        )  # fmt: skip

    def forward(self, features: Tensor, points_m: Tensor) -> Tensor:
        """Tokens (B, Q, D) of Q_L (B, Q, C) and P_L (B, Q, R, 3)."""
        tokens: Tensor = self.net(self.norm(features + self.position(points_m)))
        return tokens


class Pooling(nn.Module):
    """Occupancy tokens mixed linearly to fewer, which makes the prompt short, and the way back.

    One learned matrix serves both ways. Its rows start orthonormal, so that the way back then gives
    what the mix has kept.
    """

    def __init__(self, queries: int, tokens: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(tokens, queries))
        nn.init.orthogonal_(self.mix)

    def forward(self, occupancy: Tensor) -> Tensor:
        """Pooled tokens (B, N, D) of occupancy tokens (B, Q, D)."""
        return self.mix @ occupancy

    def spread(self, pooled: Tensor) -> Tensor:
        """A state (B, Q, D) for each query of the states (B, N, D) of the pooled tokens."""
        return self.mix.T @ pooled
