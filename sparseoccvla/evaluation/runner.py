"""Asks a model about every keyframe of a split, once, through the same seam as the live stack.

A keyframe's features are extracted once and kept in the live stack's ring, so history costs no
backbone. Planner and reasoner see the same frame, as with `reasoning.policy: same_frame`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import Checked, MemoryConfig, ModelSource, setting
from sparseoccvla.contracts import (
    OCC3D_GRID,
    Command,
    ContractError,
    EncoderInput,
    OccupancyPoints,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
)
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.samples import Truth
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.predictions import (
    Answer,
    Part,
    Plan,
    Prediction,
    PredictionStore,
    Shuffle,
    SparseLabels,
)
from sparseoccvla.evaluation.questions import questions_about
from sparseoccvla.geometry import inverse, transform
from sparseoccvla.memory import FeatureMemory
from sparseoccvla.runtime.base import Encoder, EncoderOutput, FeatureSet, Planner, Reasoner
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.voxels import VoxelRule, voxelize

Progress = Callable[[int], None]  # keyframes done since the last call


@dataclass(frozen=True)
class RunConfig(Checked):
    """What a model is asked."""

    limit: int = setting(0, "Keyframes at most, from the beginning of the split; 0: all.", low=0)
    seed: int = setting(0, "Of what is drawn: commands and who is asked questions.", low=0)
    asked: int = setting(150, "Keyframes that are asked questions, drawn by the seed; 0: all.", low=0)
    max_tokens: int = setting(96, "Longest answer.", low=1, high=2048)


@dataclass(frozen=True)
class Models:
    """The stages that the asked parts need."""

    encoder: Encoder
    reasoner: Reasoner | None = None
    planner: Planner | None = None

    @classmethod
    def load(cls, source: ModelSource, parts: Sequence[Part]) -> Models:
        """Load what `parts` need; raises as `runtime.load`."""
        plans = Part.PLANNING in parts
        reasons = plans or Part.FORECAST in parts or Part.LANGUAGE in parts
        return cls(
            load_encoder(source),
            load_reasoner(source) if reasons else None,
            load_planner(source) if plans else None,
        )


class Runner:
    """Predictions of a model for the keyframes of a split.

    Args:
        models: stages; those that are there say what is predicted, with `parts`.
        cache: the split at the encoder's picture size.
        parts: what is asked.
        config: how much of it.
        shuffle: the control, if this run is one.
    """

    def __init__(
        self,
        models: Models,
        cache: SampleCache,
        parts: Sequence[Part],
        config: RunConfig,
        shuffle: Shuffle = Shuffle.NONE,
    ) -> None:
        self.models = models
        self.cache = cache
        self.parts = tuple(parts)
        self.config = config
        self.shuffle = shuffle
        self.count = min(config.limit or len(cache), len(cache))
        if shuffle is not Shuffle.NONE and self.count < 2:
            raise InputError(f"--shuffle {shuffle} needs at least 2 keyframes, there is {self.count}")
        self._truths = [cache.truth(index) for index in range(self.count)]

    @cached_property
    def scenes(self) -> dict[str, list[int]]:
        """Keyframes by scene, in the order of the split."""
        return by_scene(self._truths)

    @cached_property
    def asked(self) -> frozenset[int]:
        """Keyframes that are asked questions."""
        wanted = min(self.config.asked or self.count, self.count)
        rng = np.random.default_rng(self.config.seed)
        return frozenset(int(index) for index in rng.choice(self.count, wanted, replace=False))

    def describe(self) -> dict[str, Any]:
        """All that predictions depend on, for the store."""
        manifest = self.cache.manifest
        return {
            "model_id": self.models.encoder.info.model_id,
            "backend": self.models.encoder.info.backend,
            "parts": [str(part) for part in self.parts],
            "shuffle": str(self.shuffle),
            "data": {name: manifest.get(name) for name in ("version", "split", "tables")},
            **asdict(self.config),
        }

    def run(
        self,
        store: PredictionStore,
        progress: Progress = lambda _: None,
        only: Collection[str] | None = None,
    ) -> None:
        """Predict every scene, or of some, that the store does not have."""
        seen: set[str] = set()
        for scene, indices in self.scenes.items():
            if only is not None and scene not in only:
                pass  # its tokens still count as seen
            elif not store.has(scene):
                store.write(scene, self.predict(indices, seen, progress))
            else:
                progress(len(indices))
            seen |= {self._truths[index].token for index in indices}

    def predict(
        self, indices: Sequence[int], seen: set[str], progress: Progress = lambda _: None
    ) -> list[Prediction]:
        """Predictions of consecutive keyframes of one scene; tokens in `seen` are duplicates."""
        memory = self._new_memory()
        predictions = []
        met = set(seen)
        for index in indices:
            token = self._truths[index].token
            if token in met:
                predictions.append(Prediction(token, failure="a duplicate: the split has this token before"))
            else:
                predictions.append(self._predict(index, memory))
            met.add(token)
            progress(1)
        return predictions

    def _predict(self, index: int, memory: FeatureMemory[FeatureSet]) -> Prediction:
        truth = self._truths[index]
        try:
            seen = self._perceive(index, memory)
            seen.queries.validate()
            seen.points.validate()
            return self._reason_and_plan(index, truth, seen)
        except ContractError as error:
            return Prediction(truth.token, failure=str(error))

    def _reason_and_plan(self, index: int, truth: Truth, seen: EncoderOutput) -> Prediction:
        models, parts = self.models, self.parts
        occupancy = None
        if Part.OCCUPANCY in parts or Part.FORECAST in parts:
            occupancy = _labels(seen.points, models.encoder.voxel_rule, inverse(truth.base_from_label))
        result = Prediction(truth.token, occupancy)
        if models.reasoner is None:
            return result
        reasoned = None
        if Part.FORECAST in parts or Part.PLANNING in parts:
            reasoned = models.reasoner.reason(seen.queries)
            reasoned.reasoning.validate()
        if reasoned is not None and Part.FORECAST in parts:
            rule = models.reasoner.voxel_rule
            steps = tuple(_labels(points.validate(), rule) for points in reasoned.forecast)
            result = replace(result, forecast=steps)
        if reasoned is not None and models.planner is not None:
            token = reasoned.reasoning
            if self.shuffle is Shuffle.REASONING:
                token = replace(self._tokens[self._donor(index)], t0_ns=token.t0_ns)
            command = self._command(index)
            result = replace(
                result,
                plan=_plan(models.planner.plan(seen.queries, truth.ego, command, token, 0.0)),
                plan_without_reasoning=_plan(
                    models.planner.plan(seen.queries, truth.ego, command, None, 0.0)
                ),
            )
        if Part.LANGUAGE in parts and index in self.asked:
            result = replace(result, answers=self._answers(index, seen.queries))
        return result

    def _perceive(self, index: int, memory: FeatureMemory[FeatureSet]) -> EncoderOutput:
        """Encode a keyframe behind those that are in the memory."""
        inputs = self._inputs(index)
        memory.add(inputs.t0_ns, self.models.encoder.extract(inputs))
        return self.models.encoder.decode(memory.select(inputs.t0_ns))

    def _inputs(self, index: int) -> EncoderInput:
        [inputs] = self.cache.history(index)
        assert inputs is not None
        if self.shuffle is Shuffle.PICTURES:
            [other] = self.cache.history(self._donor(index))
            assert other is not None
            inputs = replace(inputs, images_rgb=other.images_rgb, valid=other.valid)
        return inputs

    def _donor(self, index: int) -> int:
        """Whose pictures or token a control takes: half the split away, so that history stays a drive."""
        return (index + self.count // 2) % self.count

    def _command(self, index: int) -> Command:
        command = self._truths[index].command
        if self.shuffle is not Shuffle.COMMAND:
            return command
        others = [other for other in Command if other not in (command, Command.UNKNOWN)]
        return others[int(np.random.default_rng([self.config.seed, index]).integers(len(others)))]

    @cached_property
    def _tokens(self) -> Mapping[int, Reasoning]:
        """The reasoning token of every keyframe: a pass of its own, for the control only."""
        assert self.models.reasoner is not None
        tokens = {}
        for indices in self.scenes.values():
            memory = self._new_memory()
            for index in indices:
                seen = self._perceive(index, memory)
                tokens[index] = self.models.reasoner.reason(seen.queries).reasoning
        return tokens

    def _answers(self, index: int, queries: OccupancyQueries) -> tuple[Answer, ...]:
        assert self.models.reasoner is not None
        return tuple(
            Answer(question, answer(self.models.reasoner, queries, question.text, self.config.max_tokens))
            for question in questions_about(self.cache.language(index))
        )

    def _new_memory(self) -> FeatureMemory[FeatureSet]:
        return FeatureMemory(MemoryConfig(), self.models.encoder.info.history_frames)


def by_scene(truths: Sequence[Truth]) -> dict[str, list[int]]:
    """Places of the keyframes of each scene."""
    scenes: dict[str, list[int]] = {}
    for index, truth in enumerate(truths):
        scenes.setdefault(truth.scene, []).append(index)
    return scenes


def answer(reasoner: Reasoner, queries: OccupancyQueries, question: str, max_tokens: int) -> str:
    """All of an answer."""
    return "".join(reasoner.answer(queries, question, max_tokens)).strip()


def _labels(
    points: OccupancyPoints, rule: VoxelRule, target_from_base: NDArray[np.floating] | None = None
) -> SparseLabels:
    """Voxels of points, moved exactly, before they become voxels, to another frame."""
    if target_from_base is not None:
        points = replace(points, points_base_m=transform(target_from_base, points.points_base_m))
    voxels = voxelize(points, rule)
    index = np.ravel_multi_index(tuple(voxels.indices.T.astype(np.int64)), OCC3D_GRID.shape)
    return SparseLabels(index.astype(np.uint32), voxels.labels)


def _plan(proposal: PlanProposal) -> Plan:
    proposal.validate()
    return Plan(
        proposal.candidates.astype(np.float32), proposal.scores.astype(np.float32), int(proposal.chosen)
    )
