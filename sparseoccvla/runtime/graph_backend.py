"""The three stages around graphs that somebody else runs: the same for ONNX Runtime and TensorRT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import (
    Command,
    ContractError,
    EgoState,
    EncoderInput,
    OccupancyQueries,
    PlanProposal,
    Reasoning,
    StageInfo,
    check_array,
)
from sparseoccvla.ego_state import ego_numbers
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.base import EncoderOutput, FeatureSet, ReasonerOutput
from sparseoccvla.runtime.exported import Exported, Graph, GraphSpec
from sparseoccvla.runtime.frames import decoder_frames
from sparseoccvla.runtime.proposal import build_proposal, noise_of
from sparseoccvla.voxels import drop_strays


class GraphEncoder:
    """Feature maps stay where the backbone left them; the decoder reads those of every frame."""

    def __init__(self, backbone: Graph, decoder: Graph, exported: Exported, info: StageInfo) -> None:
        self.info = info
        self.voxel_rule = exported.voxel_rule
        self._backbone = backbone
        self._decoder = decoder
        self._exported = exported
        self._seeded = "base_from_image" in names_of(exported.graphs["decoder"])

    def extract(self, inputs: EncoderInput) -> FeatureSet:
        wanted = self._exported.graphs["backbone"].inputs[0].shape
        check_array("EncoderInput.images_rgb", inputs.images_rgb, wanted, "u")
        maps = self._backbone.run_held({"images_rgb": inputs.images_rgb})
        return FeatureSet(inputs.t0_ns, maps, inputs.image_from_odom, inputs.odom_from_base, inputs.valid)

    def decode(self, frames: Sequence[FeatureSet | None]) -> EncoderOutput:
        read = decoder_frames(frames, self._exported.history_frames, self._exported.repeat_history)
        inputs: dict[str, Any] = {
            map_name(frame, level): one
            for frame, maps in enumerate(read.maps)
            for level, one in enumerate(maps)
        }
        inputs |= {"image_from_base": read.image_from_base, "valid": read.valid}
        if self._seeded:
            inputs["base_from_image"] = read.base_from_image
        out = self._decoder.run(inputs)
        assert frames[0] is not None
        return EncoderOutput(
            OccupancyQueries.of(frames[0].t0_ns, out["features"], out["points_m"], out["scores"]),
            drop_strays(out["points_m"], out["scores"], self.voxel_rule.max_spread_m),
        )


class GraphReasoner:
    """One prefill for token and forecast. It has no word head, so it does not answer."""

    def __init__(self, prefill: Graph, exported: Exported, info: StageInfo) -> None:
        self.info = info
        self.voxel_rule = exported.voxel_rule
        self._prefill = prefill
        self._exported = exported

    def reason(self, queries: OccupancyQueries) -> ReasonerOutput:
        out = self._prefill.run(query_inputs(queries, self._exported.graphs["reasoner"]))
        spread_m = self.voxel_rule.max_spread_m
        return ReasonerOutput(
            Reasoning(queries.t0_ns, out["reasoning"]),
            tuple(
                drop_strays(points_m, scores, spread_m)
                for points_m, scores in zip(out["forecast_points_m"], out["forecast_scores"], strict=True)
            ),
            self._exported.prompt,
        )

    def answer(self, queries: OccupancyQueries, question: str, max_tokens: int) -> Iterator[str]:
        raise InputError(
            f"backend {self.info.backend} does not answer questions: a process keeps one copy of the "
            "language model, and this one only prefills; set backend:=torch for the reasoner"
        )


class GraphPlanner:
    """All 18 candidates in one batch; noise from seed and stamp."""

    def __init__(
        self,
        plan: Graph,
        exported: Exported,
        info: StageInfo,
        anchors_m: NDArray[np.float32],
        seed: int,
    ) -> None:
        self.info = info
        self.anchors_m = anchors_m
        self._plan = plan
        self._spec = exported.graphs["planner"]
        self._token_shape = next(spec.shape for spec in self._spec.inputs if spec.name == "reasoning")
        self._seed = seed

    def plan(
        self,
        queries: OccupancyQueries,
        ego: EgoState,
        command: Command,
        reasoning: Reasoning | None,
        reasoning_age_s: float,
    ) -> PlanProposal:
        token = np.zeros(self._token_shape, np.float32) if reasoning is None else reasoning.token
        check_array("Reasoning.token", token, self._token_shape, "f")
        has = reasoning is not None
        out = self._plan.run(
            query_inputs(queries, self._spec)
            | {
                "ego": ego_numbers(ego),
                "reasoning": np.asarray(token, np.float32),
                "has_reasoning": np.array([has], np.float32),
                "reasoning_age_s": np.array([reasoning_age_s if has else 0.0], np.float32),
                "noise": noise_of(self._seed, queries.t0_ns),
            }
        )
        return build_proposal(queries, ego, command, reasoning, out["candidates_m"], out["scores"])


def map_name(frame: int, level: int) -> str:
    """Name of a decoder input: one level of one frame, newest frame 0."""
    return f"frame{frame}_level{level}"


def names_of(spec: GraphSpec) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in spec.inputs)


def query_inputs(queries: OccupancyQueries, spec: GraphSpec) -> dict[str, NDArray[Any]]:
    """What a graph takes of queries, after a check against its shapes.

    Raises:
        ContractError: queries of another number, width or number of points.
    """
    shapes = {tensor.name: tensor.shape for tensor in spec.inputs}
    check_array("OccupancyQueries.features", queries.features, shapes["features"], "f")
    check_array("OccupancyQueries.points_base_m", queries.points_base_m, shapes["points_m"], "f")
    inputs: dict[str, NDArray[Any]] = {
        "features": np.ascontiguousarray(queries.features, np.float32),
        "points_m": np.ascontiguousarray(queries.points_base_m, np.float32),
    }
    if "point_labels" in shapes:  # a forecaster that starts from the present
        inputs["point_labels"] = np.ascontiguousarray(queries.point_labels, np.int32)
        inputs["point_scores"] = np.ascontiguousarray(queries.point_scores, np.float32)
    return inputs


def check_inputs(spec: GraphSpec, inputs: Mapping[str, Any]) -> None:
    """Raise `ContractError` unless arrays have the names, dtypes and shapes of a graph.

    What is not an array was left by another graph, whose shapes were compared when it was made.
    """
    if set(inputs) != set(names_of(spec)):
        raise ContractError(f"{spec.name} got inputs {sorted(inputs)}, wanted {sorted(names_of(spec))}")
    for tensor in spec.inputs:
        value = inputs[tensor.name]
        if isinstance(value, np.ndarray) and (value.shape, value.dtype.name) != (tensor.shape, tensor.dtype):
            raise ContractError(
                f"{spec.name} got {tensor.name} of {value.dtype.name} {value.shape}, "
                f"wanted {tensor.dtype} {tensor.shape}"
            )
