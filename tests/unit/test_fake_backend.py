"""The fake backend keeps the seam's promises, so that nodes tested on it are tested."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import (
    NUM_MODES,
    Command,
    EgoState,
    EncoderInput,
    PlanStatus,
)
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.voxels import voxelize

SOURCE = ModelSource(backend="fake")


def test_the_chain_keeps_t0_and_every_contract() -> None:
    inputs = EncoderInput.fake(t0_ns=123)
    encoder = load_encoder(SOURCE)
    output = encoder.decode([encoder.extract(inputs), None])
    output.queries.validate()
    output.points.validate()
    reasoned = load_reasoner(SOURCE).reason(output.queries)
    reasoned.reasoning.validate()
    for step in reasoned.forecast:
        step.validate()
    plan = load_planner(SOURCE).plan(output.queries, EgoState.fake(), Command.LEFT, reasoned.reasoning, 0.1)
    plan.validate()
    assert {output.queries.t0_ns, reasoned.reasoning.t0_ns, plan.t0_ns, plan.reasoning_t0_ns} == {123}


def test_the_street_has_a_road_and_a_car() -> None:
    encoder = load_encoder(SOURCE)
    voxels = voxelize(encoder.decode([encoder.extract(EncoderInput.fake())]).points, encoder.voxel_rule)
    assert {4, 11, 13} <= set(voxels.labels.tolist())


def test_pictures_change_the_queries() -> None:
    encoder = load_encoder(SOURCE)
    inputs = EncoderInput.fake()
    dark = replace(inputs, images_rgb=inputs.images_rgb // 2)
    masked = replace(inputs, valid=np.zeros(6, bool))
    seen = [encoder.decode([encoder.extract(i)]).queries.features for i in (inputs, dark, masked, inputs)]
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0], seen[2])
    assert np.array_equal(seen[0], seen[3])


@pytest.mark.parametrize(("command", "sign"), [(Command.LEFT, 1), (Command.RIGHT, -1), (Command.STRAIGHT, 0)])
def test_plans_follow_speed_and_command(command: Command, sign: int) -> None:
    encoder, planner = load_encoder(SOURCE), load_planner(SOURCE)
    queries = encoder.decode([encoder.extract(EncoderInput.fake())]).queries
    plan = planner.plan(queries, EgoState.fake(speed_mps=8.0), command, None, float("nan"))
    assert np.sign(round(float(plan.trajectory[-1, 1]), 3)) == sign
    assert plan.trajectory[0, 0] == pytest.approx(4.0, abs=0.1)
    assert plan.chosen // NUM_MODES == command.anchor_row


def test_what_is_missing_is_said_in_the_status() -> None:
    encoder, planner = load_encoder(SOURCE), load_planner(SOURCE)
    queries = encoder.decode([encoder.extract(EncoderInput.fake())]).queries
    blind = replace(EgoState.fake(), motion_valid=False)
    plan = planner.plan(queries, blind, Command.UNKNOWN, None, float("nan"))
    assert plan.status == (
        PlanStatus.DEGRADED_NO_REASONING | PlanStatus.DEGRADED_NO_COMMAND | PlanStatus.DEGRADED_EGO_STATE
    )
    assert plan.chosen // NUM_MODES == Command.STRAIGHT.anchor_row
    assert plan.reasoning_t0_ns == 0


def test_it_says_what_it_is() -> None:
    for load in (load_encoder, load_reasoner, load_planner):
        info = load(SOURCE).info
        assert (info.backend, info.trained, info.model_id) == ("fake", False, "0" * 16)


def test_it_runs_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from sparseoccvla.config import ModelSource;"
        "from sparseoccvla.runtime.load import load_encoder, load_reasoner, load_planner;"
        "s = ModelSource(backend='fake'); load_encoder(s), load_reasoner(s), load_planner(s)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_answer_stops_when_it_is_closed() -> None:
    encoder, reasoner = load_encoder(SOURCE), load_reasoner(SOURCE)
    queries = encoder.decode([encoder.extract(EncoderInput.fake())]).queries
    assert len(list(reasoner.answer(queries, "what is ahead?", 3))) == 3


def test_a_set_through_all_stages_is_quick_beside_decoding_a_picture() -> None:
    encoder, planner = load_encoder(SOURCE), load_planner(SOURCE)
    inputs = EncoderInput.fake()

    def run() -> None:
        queries = encoder.decode([encoder.extract(inputs), None]).queries
        planner.plan(queries, EgoState.fake(), Command.STRAIGHT, None, 0.0)

    def best(work) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return min(times)

    # One 704x396 picture to float is the least that any real preprocessing does.
    picture = np.zeros((6, 396, 704, 3), np.uint8)
    assert best(run) < best(lambda: picture.astype(np.float32) / 255.0)
