"""Stage `joint`: encoder, reasoner and planner together, so that plans and words reach the encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparseoccvla.forecaster import Present
from sparseoccvla.model import SparseOccVLA
from sparseoccvla.training.batches import SceneBatch, SceneLoader
from sparseoccvla.training.config import TrainingConfig
from sparseoccvla.training.driving import (
    DrivingSampler,
    DrivingTruth,
    driving_terms,
    driving_weights,
)
from sparseoccvla.training.driving_check import DrivingCheck, Minds
from sparseoccvla.training.encoder_stage import encode, encoder_terms, encoder_weights, some_columns
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term
from sparseoccvla.training.occupancy_check import OccupancyCheck
from sparseoccvla.training.tokens import QueriesOf


@dataclass(frozen=True)
class JointBatch:
    """Camera sets of F keyframes and what is true of them."""

    scenes: SceneBatch
    truth: DrivingTruth

    def to(self, device: torch.device) -> JointBatch:
        """The batch on a device."""
        return JointBatch(self.scenes.to(device), self.truth.to(device))


class JointLoader:
    """Makes batches of pictures with all truths.

    Args:
        scenes: makes camera sets.
        sampler: of the same split.
    """

    def __init__(self, scenes: SceneLoader, sampler: DrivingSampler) -> None:
        self._scenes, self._sampler = scenes, sampler

    def batch(self, places: Sequence[tuple[int, int]]) -> JointBatch:
        """The batch of (position in the run, sample) pairs."""
        samples, truth = self._sampler.draw(places)
        # An earlier keyframe that only lends its T_r takes the position of one it stands behind.
        positions = [places[i % len(places)][0] for i in range(len(samples))]
        return JointBatch(self._scenes.batch(list(zip(positions, samples, strict=True))), truth)


class JointTask(Task):
    """All loss terms.

    Args:
        model: to train.
        config: of the run.
        anchors_m: (A, S, 2).
        occupancy: validation of the encoder.
        driving: validation of the rest.
        queries: of validation keyframes by the encoder as it is.
    """

    anchors_m: torch.Tensor

    def __init__(
        self,
        model: SparseOccVLA,
        config: TrainingConfig,
        anchors_m: torch.Tensor,
        occupancy: OccupancyCheck,
        driving: DrivingCheck,
        queries: QueriesOf,
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        of_encoder = encoder_weights(config.encoder, len(model.config.encoder.points))
        names = ("points", "classes", "auxiliary")
        of_encoder = dict.fromkeys(names, 1.0) | of_encoder
        share = config.joint.encoder_weight
        self.weights = {name: share * weight for name, weight in of_encoder.items()} | driving_weights(
            config.planning.driving
        )
        self.guessing = {"text": math.log(model.reasoner.config.language.vocabulary)}
        self.register_buffer("anchors_m", anchors_m, persistent=False)
        self._occupancy, self._driving, self._queries = occupancy, driving, queries

    def forward(self, batch: JointBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        config, points = self.config, self.model.config.encoder.points[-1]
        columns = some_columns(points, config.encoder.last_layer_points, config.seed, step)
        decoded = encode(self.model.encoder, batch.scenes.inputs, columns)
        terms = encoder_terms(decoded, batch.scenes, config.encoder, columns)
        # Forecast the points whose class is learned, as the classes of others are not known.
        shown_m = decoded.points_m[-1] if columns is None else decoded.points_m[-1][:, :, columns]
        return terms | driving_terms(
            self.model.reasoner,
            self.model.planner,
            decoded.features,
            decoded.points_m[-1],
            Present.of(shown_m, self.model.encoder.scores(decoded.logits[-1])),
            batch.truth,
            config.planning.driving,
            self.anchors_m,
        )

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        figures = self._occupancy(self.model.encoder)
        return figures | self._driving(Minds(self.model.reasoner, self.model.planner), self._queries)
