"""The world one, two and three seconds ahead, in base_link at t0, not conditioned on ego motion.

The language model's occupancy tokens are added to Q_L (residual fusion); one head, shared by all
steps, is applied again and again: each time the queries change a little, move as a whole, move each
of their points a little, and say the points' classes. A head that does nothing repeats the present.

`from_present` leaves each point what the encoder says it is, and moves those of movable classes only. The
paper's head has the query's feature only, which knows as much as the encoder's class head does. Where that
one reads the picture at each point, a forecast that says classes anew is worse than the present that stays,
and so is one that moves what can't (`docs/log.md`, 2026-11-27).

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
from sparseoccvla.contracts import FORECAST_HORIZONS_S, MOVABLE_CLASSES, NUM_CLASSES

_RULED_OUT = -9.0  # logit of the classes that the encoder did not call best


@dataclass(frozen=True)
class ForecasterConfig:
    """Sizes of the forecaster."""

    query_width: int = 256
    token_width: int = 4096
    point_width: int = 128
    free_class: bool = False
    from_present: bool = False  # classes are those that the encoder says now, and what can't move stays
    move_scale_m: float = 4.0  # meters in one step of one unit of the head
    point_scale_m: float = 0.5

    @property
    def classes(self) -> int:
        return NUM_CLASSES + self.free_class


class Present(NamedTuple):
    """The points that are forecast, and what the encoder says of them."""

    points_m: Tensor  # (B, Q, R, 3) base_link at t0
    labels: Tensor  # (B, Q, R) int32, best class
    scores: Tensor  # (B, Q, R) its score in [0, 1]

    @classmethod
    def of(cls, points_m: Tensor, scores: Tensor) -> Present:
        """From the scores (B, Q, R, 17) of all classes."""
        best = scores.detach().max(dim=-1)
        return cls(points_m, best.indices.int(), best.values)


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

    def forward(self, features: Tensor, present: Present, tokens: Tensor) -> tuple[ForecastStep, ...]:
        """A step for each of FORECAST_HORIZONS_S.

        Args:
            features: Q_L (B, Q, C).
            present: P_L, or some of its points.
            tokens: hidden states (B, Q, D) of the language model at the occupancy tokens.
        """
        state = features + self.from_token(tokens) + self.position(present.points_m)
        stay = self.head.present_logits(present) if self.config.from_present else None
        steps = []
        for _ in FORECAST_HORIZONS_S:
            state, points_m, logits = self.head(state, present)
            present = present._replace(points_m=points_m)
            steps.append(ForecastStep(points_m, logits if stay is None else stay))
        return tuple(steps)


class ForecastHead(nn.Module):
    """One second further."""

    can_move: Tensor  # (17,) 1 for movable classes

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
        self.out = nn.Linear(point, 3 if config.from_present else 3 + config.classes)
        nn.init.normal_(self.move.weight, std=1e-3)
        nn.init.zeros_(self.move.bias)
        self.from_label = nn.Embedding(NUM_CLASSES, point) if config.from_present else None
        can_move = torch.zeros(NUM_CLASSES)
        can_move[list(MOVABLE_CLASSES)] = 1.0
        self.register_buffer("can_move", can_move, persistent=False)
        if config.from_present:
            # At first each point stays where and what it is.
            nn.init.normal_(self.out.weight, std=1e-3)
            nn.init.zeros_(self.out.bias)

    def forward(self, state: Tensor, present: Present) -> tuple[Tensor, Tensor, Tensor | None]:
        """State (B, Q, C), points (B, Q, R, 3) and logits (B, Q, R, K) one second later.

        With `from_present` there are no logits: they stay those of `present_logits`.
        """
        points_m = present.points_m
        state = state + self.update(state)
        query = self.norm(state)
        center_m = points_m.mean(dim=2, keepdim=True)
        told = self.from_query(query)[:, :, None]  # (B, Q, 1, point)
        move = self.config.move_scale_m * self.move(query).float()[:, :, None]  # (B, Q, 1, 3)
        if self.from_label is None:
            out = self._point(points_m, center_m, told)
            return state, points_m + move + self.config.point_scale_m * out[..., :3], out[..., 3:]
        moves = self.can_move[present.labels.long()]  # (B, Q, R)
        if points_m.device.type == "cpu" and not torch.compiler.is_compiling():
            # A tenth of the points can move, and to leave out the others takes a shape that depends on them.
            batch, row, _ = at = moves.nonzero(as_tuple=True)
            out = self._point(
                points_m[at],
                center_m[batch, row, 0],
                told[batch, row, 0],
                present.labels[at],
                present.scores[at],
            )
            moved_m = points_m[at] + move[batch, row, 0] + self.config.point_scale_m * out
            return state, points_m.index_put(at, moved_m), None
        out = self._point(points_m, center_m, told, present.labels, present.scores)
        return state, points_m + moves[..., None] * (move + self.config.point_scale_m * out), None

    def _point(
        self,
        points_m: Tensor,
        center_m: Tensor,
        told: Tensor,
        labels: Tensor | None = None,
        scores: Tensor | None = None,
    ) -> Tensor:
        """What the head says of points (..., 3), centers of their queries, and what these are told."""
        point = self.from_place(torch.cat([points_m / 40.0, (points_m - center_m) / 4.0], dim=-1)) + told
        if self.from_label is not None and labels is not None and scores is not None:
            point = point + scores[..., None] * self.from_label(labels)
        out: Tensor = self.out(F.relu(point)).float()
        return out

    def present_logits(self, present: Present) -> Tensor:
        """Logits (B, Q, R, K) that give the present's class its score, and free the rest."""
        score = present.scores.float().clamp(1e-3, 1 - 1e-3)[..., None]
        every = torch.arange(self.config.classes, device=score.device)
        best, rest = score.log(), (1 - score).log()
        if not self.config.free_class:
            best = best - rest
        logits = torch.where(present.labels[..., None] == every, best, _RULED_OUT)
        return torch.where(every == NUM_CLASSES, rest, logits) if self.config.free_class else logits
