"""Stage `planner`: scorer and decoder alone, behind encoder and reasoner as they are.

T_r of every keyframe is computed once, so a step costs a small share of one of stage `planning`, and every
keyframe of it is planned with its T_r, its late one, or none, as often as the vehicle will.

Dimension legend:
    B keyframes    D token width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparseoccvla.planner import Planner, PlannerInputs
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.driving import DrivingSampler, DrivingTruth, driving_weights, plan_terms
from sparseoccvla.training.driving_check import DrivingCheck, Minds, QueriesOfIndex
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term
from sparseoccvla.training.tokens import Queries, TokenCache

_BATCH = 16


@dataclass(frozen=True)
class PlannerBatch:
    """What plans depend on, and what is true."""

    inputs: PlannerInputs
    truth: DrivingTruth

    def to(self, device: torch.device) -> PlannerBatch:
        """The batch on a device."""
        return PlannerBatch(PlannerInputs(*(part.to(device) for part in self.inputs)), self.truth.to(device))


@torch.no_grad()
def reasoning_of(
    reasoner: Reasoner, caches: Sequence[TokenCache], planning: Tensor, precision: torch.dtype
) -> Tensor:
    """T_r (n, D) of every keyframe of some caches, one after another, as it is driven."""
    reasoner.eval()
    device = reasoner.reasoning_token.device
    found = []
    for cache in caches:
        for start in range(0, len(cache), _BATCH):
            places = range(start, min(start + _BATCH, len(cache)))
            queries = Queries.stack([cache(place) for place in places]).to(device)
            with torch.autocast(device.type, precision, precision != torch.float32):
                said = reasoner.prefill(queries.features, queries.points_m, planning.to(device))
            found.append(said.reasoning.float().cpu())
    return torch.cat(found)


class PlannerLoader:
    """Makes batches from what was computed before.

    Args:
        caches: queries of the split's keyframes and, where the sampler draws them, of its edited ones.
        reasoning: (n, D) of these, see `reasoning_of`.
        sampler: of the split, with `planner_draws`.
    """

    def __init__(self, caches: Sequence[TokenCache], reasoning: Tensor, sampler: DrivingSampler) -> None:
        self._caches, self._reasoning, self._sampler = caches, reasoning, sampler

    def batch(self, places: Sequence[tuple[int, int]]) -> PlannerBatch:
        """The batch of (position in the run, sample) pairs."""
        samples, truth = self._sampler.draw(places)
        queries = Queries.stack([self._queries(index) for index in samples[: len(places)]])
        lenders = torch.tensor(samples)[truth.reasoning_of]
        inputs = PlannerInputs(
            queries.features,
            queries.points_m,
            truth.ego,
            self._reasoning[lenders],
            truth.has_reasoning,
            truth.reasoning_age_s,
        )
        return PlannerBatch(inputs, truth)

    def _queries(self, index: int) -> Queries:
        first = len(self._caches[0])
        return self._caches[0](index) if index < first else self._caches[1](index - first)


def planner_draws(config: DrivingTraining) -> DrivingTraining:
    """What is drawn of a keyframe here: every one with its T_r, none with words or a future world."""
    return replace(config, spoken_share=1.0, questions=0, forecast_samples=0)


class PlannerTask(Task):
    """Loss terms of the planner.

    Args:
        reasoner: as it is.
        planner: to train.
        config: of what is learned.
        anchors_m: (A, S, 2).
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
        check: DrivingCheck,
        queries: QueriesOfIndex,
    ) -> None:
        super().__init__()
        self.planner = planner
        self.weights = driving_weights(config)
        self._config = config
        self.register_buffer("anchors_m", anchors_m, persistent=False)
        # In a tuple: what is not trained is no part of this module.
        self._minds, self._check, self._queries = (Minds(reasoner, planner),), check, queries

    def forward(self, batch: PlannerBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        return plan_terms(self.planner, batch.inputs, batch.truth, self.anchors_m, self._config)

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return self._check(self._minds[0], self._queries)
