"""ONNX Runtime says what torch says, stage by stage, on noise and on a real keyframe."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import Command, ContractError, EgoState, EncoderInput, OccupancyQueries
from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.engines.export import export
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.exported import GRAPHS, read_export
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.runtime.manifest import ModelError
from tests.tiny_export import tiny_export

pytestmark = pytest.mark.slow
torch.set_num_threads(1)
# Largest difference, of the largest value: fp32 arithmetic in another order.
ENCODER, REASONER, PLANNER = 2e-4, 2e-4, 2e-4


@pytest.fixture(scope="module")
def exported():
    return tiny_export()[1]


@pytest.fixture(scope="module")
def source(exported) -> ModelSource:
    return replace(tiny_export()[0], backend="onnxruntime", engines=str(exported.folder))


@pytest.fixture(scope="module")
def torch_stages():
    source = tiny_export()[0]
    return load_encoder(source), load_reasoner(source), load_planner(source)


@pytest.fixture(scope="module")
def ort_stages(source):
    return load_encoder(source), load_reasoner(source), load_planner(source)


def error(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def run(stages, frames: list[EncoderInput | None]):
    """What three stages make of one moment."""
    encoder, reasoner, planner = stages
    encoded = encoder.decode([frame and encoder.extract(frame) for frame in frames])
    reasoned = reasoner.reason(encoded.queries)
    plan = planner.plan(encoded.queries, EgoState.fake(), Command.LEFT, reasoned.reasoning, 0.2)
    return encoded, reasoned, plan


def check_equal(torch_stages, ort_stages, frames) -> None:
    (encoded, reasoned, plan), (encoded_t, reasoned_t, plan_t) = (
        run(stages, frames) for stages in (ort_stages, torch_stages)
    )
    assert error(encoded.queries.features, encoded_t.queries.features) < ENCODER
    assert error(encoded.queries.points_base_m, encoded_t.queries.points_base_m) < ENCODER
    assert error(reasoned.reasoning.token, reasoned_t.reasoning.token) < REASONER
    assert error(plan.candidates, plan_t.candidates) < PLANNER
    assert error(plan.scores, plan_t.scores) < PLANNER
    assert plan.chosen == plan_t.chosen
    assert abs(len(encoded.points.points_base_m) - len(encoded_t.points.points_base_m)) < 10
    for step, step_t in zip(reasoned.forecast, reasoned_t.forecast, strict=True):
        assert abs(len(step.points_base_m) - len(step_t.points_base_m)) < 10


@pytest.mark.parametrize("history", ["whole", "masked", "camera"])
def test_every_stage_equals_torch_on_noise(torch_stages, ort_stages, history) -> None:
    now, past = EncoderInput.fake(seed=1), EncoderInput.fake(seed=2)
    if history == "camera":
        past = replace(past, valid=np.array([1, 1, 0, 1, 0, 1], bool))
    check_equal(torch_stages, ort_stages, [now, None if history == "masked" else past])


@pytest.mark.real_data
def test_every_stage_equals_torch_on_a_real_keyframe(torch_stages, ort_stages, real_data, tmp_path) -> None:
    height, width = torch_stages[0].info.image_size_px
    config = CacheConfig(height_px=height, width_px=width)
    samples = open_cache(Tables(real_data / "real_frame"), "mini_train", config, tmp_path / "cache")
    check_equal(torch_stages, ort_stages, [samples.history(0)[0], None])


def test_the_fixed_inputs_are_of_a_vehicle_that_some_anchor_fits(exported) -> None:
    assert exported.expected("planner")["scores"].max() > 0.01, "scores of 0 would not tell a broken scorer"


def test_the_comparison_sees_another_picture(torch_stages, ort_stages) -> None:
    one, other = (
        run(torch_stages, [EncoderInput.fake(seed=1), None]),
        run(ort_stages, [EncoderInput.fake(seed=5), None]),
    )
    assert error(other[0].queries.features, one[0].queries.features) > 10 * ENCODER


def test_what_a_stage_gave_is_not_overwritten_by_the_next_run(ort_stages) -> None:
    encoded, reasoned, plan = run(ort_stages, [EncoderInput.fake(seed=1), None])
    arrays = [encoded.queries.features, encoded.points.class_scores, reasoned.reasoning.token, plan.scores]
    before = [array.copy() for array in arrays]
    again = run(ort_stages, [EncoderInput.fake(seed=7), None])
    assert all(np.array_equal(*pair) for pair in zip(arrays, before, strict=True))
    assert not np.array_equal(again[0].queries.features, before[0])


def test_graphs_hold_only_standard_operators_and_fixed_shapes(exported) -> None:
    for name in GRAPHS:
        graph = onnx.load(exported.file(name)).graph
        assert {node.domain for node in graph.node} == {""}
        assert not {node.op_type for node in graph.node} & {"NonZero", "Loop", "If", "Unique", "Compress"}
        for value in (*graph.input, *graph.output):
            assert all(axis.dim_value > 0 for axis in value.type.tensor_type.shape.dim), value.name


def test_onnxruntime_needs_no_torch(source) -> None:
    program = (
        "import sys\n"
        "from sparseoccvla.config import ModelSource\n"
        "from sparseoccvla.runtime.load import load_planner\n"
        f"load_planner({source!r})\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_info_says_who_computes_and_that_nobody_answers(ort_stages) -> None:
    for stage in ort_stages:
        assert stage.info.backend == "onnxruntime"
        assert "onnxruntime 1." in stage.info.backend_reason
    encoder, reasoner, _ = ort_stages
    queries = run(ort_stages, [EncoderInput.fake(), None])[0].queries
    with pytest.raises(InputError, match=r"does not answer questions.*set backend:=torch"):
        reasoner.answer(queries, "What is ahead?", 8)
    shape = (*queries.points_base_m.shape[:2], 96)
    count = shape[0]
    with pytest.raises(ContractError, match=rf"features has shape \({count}, 96\), wanted \({count}, 128\)"):
        reasoner.reason(OccupancyQueries.fake(shape=shape))
    with pytest.raises(ContractError, match="wanted 2 with a FeatureSet first"):
        encoder.decode([None, None])


def test_an_export_of_another_model_or_seed_is_refused(source, untrained_tiny, tmp_path) -> None:
    model, folder = str(untrained_tiny), str(tmp_path / "untrained")
    export(model, Path(folder), graphs=("planner",))
    with pytest.raises(ModelError, match="random weights of seed 0, wanted those of seed 3; export again"):
        load_planner(replace(source, model=model, engines=folder, seed=3))
    with pytest.raises(ModelError, match=r"was exported from model \w+, nuscenes_r50_vicuna7b is \w+"):
        load_planner(replace(source, model="nuscenes_r50_vicuna7b"))
    with pytest.raises(ModelError, match=r"holds no export\.json; make it: sparseoccvla export"):
        load_planner(replace(source, engines=str(tmp_path)))


@pytest.mark.parametrize("fault", ["cut", "changed", "missing"])
def test_a_damaged_graph_is_refused_with_the_command_that_mends_it(source, tmp_path, fault) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(source.engines, folder)
    load_planner(replace(source, engines=str(folder)))  # as long as it is whole
    path = folder / "planner.onnx"
    content = path.read_bytes()
    match fault:
        case "cut":
            path.write_bytes(content[: len(content) // 2])
        case "changed":
            path.write_bytes(content[:-100] + bytes(100))
        case "missing":
            path.unlink()
    with pytest.raises(ModelError, match=r"planner\.onnx has sha256 .*sparseoccvla export --model"):
        load_planner(replace(source, engines=str(folder)))


def test_a_graph_that_says_something_else_is_refused(source, tmp_path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(source.engines, folder)
    exported = read_export(folder)
    expected = exported.expected("planner")
    np.savez(folder / "planner.npz", **{**expected, "scores": expected["scores"] + 100})
    with pytest.raises(ModelError, match="differs from torch on the fixed inputs, scores by 1 of its size"):
        load_planner(replace(source, engines=str(folder)))
