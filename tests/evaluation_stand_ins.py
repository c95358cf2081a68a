"""A small labeled data set, and stages that recognize its pictures and know everything about them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from sparseoccvla.contracts import (
    NUM_ANCHORS,
    NUM_CLASSES,
    NUM_MODES,
    OccupancyPoints,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
)
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.geometry import transform
from sparseoccvla.runtime.base import EncoderOutput, FeatureSet, ReasonerOutput
from sparseoccvla.runtime.fake_backend import FakeEncoder, FakePlanner, FakeReasoner
from sparseoccvla.voxels import VoxelRule
from tests.nuscenes_root import make_root

KEYFRAMES = 12
EVENTS = (2, 3, 4)  # the future of each is known
SIZE = CacheConfig(pictures="files")  # at the stand-ins' size


def make_labeled_root(root: Path) -> Path:
    """One scene, train and val alike: a car that moves on, questions of two types, three event frames."""
    make_root(root, keyframes=KEYFRAMES, sweeps=False)
    folder = root / "v1.0-mini"
    (folder / "splits.json").write_text(json.dumps({"train": ["scene-0001"], "val": ["scene-0001"]}))
    marks = [
        {
            "token": f"sample{k}",
            "command": "LEFT",
            "command_source": "route",
            "events": [],
            "needs_sight": k in EVENTS,
        }
        for k in range(KEYFRAMES)
    ]
    (folder / "keyframes.json").write_text(json.dumps(marks))
    (folder / "events.json").write_text("[]")
    for k in range(KEYFRAMES):
        semantics = np.full((200, 200, 16), 17, np.uint8)
        semantics[:, 60:140, 2] = 11
        semantics[100 + 4 * k : 110 + 4 * k, 95:100, 3:7] = 4
        semantics[150:170, 20 + k : 24 + k, 2:12] = 15
        seen = np.zeros(semantics.shape, np.uint8)
        seen[80:] = 1
        label = root / "gts/scene-0001" / f"sample{k}" / "labels.npz"
        label.parent.mkdir(parents=True)
        np.savez_compressed(label, semantics=semantics, mask_lidar=seen, mask_camera=seen)
        held = k % 2 == 1
        side = {"question": "Which side?", "answer": ("left", "right")[k % 2], "type": "side"}
        near = {"question": "Is it near?", "answer": ("yes", "no")[k % 3 == 0], "type": "near"}
        for kind, content in {
            "desc": {"description": f"Keyframe number {k} shows a road and a car.", "action": "go"},
            "vqa": [side, near | ({"held_out": True} if held else {})],
        }.items():
            file = root / kind / "val" / f"sample{k}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(content))
    return root


def open_val(root: Path, folder: Path) -> SampleCache:
    return open_cache(Tables(root), "val", SIZE, folder)


class Seer(FakeEncoder):
    """Knows a keyframe by its front picture, and where everything is."""

    def __init__(self, cache: SampleCache) -> None:
        super().__init__()
        self.voxel_rule = VoxelRule(closing=False)
        self.extracted = 0
        self._cache = cache
        self._known = {_digest(cache.history(index)[0]): index for index in range(len(cache))}
        assert len(self._known) == len(cache)

    def extract(self, inputs):
        self.extracted += 1
        index = self._known[_digest(inputs)]
        return FeatureSet(inputs.t0_ns, index, inputs.image_from_odom, inputs.odom_from_base, inputs.valid)

    def decode(self, frames):
        newest = frames[0]
        index = newest.maps
        points = _points(self._cache, index, self._cache.truth(index).base_from_label)
        # Which keyframe was seen: reasoner and planner read it here.
        features = np.full((1, 4), index, np.float32)
        return EncoderOutput(
            OccupancyQueries.of(
                newest.t0_ns,
                features,
                np.zeros((1, 1, 3), np.float32),
                np.zeros((1, 1, NUM_CLASSES), np.float32),
            ),
            points,
        )


class Sage(FakeReasoner):
    """Knows what comes and what to say; queries tell which keyframe, those of a blind asker none."""

    def __init__(self, cache: SampleCache) -> None:
        super().__init__()
        self.voxel_rule = VoxelRule(closing=False)
        self._cache = cache

    def reason(self, queries):
        index = int(queries.features[0, 0])
        base_from_odom = np.linalg.inv(self._cache.odom_from_base(index))
        future = []
        for step in (2, 4, 6):
            later = min(index + step, len(self._cache) - 1)
            motion = base_from_odom @ self._cache.odom_from_base(later)
            future.append(_points(self._cache, later, motion @ self._cache.truth(later).base_from_label))
        return ReasonerOutput(Reasoning(queries.t0_ns, np.full(4, index, np.float32)), tuple(future), "")

    def answer(self, queries, question, max_tokens):
        index = int(queries.features[0, 0])
        said = self._cache.language(index)
        answers = {entry.question: entry.answer for entry in said.questions}
        yield answers.get(question, said.description)


class Driver(FakePlanner):
    """Drives as the driver did, if it knows what is around; without reasoning it takes another anchor."""

    def __init__(self, cache: SampleCache) -> None:
        super().__init__()
        self._cache = cache

    def plan(self, queries, ego, command, reasoning, reasoning_age_s):
        # Perception, command and reasoning each matter, so that each control shows.
        shift = 0.0 if reasoning is None else float(reasoning.token[0] - queries.features[0, 0])
        truth = self._cache.truth(int(queries.features[0, 0]))
        distance = np.linalg.norm(self.anchors_m[truth.command.anchor_row] - truth.future[:, :2], axis=-1)
        best = int(distance.mean(axis=-1).argmin())
        chosen = command.anchor_row * NUM_MODES + (best if reasoning is not None else (best + 1) % NUM_MODES)
        candidates = np.full((NUM_ANCHORS, 6, 3), 30.0, np.float32)
        if command is truth.command:
            candidates[chosen] = truth.future + np.array([shift, 0, 0])
        scores = np.zeros(NUM_ANCHORS, np.float32)
        scores[chosen] = 1
        return PlanProposal(queries.t0_ns, command, candidates, scores, chosen)


def perfect_models(cache: SampleCache) -> Models:
    return Models(Seer(cache), Sage(cache), Driver(cache))


def _digest(inputs):
    return hashlib.sha256(inputs.images_rgb[0].tobytes()).hexdigest()


def _points(cache, index, target_from_label):
    label = cache.occupancy(index)
    centers, classes, _ = label.points(np.eye(4))
    scores = np.zeros((len(classes), NUM_CLASSES), np.float32)
    scores[np.arange(len(classes)), classes] = 1
    return OccupancyPoints(transform(target_from_label, centers), scores)
