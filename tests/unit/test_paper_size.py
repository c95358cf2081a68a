"""The paper's size runs on a real keyframe, and the dry run of its training measures what it says."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks.paper_size import AFTER, SPLIT, Plan, frugal, measure, repeat_keyframe, run_of, save_stand_in
from benchmarks.paper_size import write_stand_in as prepare
from sparseoccvla.anchors import read_anchors
from sparseoccvla.contracts import CAMERA_NAMES, Command, StageInfo
from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.encoder import Encoder
from sparseoccvla.errors import InputError
from sparseoccvla.language import load_tokenizer
from sparseoccvla.model import read_config, write_config
from sparseoccvla.planner import Planner
from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.manifest import read_manifest
from sparseoccvla.runtime.torch_backend import TorchEncoder, TorchPlanner, TorchReasoner
from tests.training_root import MODEL, SCENE, make_training_root

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_torch_thread", "own_precision")]
INFO = StageInfo("", "", "", "", False, "", "torch", "")


@pytest.fixture(scope="module")
def own_precision() -> Iterator[None]:
    """accelerate keeps the first precision of a process for good; other tests train with another one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.real_data
def test_the_papers_size_drives_on_the_real_keyframe(real_data: Path, tmp_path: Path) -> None:
    """Through the backends that drive; of Vicuna's sizes only depth and vocabulary are smaller."""
    manifest = read_manifest("nuscenes_r50_vicuna7b")
    sizes = read_config(manifest.file("config.json"))
    language = replace(
        sizes.reasoner.language, path=str(tmp_path / "words"), layers=1, vocabulary=512, dtype="bfloat16"
    )
    save_stand_in(language, [prompt("vicuna", [Turn(PLANNING_QUESTION)])] * 2)
    [label] = (real_data / "occ3d").glob("*/labels.npz")
    repeat_keyframe(Tables(real_data / "real_frame"), label, tmp_path / "root", 1)
    height, width = sizes.encoder.image_size_px
    config = CacheConfig(height_px=height, width_px=width)
    cache = open_cache(Tables(tmp_path / "root"), SPLIT, config, tmp_path / "cache")
    [inputs] = cache.history(0)
    assert inputs is not None
    assert inputs.images_rgb.shape == (6, 256, 704, 3)
    torch.manual_seed(0)
    encoder = TorchEncoder(Encoder(sizes.encoder).eval(), INFO, half=True)
    reasoner = TorchReasoner(
        Reasoner(replace(sizes.reasoner, language=language)).eval(),
        load_tokenizer(language, None), INFO, sizes.encoder.voxel_rule, half=True,
    )  # fmt: skip
    anchors_m = read_anchors(manifest.file("anchors.json"))
    planner = TorchPlanner(Planner(sizes.planner).eval(), anchors_m, INFO, 0, half=True)

    queries = encoder.decode([encoder.extract(inputs)] * sizes.encoder.frames).queries
    assert queries.features.shape == (600, 256)
    assert queries.points_base_m.shape == (600, 128, 3)
    dark = encoder.extract(replace(inputs, images_rgb=np.zeros_like(inputs.images_rgb)))
    unseen = encoder.decode([dark] * sizes.encoder.frames).queries
    assert np.abs(queries.features - unseen.features).max() > 0.01, "it looks at the pictures"
    said = reasoner.reason(queries)
    assert said.reasoning.token.shape == (4096,)
    assert len(said.forecast) == 3
    ego = cache.truth(0).ego
    plan = planner.plan(queries, ego, Command.STRAIGHT, said.reasoning, 0.0)
    silent = planner.plan(queries, ego, Command.STRAIGHT, None, 0.0)
    for array in (
        queries.features,
        queries.points_base_m,
        said.reasoning.token,
        plan.candidates,
        plan.scores,
    ):
        assert np.isfinite(array).all()
    assert not np.allclose(plan.scores, silent.scores, atol=1e-4), "T_r reaches the plan"


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """The dry run's preparations at toy size."""
    source = make_training_root(tmp_path_factory.mktemp("data") / "source", language=False, pixels=False)
    folder = tmp_path_factory.mktemp("dry")
    write_config(source / "model.json", MODEL)
    made = Plan(folder, str(source / "model.json"), 1, 1, 1, 2, 0)
    [label] = sorted(source.glob("gts/*/*/labels.npz"))[:1]
    repeat_keyframe(Tables(source), label, made.root, MODEL.encoder.frames + AFTER)
    prepare(made)
    return made


def test_the_repeated_keyframe_has_a_whole_past_and_future(plan: Plan) -> None:
    cache = run_of(plan).split(SPLIT)
    now = MODEL.encoder.frames - 1
    history = cache.history(now, MODEL.encoder.frames)
    assert all(frame is not None for frame in history)
    newest, before = history[0], history[1]
    assert np.array_equal(newest.images_rgb, before.images_rgb)
    assert newest.t0_ns - before.t0_ns == 500_000_000
    truth = cache.truth(now)
    assert truth.scene == SCENE
    assert truth.future_valid.all()
    assert np.abs(truth.future).max() < 0.01, "nothing moves"
    assert all(cache.occupancy(index) is not None for index in range(len(cache)))
    assert len(cache.history(0, MODEL.encoder.frames)) == MODEL.encoder.frames
    assert cache.history(0, MODEL.encoder.frames)[1] is None, "the first has no past"
    assert newest.valid.sum() == len(CAMERA_NAMES)


def test_every_stage_takes_a_step_with_gradients_everywhere(plan: Plan) -> None:
    losses = {}
    for stage in ("encoder", "planning", "joint"):
        figures = measure(stage, plan)
        losses[stage] = figures["loss"]
        assert np.isfinite(figures["loss"])
        assert figures["parameters_with_gradient"] == figures["trainable_parameters"]
        assert 0 < figures["forward_s"] < figures["step_s"]
        assert 0.1 < figures["forward_peak_process_gib"] <= figures["step_peak_process_gib"] < 8
    assert losses["joint"] > losses["encoder"], "all terms of the others, and more"


def test_gradients_end_at_the_frames_they_are_for() -> None:
    torch.manual_seed(0)
    encoder = Encoder(MODEL.encoder)
    images = torch.rand(4, 6, 3, *MODEL.encoder.image_size_px) * 255  # two samples of two frames
    plain = encoder.extract(images)
    images.requires_grad_()
    levels = frugal(encoder, 1).extract(images)
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(levels, plain, strict=True))
    sum(level.square().sum() for level in levels).backward()
    assert images.grad is not None
    reached = images.grad.flatten(1).abs().sum(dim=1) > 0
    assert reached.tolist() == [True, False, True, False]


def test_without_a_label_it_says_what_is_missing(plan: Plan, tmp_path: Path) -> None:
    lacking = replace(plan, folder=tmp_path)
    repeat_keyframe(Tables(plan.root), tmp_path / "none.npz", lacking.root, MODEL.encoder.frames + AFTER)
    with pytest.raises(InputError, match="has no occupancy label"):
        measure("encoder", lacking)
