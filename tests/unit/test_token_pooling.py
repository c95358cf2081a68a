"""Occupancy tokens mixed to fewer for the language model, and its states given back to every query."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from sparseoccvla.connector import Pooling
from sparseoccvla.engines.graphs import ReasonerGraph
from sparseoccvla.errors import InputError
from sparseoccvla.footprint import footprint
from sparseoccvla.forecaster import Present
from sparseoccvla.language import LanguageConfig
from sparseoccvla.model import ModelConfig, read_config, write_config
from sparseoccvla.reasoner import Reasoner, ReasonerConfig
from sparseoccvla.runtime.exported import fixed_inputs

pytestmark = pytest.mark.usefixtures("one_torch_thread")
QUERIES, POINTS, POOLED, WIDTH = 12, 5, 3, 32
TOY = ReasonerConfig(
    query_width=16, pooled_tokens=POOLED, queries=QUERIES, prompt_style="plain", forecast_point_width=8,
    language=LanguageConfig(
        width=WIDTH, layers=2, heads=4, ffn_width=48, vocabulary=258, tied=True, dtype="float32", lora_rank=0
    ),
)  # fmt: skip
IDS = torch.tensor([5, 9, 33, 70])


def network(config: ReasonerConfig = TOY) -> Reasoner:
    torch.manual_seed(0)
    return Reasoner(config).eval()


def scene(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, QUERIES, 16, generator=generator),
        torch.randn(batch, QUERIES, POINTS, 3, generator=generator) * 15,
    )


def test_the_prompt_gets_shorter_and_every_query_still_has_a_state() -> None:
    features, points_m = scene()
    lengths = []
    for net in (network(), network(replace(TOY, pooled_tokens=0))):
        lengths.append(net.prefix(features, points_m).shape[1])
        prefill = net.prefill(features, points_m, IDS)
        assert prefill.reasoning.shape == (2, WIDTH)
        assert prefill.occupancy.shape == (2, QUERIES, WIDTH)
    assert lengths == [POOLED + 12, QUERIES + 12]
    assert network(replace(TOY, pooled_tokens=0)).pooling is None, "off, nothing is added to a model"


def test_the_way_back_gives_what_the_mix_has_kept() -> None:
    torch.manual_seed(0)
    pooling = Pooling(QUERIES, POOLED)
    kept = torch.randn(2, POOLED, WIDTH)
    assert torch.allclose(pooling(pooling.spread(kept)), kept, atol=1e-5)
    any_tokens = torch.randn(2, QUERIES, WIDTH)
    assert not torch.allclose(pooling.spread(pooling(any_tokens)), any_tokens, atol=0.1), (
        "less is kept than came"
    )


@pytest.mark.parametrize("order", ["encoder", "morton"])
def test_a_query_is_heard_and_answered_through_its_own_weights(order: str) -> None:
    net, (features, points_m) = network(replace(TOY, query_order=order)), scene(batch=1)
    assert net.pooling is not None
    with torch.no_grad():
        net.pooling.mix[:, 4] = 0
    prefill = net.prefill(features, points_m, IDS)
    silent = (prefill.occupancy == 0).all(dim=-1, keepdim=True)  # (1, Q, 1)
    assert silent.sum() == 1

    def reasoning(which: torch.Tensor) -> torch.Tensor:
        turned = torch.where(which, -features, features)  # a norm is blind to what is added to all numbers
        return net.prefill(turned, points_m, IDS).reasoning

    assert torch.allclose(reasoning(silent), prefill.reasoning, atol=1e-6)
    assert not torch.allclose(reasoning(~silent), prefill.reasoning, atol=1e-3)


def test_both_ways_are_learned() -> None:
    net, (features, points_m) = network().train(), scene()
    assert net.pooling is not None
    gradients = []
    for part in ("reasoning", "occupancy"):
        net.zero_grad()
        prefill = net.prefill(features, points_m, IDS)
        getattr(prefill, part).square().sum().backward()
        grad = net.pooling.mix.grad
        assert grad is not None
        assert (grad != 0).any(dim=0).all(), "of every query"
        gradients.append(grad.clone())
    assert not torch.allclose(*gradients)
    steps = net.forecast(
        features,
        Present.of(points_m, torch.rand(*points_m.shape[:3], 17)),
        net.prefill(features, points_m, IDS).occupancy,
    )
    net.zero_grad()
    sum(step.logits.square().sum() for step in steps).backward()
    assert all(p.grad is not None for p in net.connector.parameters())


def test_sizes_that_do_not_meet_are_refused_and_memory_counts_the_shorter_prompt(tmp_path: Path) -> None:
    config = ModelConfig(reasoner=ReasonerConfig(pooled_tokens=24, queries=600))
    write_config(tmp_path / "config.json", config)
    assert read_config(tmp_path / "config.json") == config
    wrong = replace(config, reasoner=replace(config.reasoner, queries=500))
    write_config(tmp_path / "config.json", wrong)
    with pytest.raises(InputError, match=r"500 reasoner.queries are pooled, the encoder has 600"):
        read_config(tmp_path / "config.json")

    def cache_bytes(of: ModelConfig) -> int:
        return next(part.size_bytes for part in footprint(of) if part.name.startswith("key-value"))

    longer = cache_bytes(ModelConfig())
    assert cache_bytes(config) * (600 + 12 + 512) == longer * (24 + 12 + 512)


@pytest.mark.slow
@pytest.mark.parametrize("from_present", [False, True])
def test_the_pooled_reasoner_exports(tmp_path: Path, from_present: bool) -> None:
    net = network(replace(TOY, forecast_from_present=from_present, forecast_free_class=from_present))
    graph = ReasonerGraph(net, QUERIES, POINTS, IDS).eval()
    example = fixed_inputs("reasoner", graph.inputs, (128, 352))
    assert ("point_labels" in example) == from_present
    path = tmp_path / "reasoner.onnx"
    tensors = tuple(torch.from_numpy(array) for array in example.values())
    torch.onnx.export(
        graph, tensors, str(path), input_names=list(example), dynamo=True, opset_version=18, verbose=False
    )
    got = onnxruntime.InferenceSession(str(path)).run(None, dict(example))
    with torch.no_grad():
        wanted = graph(*tensors)
        other = graph(-tensors[0], *tensors[1:])
    for name, one, right, wrong in zip(graph.outputs, got, wanted, other, strict=True):
        assert np.abs(one - right.numpy()).max() < 1e-4
        if name != "forecast_scores" or not from_present:  # else those of the present
            assert np.abs(one - wrong.numpy()).max() > 1e-3
