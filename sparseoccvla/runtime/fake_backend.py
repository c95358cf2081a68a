"""A backend without a network: deterministic numpy, no torch, well under a millisecond a stage.

It stands in for the networks in tests and in latency figures, and says so: backend "fake",
trained False, a model_id of zeros. What it returns looks like driving (a road with curbs and walls,
trajectories that keep the vehicle's speed and bend with the command) and depends on its inputs, so
that a mix-up of frames or commands shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.contracts import (
    FORECAST_HORIZONS_S,
    NUM_ANCHORS,
    NUM_CLASSES,
    NUM_COMMANDS,
    NUM_MODES,
    NUM_STEPS,
    STEP_S,
    Command,
    EgoState,
    EncoderInput,
    OccupancyPoints,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
    StageInfo,
)
from sparseoccvla.runtime.base import EncoderOutput, FeatureSet, ReasonerOutput
from sparseoccvla.runtime.proposal import build_proposal
from sparseoccvla.voxels import VoxelRule

MODEL_ID = "0" * 16
IMAGE_SIZE_PX = (128, 352)
HISTORY_FRAMES = 2
QUERIES, POINTS, WIDTH, TOKEN_WIDTH = 128, 32, 96, 256
_PROMPT = "Assign a score to each trajectory anchor."
_CAR, _ROAD, _SIDEWALK, _MANMADE = 4, 11, 13, 15


def _info(stage: str, requires: str) -> StageInfo:
    return StageInfo(
        stage=stage,
        model_id=MODEL_ID,
        stage_id=f"fake-{stage}",
        requires_stage_id=requires,
        trained=False,
        trained_on="",
        backend="fake",
        backend_reason="asked for; there is no network behind these results",
        image_size_px=IMAGE_SIZE_PX,
        history_frames=HISTORY_FRAMES,
    )


def _street() -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Points (Q, R, 3) and labels (Q, R): a road along x, sidewalks, walls, and a car ahead."""
    x = np.linspace(-39.8, 39.8, 199)
    strips = [(y, -0.2, _ROAD) for y in np.arange(-5.0, 5.01, 0.8)]
    strips += [(side * y, -0.2, _SIDEWALK) for side in (-1, 1) for y in (6.2, 7.0)]
    strips += [(side * 8.2, z, _MANMADE) for side in (-1, 1) for z in (0.2, 1.4)]
    lines = [np.stack([x, np.full_like(x, y), np.full_like(x, z)], axis=1) for y, z, _ in strips]
    labels = np.repeat([label for *_, label in strips], len(x))
    car = np.mgrid[18.0:22.4:0.4, -0.8:0.81:0.4, 0.2:1.41:0.4].reshape(3, -1).T
    points = np.concatenate([car, *lines])[: QUERIES * POINTS]
    labels = np.concatenate([np.full(len(car), _CAR), labels])[: QUERIES * POINTS]
    # The rest of the budget repeats the first points, which changes no voxel.
    points = np.resize(points, (QUERIES * POINTS, 3))
    labels = np.resize(labels, QUERIES * POINTS)
    return points.reshape(QUERIES, POINTS, 3).astype(np.float32), labels.astype(np.uint8)


class FakeEncoder:
    """The same street every time; features also carry how bright the pictures are."""

    def __init__(self) -> None:
        self.info = _info("encoder", "")
        self.voxel_rule = VoxelRule(closing=False)
        points, labels = _street()
        scores = np.zeros((QUERIES * POINTS, NUM_CLASSES), np.float32)
        scores[np.arange(len(scores)), labels.ravel()] = 0.9
        self._street_m = points
        self._points = OccupancyPoints(points.reshape(-1, 3), scores)
        self._scores = scores.reshape(QUERIES, POINTS, NUM_CLASSES)
        self._features = np.random.default_rng(0).standard_normal((QUERIES, WIDTH)).astype(np.float32)

    def extract(self, inputs: EncoderInput) -> FeatureSet:
        brightness = inputs.images_rgb[:, ::32, ::32].mean(axis=(1, 2, 3)) / 255 * inputs.valid
        return FeatureSet(
            inputs.t0_ns, brightness, inputs.image_from_odom, inputs.odom_from_base, inputs.valid
        )

    def decode(self, frames: Sequence[FeatureSet | None]) -> EncoderOutput:
        newest = frames[0]
        if newest is None:
            raise ValueError("decode() got None as its newest frame, wanted a FeatureSet first")
        features = self._features.copy()
        seen = [frame.maps.mean() if frame else 0.0 for frame in frames]
        features[: len(seen), 0] = seen
        return EncoderOutput(
            OccupancyQueries.of(newest.t0_ns, features, self._street_m, self._scores), self._points
        )


class FakeReasoner:
    """A token that is a function of the queries, the present repeated as forecast, a fixed answer."""

    def __init__(self) -> None:
        self.info = _info("reasoner", "fake-encoder")
        self.voxel_rule = VoxelRule(closing=False)
        scores = np.zeros((QUERIES * POINTS, NUM_CLASSES), np.float32)
        scores[np.arange(len(scores)), _street()[1].ravel()] = 0.9
        self._scores = scores

    def reason(self, queries: OccupancyQueries) -> ReasonerOutput:
        token = np.resize(queries.features.mean(axis=0), TOKEN_WIDTH).astype(np.float32)
        points = queries.points_base_m.reshape(-1, 3)
        present = OccupancyPoints(points, np.resize(self._scores, (len(points), NUM_CLASSES)))
        return ReasonerOutput(Reasoning(queries.t0_ns, token), (present,) * len(FORECAST_HORIZONS_S), _PROMPT)

    def answer(self, queries: OccupancyQueries, question: str, max_tokens: int) -> Iterator[str]:
        words = f"There is no language model behind this answer to: {question}".split()
        for word in words[:max_tokens]:
            yield word + " "


class FakePlanner:
    """Six speeds around the vehicle's own; LEFT and RIGHT bend as far as 2 m/s^2 allow."""

    _SPEED_SHARES = (0.0, 0.4, 0.7, 0.85, 1.0, 1.1)
    _SCORES = (0.05, 0.1, 0.2, 0.4, 0.9, 0.3)

    def __init__(self) -> None:
        self.info = _info("planner", "fake-encoder")
        self.anchors_m = analytic_anchors()

    def plan(
        self,
        queries: OccupancyQueries,
        ego: EgoState,
        command: Command,
        reasoning: Reasoning | None,
        reasoning_age_s: float,
    ) -> PlanProposal:
        t_s = STEP_S * np.arange(1, NUM_STEPS + 1)
        speed_mps = max(ego.speed_mps, 0.0)
        # Slower modes brake evenly over the horizon, as a vehicle can, and do not step in speed.
        target_mps = speed_mps * np.tile(self._SPEED_SHARES, NUM_COMMANDS)[:, None]
        length = speed_mps * t_s + (target_mps - speed_mps) * t_s**2 / (2 * t_s[-1])  # (A, S)
        bend = min(0.1, 2.0 / max(speed_mps, 1.0) ** 2)
        curvature = np.repeat([bend, -bend, 0.0], NUM_MODES)[:, None]
        turned = curvature * length
        chord = length * np.sinc(turned / (2 * np.pi))
        candidates_m = np.stack([chord * np.cos(turned / 2), chord * np.sin(turned / 2)], axis=-1)
        scores = np.resize(self._SCORES, NUM_ANCHORS).astype(np.float32)
        return build_proposal(queries, ego, command, reasoning, candidates_m, scores)
