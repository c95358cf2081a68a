"""The world one, two and three seconds ahead, in base_link at t0, not conditioned on ego motion.

The language model's occupancy tokens are added to Q_L (residual fusion); one head, shared by all
steps, is applied again and again: each time the queries change a little, move as a whole, move each
of their points a little, and say the points' classes. A head that does nothing repeats the present.

Dimension legend:
    B batch    Q queries    R points per query    C query width    D token width
    K classes (17, or 18 with free)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseoccvla.connector import PointEncoding
from sparseoccvla.contracts import FORECAST_HORIZONS_S, NUM_CLASSES


@dataclass(frozen=True)
class ForecasterConfig:
    """Sizes of the forecaster."""

    query_width: int = 256
    token_width: int = 4096
    point_width: int = 128
    free_class: bool = False
    move_scale_m: float = 4.0  # meters in one step of one unit of the head
    point_scale_m: float = 0.5

    @property
    def classes(self) -> int:
        return NUM_CLASSES + self.free_class


class ForecastStep(NamedTuple):
    """One horizon."""

    points_m: Tensor  # (B, Q, R, 3) base_link at t0
    logits: Tensor  # (B, Q, R, K)


class Forecaster(nn.Module):
    """Residual fusion, then one shared head a step."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        self.position = PointEncoding(config.query_width)
        self.from_token = nn.Linear(config.token_width, config.query_width)
        self.head = ForecastHead(config)

    def forward(self, features: Tensor, points_m: Tensor, tokens: Tensor) -> tuple[ForecastStep, ...]:
        """A step for each of FORECAST_HORIZONS_S.

        Args:
            features: Q_L (B, Q, C).
            points_m: P_L (B, Q, R, 3).
            tokens: hidden states (B, Q, D) of the language model at the occupancy tokens.
        """
        state = features + self.from_token(tokens) + self.position(points_m)
        steps = []
        for _ in FORECAST_HORIZONS_S:
            state, points_m, logits = self.head(state, points_m)
            steps.append(ForecastStep(points_m, logits))
        return tuple(steps)


class ForecastHead(nn.Module):
    """One second further."""

    def __init__(self, config: ForecasterConfig) -> None:
        super().__init__()
        self.config = config
        width, point = config.query_width, config.point_width
        self.update = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.norm = nn.LayerNorm(width)
        self.move = nn.Linear(width, 3)
        self.from_query = nn.Linear(width, point)
        self.from_place = nn.Linear(6, point, bias=False)
        self.out = nn.Linear(point, 3 + config.classes)
        nn.init.normal_(self.move.weight, std=1e-3)
        nn.init.zeros_(self.move.bias)

    def forward(self, state: Tensor, points_m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """State (B, Q, C), points (B, Q, R, 3) and logits (B, Q, R, K) one second later."""
        state = state + self.update(state)
        query = self.norm(state)
        away_m = points_m - points_m.mean(dim=2, keepdim=True)
        place = torch.cat([points_m / 40.0, away_m / 4.0], dim=-1)
        point = F.relu(self.from_place(place) + self.from_query(query)[:, :, None])  # (B, Q, R, point)
        offset, logits = self.out(point).float().split([3, self.config.classes], dim=-1)
        moved_m = self.config.move_scale_m * self.move(query).float()[:, :, None]
        return state, points_m + moved_m + self.config.point_scale_m * offset, logits
