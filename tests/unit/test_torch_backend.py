"""The tiny model through the seam, with random weights: what does not depend on training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import (
    Command,
    ContractError,
    EgoState,
    EncoderInput,
    OccupancyQueries,
    PlanStatus,
)
from sparseoccvla.geometry import planar_matrix
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.runtime.manifest import ModelError

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def source(untrained_tiny) -> ModelSource:
    return ModelSource(model=str(untrained_tiny))


@pytest.fixture(scope="module")
def encoder(source):
    return load_encoder(source)


@pytest.fixture(scope="module")
def reasoner(source):
    return load_reasoner(source)


@pytest.fixture(scope="module")
def planner(source):
    return load_planner(source)


@pytest.fixture(scope="module")
def queries(encoder) -> OccupancyQueries:
    frame = encoder.extract(EncoderInput.fake())
    return encoder.decode([frame, None]).queries


def test_the_chain_keeps_t0_and_every_contract(encoder, reasoner, planner) -> None:
    output = encoder.decode([encoder.extract(EncoderInput.fake(t0_ns=77)), None])
    output.queries.validate()
    output.points.validate()
    reasoned = reasoner.reason(output.queries)
    reasoned.reasoning.validate()
    for step in reasoned.forecast:
        step.validate()
    plan = planner.plan(output.queries, EgoState.fake(), Command.LEFT, reasoned.reasoning, 0.2)
    plan.validate()
    assert {output.queries.t0_ns, reasoned.reasoning.t0_ns, plan.t0_ns, plan.reasoning_t0_ns} == {77}


def test_every_stage_says_that_it_is_untrained(encoder, reasoner, planner) -> None:
    for stage in (encoder, reasoner, planner):
        assert not stage.info.trained
        assert "no trained weights: random ones of seed 0" in stage.info.backend_reason
        assert len(stage.info.model_id) == 16
    assert planner.info.requires_stage_id == encoder.info.stage_id == reasoner.info.requires_stage_id


def test_half_precision_is_asked_for_said_and_near(source, encoder, queries) -> None:
    half = load_encoder(replace(source, precision="bf16"))
    assert half.info.backend_reason.startswith(encoder.info.backend_reason.split(", fp32")[0] + ", bf16")
    inputs = EncoderInput.fake()
    maps, halved = (np.asarray(e.extract(inputs).maps[0].float().cpu()) for e in (encoder, half))
    difference = np.abs(maps - halved).mean() / np.abs(maps).mean()
    assert 1e-5 < difference < 0.05
    half.decode([half.extract(inputs), None]).queries.validate()
    planner = load_planner(replace(source, precision="bf16"))
    planner.plan(queries, EgoState.fake(), Command.LEFT, None, 0.0).validate()
    reasoner = load_reasoner(replace(source, precision="bf16"))
    reasoner.reason(queries).reasoning.validate()
    assert list(reasoner.answer(queries, "What is ahead?", 3))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_planner_says_so_and_plans_alike(source, planner, queries) -> None:
    compiled = load_planner(replace(source, compiled=True))
    assert ", compiled" in compiled.info.backend_reason
    assert ", compiled" not in planner.info.backend_reason
    one, other = (p.plan(queries, EgoState.fake(), Command.LEFT, None, 0.0) for p in (planner, compiled))
    assert one.chosen == other.chosen
    assert np.allclose(one.candidates, other.candidates, atol=1e-3)


def test_a_seed_decides_the_random_weights(source, encoder, queries) -> None:
    frame = EncoderInput.fake()
    for seed, same in ((0, True), (1, False)):
        other = load_encoder(replace(source, seed=seed))
        features = other.decode([other.extract(frame), None]).queries.features
        assert np.array_equal(features, queries.features) == same


def test_the_global_random_state_is_left_alone(source) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_planner(source)
    assert torch.equal(torch.rand(1), expected)


def test_a_masked_frame_is_not_read(encoder) -> None:
    newest = encoder.extract(EncoderInput.fake(seed=1))
    past = [encoder.extract(EncoderInput.fake(seed=s)) for s in (2, 3)]
    masked = [replace(p, valid=np.zeros(6, bool)) for p in past]
    features = [encoder.decode([newest, p]).queries.features for p in (*past, *masked, None)]
    assert not np.array_equal(features[0], features[1]), "a valid frame is read"
    assert np.array_equal(features[2], features[3])
    assert np.array_equal(features[2], features[4])


def test_a_masked_camera_is_not_read(encoder) -> None:
    inputs = EncoderInput.fake()
    valid = np.ones(6, bool)
    valid[2] = False
    other = inputs.images_rgb.copy()
    other[2] = 255 - other[2]
    one, two = (replace(inputs, images_rgb=i, valid=valid) for i in (inputs.images_rgb, other))
    assert np.array_equal(
        encoder.decode([encoder.extract(one), None]).queries.features,
        encoder.decode([encoder.extract(two), None]).queries.features,
    )


def test_only_the_motion_between_frames_matters_not_where_odom_began(encoder) -> None:
    def moved(inputs: EncoderInput, odom_from_odom: np.ndarray) -> EncoderInput:
        return replace(
            inputs,
            image_from_odom=inputs.image_from_odom @ np.linalg.inv(odom_from_odom),
            odom_from_base=odom_from_odom @ inputs.odom_from_base,
        )

    now, past = EncoderInput.fake(seed=1), EncoderInput.fake(seed=2)
    shift = planar_matrix(30.0, -12.0, 0.7)
    plain = encoder.decode([encoder.extract(now), encoder.extract(past)])
    shifted = encoder.decode([encoder.extract(moved(now, shift)), encoder.extract(moved(past, shift))])
    driven = encoder.decode([encoder.extract(moved(now, planar_matrix(4.0, 0, 0))), encoder.extract(past)])
    assert np.abs(plain.queries.features - shifted.queries.features).max() < 2e-3
    assert np.abs(plain.queries.features - driven.queries.features).max() > 1e-2


def test_equal_inputs_give_equal_plans_and_another_stamp_other_noise(planner, queries) -> None:
    def plan(of: OccupancyQueries) -> np.ndarray:
        return planner.plan(of, EgoState.fake(), Command.STRAIGHT, None, float("nan")).candidates

    assert np.array_equal(plan(queries), plan(queries))
    assert not np.array_equal(plan(queries), plan(replace(queries, t0_ns=queries.t0_ns + 1)))


def test_no_reasoning_is_the_null_token_whatever_the_age(planner, queries) -> None:
    plans = [
        planner.plan(queries, EgoState.fake(), Command.UNKNOWN, None, age).scores
        for age in (0.0, float("nan"))
    ]
    assert np.array_equal(*plans)
    plan = planner.plan(queries, EgoState.fake(), Command.UNKNOWN, None, 0.0)
    assert plan.status & PlanStatus.DEGRADED_NO_REASONING
    assert plan.status & PlanStatus.DEGRADED_NO_COMMAND


def test_reasoning_and_its_age_reach_the_scores(planner, reasoner, queries) -> None:
    token = reasoner.reason(queries).reasoning
    scores = [
        planner.plan(queries, EgoState.fake(), Command.LEFT, t, age).scores
        for t, age in ((token, 0.0), (token, 1.5), (None, 0.0))
    ]
    assert not np.array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


def test_an_answer_comes_in_pieces_and_is_the_same_twice(reasoner, queries) -> None:
    first = list(reasoner.answer(queries, "What is ahead?", 8))
    assert first == list(reasoner.answer(queries, "What is ahead?", 8))
    assert 1 <= len(first) <= 8


def test_wrong_picture_size_and_wrong_history_are_refused(encoder) -> None:
    with pytest.raises(
        ContractError, match=r"images_rgb has shape \(6, 64, 64, 3\), wanted \(6, 128, 352, 3\)"
    ):
        encoder.extract(EncoderInput.fake(size=(64, 64)))
    frame = encoder.extract(EncoderInput.fake())
    with pytest.raises(ContractError, match="wanted 2 with a FeatureSet first"):
        encoder.decode([None, frame])
    with pytest.raises(ContractError, match="wanted 2 with a FeatureSet first"):
        encoder.decode([frame])


def test_queries_of_another_width_are_refused(planner, reasoner) -> None:
    foreign = OccupancyQueries.fake(shape=(128, 8, 96))
    with pytest.raises(ContractError, match=r"features has shape \(128, 96\), wanted \(any, 128\)"):
        planner.plan(foreign, EgoState.fake(), Command.LEFT, None, 0.0)
    with pytest.raises(ContractError, match=r"features has shape \(128, 96\), wanted \(any, 128\)"):
        reasoner.reason(foreign)


def test_a_changed_configuration_is_refused(source, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(source.model, folder)
    config = folder / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(ModelError, match=r"config\.json has sha256 .* the file was changed"):
        load_encoder(replace(source, model=str(folder)))
