"""Stage `planning`: reasoner, forecaster and planner behind a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseoccvla.planner import Planner
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.driving import (
    DrivingSampler,
    DrivingTruth,
    driving_terms,
    driving_weights,
)
from sparseoccvla.training.driving_check import DrivingCheck, Minds, QueriesOfIndex
from sparseoccvla.training.encoder_stage import some_columns
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term
from sparseoccvla.training.tokens import Queries, TokenCache


@dataclass(frozen=True)
class TokenBatch:
    """Queries of F keyframes and what is true of them."""

    queries: Queries  # (F, ...)
    truth: DrivingTruth

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on a device."""
        return TokenBatch(self.queries.to(device), self.truth.to(device))


class TokenLoader:
    """Makes batches from queries that were computed before.

    Args:
        caches: of the training split and, where the sampler draws them, of its edited keyframes.
        sampler: of the same split.
        seed: of the run.
    """

    def __init__(self, caches: Sequence[TokenCache], sampler: DrivingSampler, seed: int) -> None:
        self._caches, self._sampler, self._seed = caches, sampler, seed

    def batch(self, places: Sequence[tuple[int, int]]) -> TokenBatch:
        """The batch of (position in the run, sample) pairs."""
        samples, truth = self._sampler.draw(places)
        rng = np.random.default_rng([self._seed, places[0][0], 5])
        return TokenBatch(Queries.stack([self._queries(index, rng) for index in samples]), truth)

    def _queries(self, index: int, rng: np.random.Generator) -> Queries:
        driven = self._caches[0]
        if index >= len(driven):
            return self._caches[1](index - len(driven))
        return driven(index, int(rng.integers(driven.variants)))


class PlanningTask(Task):
    """Loss terms of everything behind the encoder.

    Args:
        reasoner: to train.
        planner: to train.
        config: of what is learned.
        anchors_m: (A, S, 2).
        seed: of the run.
        check: validation.
        queries: of validation keyframes.
    """

    anchors_m: Tensor

    def __init__(
        self,
        reasoner: Reasoner,
        planner: Planner,
        config: DrivingTraining,
        anchors_m: Tensor,
        seed: int,
        check: DrivingCheck,
        queries: QueriesOfIndex,
    ) -> None:
        super().__init__()
        self.reasoner, self.planner = reasoner, planner
        self.config = config
        self.weights = driving_weights(config)
        self.pretrained_prefixes = ("reasoner.language.",) if reasoner.config.language.path else ()
        self.guessing = {"text": math.log(reasoner.config.language.vocabulary)}
        self.register_buffer("anchors_m", anchors_m, persistent=False)
        self._seed = seed
        self._check, self._queries = check, queries

    def forward(self, batch: TokenBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        queries = batch.queries
        columns = some_columns(queries.points_m.shape[2], self.config.forecast_columns, self._seed, step)
        return driving_terms(
            self.reasoner,
            self.planner,
            queries.features,
            queries.points_m,
            queries.present(columns),
            batch.truth,
            self.config,
            self.anchors_m,
        )

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return self._check(Minds(self.reasoner, self.planner), self._queries)
