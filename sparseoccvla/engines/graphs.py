"""The stages as a runtime sees them: tensors in, tensors out, no batch axis, every shape fixed.

Temporal memory is explicit: the decoder takes the maps of every frame, the backbone gives those of one.

Dimension legend:
    N cameras    T frames    L levels    Q queries    R points per query    C query width
    K classes without free = 17    D reasoning token width    A candidates = 18    S steps = 6
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sparseoccvla.contracts import NUM_ANCHORS, NUM_CLASSES, NUM_STEPS
from sparseoccvla.ego_state import EGO_NUMBERS
from sparseoccvla.encoder import Encoder
from sparseoccvla.forecaster import Present
from sparseoccvla.planner import Planner, PlannerInputs
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.exported import TensorSpec
from sparseoccvla.runtime.graph_backend import map_name


class BackboneGraph(nn.Module):
    """Pictures (N, H, W, 3) as they are, 0..255, to L stacked maps (C, N * (H + 2), W)."""

    def __init__(self, net: Encoder) -> None:
        super().__init__()
        self.net = net
        config = net.config
        self.inputs = (TensorSpec("images_rgb", "uint8", (config.cameras, *config.image_size_px, 3)),)
        self.outputs = tuple(f"level{level}" for level in range(config.levels))

    def forward(self, images_rgb: Tensor) -> tuple[Tensor, ...]:
        # TensorRT takes bytes only as the input of a cast.
        levels = self.net.extract(images_rgb.float().permute(0, 3, 1, 2)[None])
        return tuple(level[0] for level in levels)


class DecoderGraph(nn.Module):
    """Maps of every frame and where their cameras were, to queries, points and class scores."""

    def __init__(self, net: Encoder) -> None:
        super().__init__()
        self.net = net
        config = net.config
        frames, cameras = config.frames, config.cameras
        height, width = config.image_size_px
        maps = [
            TensorSpec(
                map_name(frame, level),
                "float32",
                (config.width, cameras * (-(-height // stride) + 2), -(-width // stride)),
            )
            for frame in range(frames)
            for level, stride in enumerate(config.backbone.strides)
        ]
        matrices = [TensorSpec("image_from_base", "float32", (frames, cameras, 4, 4))]
        if config.seeded_queries:
            matrices.append(TensorSpec("base_from_image", "float32", (cameras, 4, 4)))
        self.inputs = (*maps, *matrices, TensorSpec("valid", "float32", (frames, cameras)))
        self.outputs = ("features", "points_m", "scores")

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.net.config
        count = config.frames * config.levels
        maps, (image_from_base, *inverse, valid) = tensors[:count], tensors[count:]
        levels = [torch.stack(maps[level :: config.levels])[None] for level in range(config.levels)]
        # Read only where queries are seeded.
        base_from_image = inverse[0] if inverse else image_from_base[0]
        decoded = self.net.decode(levels, image_from_base[None], base_from_image[None], valid[None])
        scores = self.net.scores(decoded.logits[-1])
        return decoded.features[0].float(), decoded.points_m[-1][0], scores[0]


class ReasonerGraph(nn.Module):
    """Queries to T_r and the forecast: connector, language model on embeddings, forecaster.

    The planning prompt never changes, so its word embeddings are a constant and the table of all words
    stays out of the graph.
    """

    text: Tensor

    def __init__(self, net: Reasoner, queries: int, points: int, prompt_ids: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("text", net.embed(prompt_ids).detach())
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("features", "float32", (queries, net.config.query_width)),
            TensorSpec("points_m", "float32", (queries, points, 3)),
        )
        if net.config.forecast_from_present:
            self.inputs += (
                TensorSpec("point_labels", "int32", (queries, points)),
                TensorSpec("point_scores", "float32", (queries, points)),
            )
        self.outputs = ("reasoning", "forecast_points_m", "forecast_scores")

    def forward(self, features: Tensor, points_m: Tensor, *present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features, points_m = features[None], points_m[None]
        prefill = self.net.prefill_embedded(features, points_m, self.text)
        # What the forecaster does not read is no input of the graph.
        labels, surely = present or (points_m.new_zeros(points_m.shape[1:3]),) * 2
        now = Present(points_m, labels[None], surely[None])
        steps = self.net.forecast(features, now, prefill.occupancy)
        free = self.net.config.forecast_free_class
        scores = [
            step.logits[0].softmax(dim=-1)[..., :NUM_CLASSES] if free else step.logits[0].sigmoid()
            for step in steps
        ]
        return prefill.reasoning[0], torch.stack([s.points_m[0] for s in steps]), torch.stack(scores)


class PlannerGraph(nn.Module):
    """Queries, ego state, T_r and noise to candidates (A, S, 2) and scores (A,); anchors are a constant."""

    anchors_m: Tensor

    def __init__(self, net: Planner, queries: int, points: int, anchors_m: NDArray[np.float32]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer(
            "anchors_m", torch.from_numpy(anchors_m.reshape(NUM_ANCHORS, NUM_STEPS, 2)), persistent=False
        )
        config = net.config
        shapes: dict[str, tuple[int, ...]] = {
            "features": (queries, config.query_width),
            "points_m": (queries, points, 3),
            "ego": (EGO_NUMBERS,),
            "reasoning": (config.token_width,),
            "has_reasoning": (1,),
            "reasoning_age_s": (1,),
            "noise": (NUM_ANCHORS, NUM_STEPS, 2),
        }
        self.inputs = tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items())
        self.outputs = ("candidates_m", "scores")

    def forward(
        self,
        features: Tensor,
        points_m: Tensor,
        ego: Tensor,
        reasoning: Tensor,
        has_reasoning: Tensor,
        reasoning_age_s: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor]:
        inputs = PlannerInputs(
            features[None], points_m[None], ego[None], reasoning[None], has_reasoning, reasoning_age_s
        )
        candidates_m, scores = self.net(inputs, self.anchors_m, noise[None])
        return candidates_m[0], scores[0]


StageGraph = BackboneGraph | DecoderGraph | ReasonerGraph | PlannerGraph
