"""The networks stay exportable: standard ONNX operators, fixed shapes, the same numbers elsewhere."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.contracts import EncoderInput
from sparseoccvla.ego_state import EGO_NUMBERS
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.planner import Planner, PlannerConfig, PlannerInputs

torch.set_num_threads(1)
SIZE = (64, 128)
# What TensorRT does not take, or takes only with shapes that depend on data.
FORBIDDEN = {"NonZero", "ScatterND", "ScatterElements", "Loop", "If", "Unique", "Compress"}


class DecoderOnly(torch.nn.Module):
    """Tensors in, tensors out, as an engine has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Encoder(
            EncoderConfig(
                image_size_px=SIZE, frames=2,
                backbone=BackboneConfig("small", 8, (8, 16), (1, 1), 32),
                queries=12, width=32, heads=4, sampling_points=2, mixing_points=4, ffn_width=32,
                points=(2, 4), dropout=0.0, least_spread_m=(2.0, 0.5),
                free_class=True, auxiliary_width=8, seeded_queries=4, point_class_width=8,
            )
        )  # fmt: skip

    def forward(self, fine, coarse, image_from_base, base_from_image, valid):
        out = self.net.decode([fine, coarse], image_from_base, base_from_image, valid)
        return out.features, out.points_m[-1], out.logits[-1]

    def example(self) -> tuple[torch.Tensor, ...]:
        matrix = torch.from_numpy(EncoderInput.fake(size=SIZE).image_from_odom).float()
        image_from_base = matrix.expand(1, 2, -1, -1, -1).clone()
        with torch.no_grad():
            levels = self.net.extract(torch.rand(2, 6, 3, *SIZE) * 255)
        return (
            *(level[None] for level in levels),
            image_from_base,
            torch.linalg.inv(image_from_base[:, 0]),
            torch.ones(1, 2, 6),
        )


class PlannerOnly(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = Planner(
            PlannerConfig(
                query_width=16, token_width=24, width=32, heads=4, ffn_width=32,
                score_with_ego=True, look_along_path=True,
            )
        )  # fmt: skip

    def forward(self, features, points_m, ego, reasoning, has, age_s, anchors_m, noise):
        return self.net(PlannerInputs(features, points_m, ego, reasoning, has, age_s), anchors_m, noise)

    def example(self) -> tuple[torch.Tensor, ...]:
        anchors = torch.from_numpy(analytic_anchors()).flatten(0, 1)
        return (
            torch.randn(1, 10, 16), torch.randn(1, 10, 4, 3) * 10, torch.randn(1, EGO_NUMBERS),
            torch.randn(1, 24), torch.ones(1), torch.rand(1), anchors, torch.randn(1, 18, 6, 2),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DecoderOnly, PlannerOnly])
def test_the_exported_graph_gives_the_same_numbers_with_standard_operators(kind, tmp_path: Path) -> None:
    net = kind().eval()
    example = net.example()
    path = tmp_path / "net.onnx"
    torch.onnx.export(net, example, str(path), dynamo=True, opset_version=18, verbose=False)
    graph = onnx.load(path).graph
    assert not {node.op_type for node in graph.node} & FORBIDDEN
    assert {node.domain for node in graph.node} == {""}
    session = onnxruntime.InferenceSession(str(path))
    got = session.run(None, {i.name: a.numpy() for i, a in zip(session.get_inputs(), example, strict=True)})
    with torch.no_grad():
        wanted = net(*example)
    for one, other in zip(got, wanted, strict=True):
        assert np.abs(one - other.numpy()).max() < 1e-4
