"""What the nodes do, without ROS: an encoder, a reasoner and a planner stage driven by hand."""

from __future__ import annotations

from functools import partial

import cv2
import numpy as np
import pytest

from sparseoccvla.config import MemoryConfig, OdometryConfig, ReasoningConfig
from sparseoccvla.contracts import (
    CAMERA_NAMES,
    CameraCalibration,
    CameraSet,
    CameraSlot,
    CameraState,
    Command,
    DrivingCommand,
    EncodedImage,
    OccupancyQueries,
    PlanStatus,
    Reasoning,
)
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import PoseError, planar_matrix
from sparseoccvla.runtime.fake_backend import FakeEncoder, FakePlanner, FakeReasoner
from sparseoccvla.stages.encoder import EncoderStage
from sparseoccvla.stages.planner import Frame, PlannerStage
from sparseoccvla.stages.reasoner import ReasonerStage

SECOND = 1_000_000_000
T0_NS = 100 * SECOND
SPEED_MPS = 8.0


class NotingEncoder(FakeEncoder):
    """Remembers what it was given."""

    def extract(self, inputs):
        self.inputs = inputs
        return super().extract(inputs)


def make_stage(odometry: bool = True) -> EncoderStage:
    stage = EncoderStage(NotingEncoder(), CAMERA_NAMES, MemoryConfig(), OdometryConfig())
    for name in CAMERA_NAMES:
        stage.set_calibration(CameraCalibration.fake(name))
    for i in range(-100, 200) if odometry else ():
        stamp = T0_NS + i * SECOND // 50
        stage.add_odometry(stamp, planar_matrix(SPEED_MPS * i / 50, 0, 0), SPEED_MPS, 0.0)
    return stage


def jpeg(name: str, stamp_ns: int, value: int = 128) -> EncodedImage:
    data = cv2.imencode(".jpg", np.full((396, 704, 3), value, np.uint8))[1].tobytes()
    return EncodedImage(name, stamp_ns, data)


def make_set(stage: EncoderStage, t0_ns: int, damaged: str = "", **kwargs) -> CameraSet:
    slots = []
    for i, name in enumerate(CAMERA_NAMES):
        image = jpeg(name, t0_ns + i * SECOND // 100)
        if name == damaged:
            image = EncodedImage(name, image.stamp_ns, image.data[:50])
        slots.append(CameraSlot(name, CameraState.FRESH, image.stamp_ns, partial(stage.picture, image)))
    return CameraSet(t0_ns, "cam_front", tuple(slots), **kwargs)


def test_each_camera_is_placed_where_it_was_at_its_own_stamp():
    stage = make_stage()
    stage.process(make_set(stage, T0_NS))
    inputs = stage.encoder.inputs
    # A point 20 m ahead of where the last camera was when it fired lies on its optical axis.
    i = 4
    camera = CameraCalibration.fake(CAMERA_NAMES[i])
    odom_from_camera = planar_matrix(SPEED_MPS * i / 100, 0, 0) @ camera.base_from_camera
    point = odom_from_camera @ [0, 0, 20, 1]
    u, v, depth, _ = inputs.image_from_odom[i] @ point
    assert depth == pytest.approx(20)
    height, width = stage.encoder.info.image_size_px
    assert u / depth == pytest.approx(width / 2, abs=1)
    assert 0 < v / depth < height


def test_history_holds_the_set_half_a_second_before():
    stage = make_stage()
    for step in range(4):
        result = stage.process(make_set(stage, T0_NS + step * SECOND // 4))
    assert result.history_ns == (T0_NS + SECOND // 4,)


def test_a_damaged_picture_makes_its_camera_missing_and_says_so():
    stage = make_stage()
    result = stage.process(make_set(stage, T0_NS, damaged="cam_back"))
    assert [slot.state for slot in result.camera_set.slots].count(CameraState.MISSING) == 1
    assert not result.valid[CAMERA_NAMES.index("cam_back")]
    assert "picture of cam_back at" in result.warnings[0]


def test_without_odometry_a_set_is_refused():
    stage = make_stage(odometry=False)
    with pytest.raises(PoseError, match="is odometry published"):
        stage.process(make_set(stage, T0_NS))


@pytest.mark.parametrize("cause", ["reset", "calibration", "odometry", "back"])
def test_memory_is_cleared_when_the_past_no_longer_fits(cause):
    stage = make_stage()
    for step in range(3):
        stage.process(make_set(stage, T0_NS + step * SECOND // 4))
    t0_ns = T0_NS + 3 * SECOND // 4
    if cause == "calibration":
        stage.set_calibration(CameraCalibration.fake("cam_front", 800, 450))
        stage.set_calibration(CameraCalibration.fake("cam_front"))
    if cause == "odometry":
        stage.add_odometry(T0_NS + 5 * SECOND, planar_matrix(500, 0, 0), SPEED_MPS, 0.0)
        for i in range(50):
            stamp = T0_NS + 5 * SECOND + (i + 1) * SECOND // 50
            stage.add_odometry(stamp, planar_matrix(500 + SPEED_MPS * (i + 1) / 50, 0, 0), SPEED_MPS, 0.0)
        t0_ns = T0_NS + 11 * SECOND // 2
    if cause == "back":
        t0_ns = T0_NS - SECOND
    result = stage.process(make_set(stage, t0_ns, after_reset=cause == "reset"))
    assert result.memory_cleared
    assert result.history_ns == (0,)


def test_the_same_calibration_again_clears_nothing():
    stage = make_stage()
    assert not stage.set_calibration(CameraCalibration.fake("cam_front"))
    assert stage.process(make_set(stage, T0_NS)).memory_cleared == ""


def test_a_rig_of_another_size_than_the_model_is_refused():
    with pytest.raises(InputError, match=r"the rig has 1 cameras \(cam_front\), the model was made for 6"):
        EncoderStage(FakeEncoder(), ("cam_front",), MemoryConfig(), OdometryConfig())


def test_a_plan_is_a_function_of_its_job():
    stage = PlannerStage(FakePlanner(), ReasoningConfig(), OdometryConfig())
    for i in range(-150, 1):
        pose = planar_matrix(SPEED_MPS * i / 50, 0, 0)
        stage.add_odometry(T0_NS + i * SECOND // 50, pose, SPEED_MPS, 0.0)
    stage.set_command(DrivingCommand(T0_NS, Command.LEFT, "route"))
    stage.add_reasoning(Reasoning.fake(T0_NS - SECOND // 4), "0" * 16, T0_NS)
    job = stage.add_frame(Frame(OccupancyQueries.fake(T0_NS), T0_NS, "cam_front"), "fake-encoder", T0_NS)
    assert job is not None
    first, second = stage.process(job), stage.process(job)
    np.testing.assert_array_equal(first.candidates, second.candidates)
    assert first.command is Command.LEFT
    assert first.status == PlanStatus.OK
    assert first.reasoning_t0_ns == T0_NS - SECOND // 4
    assert first.speed_mps == pytest.approx(SPEED_MPS)


def test_reasoning_of_the_time_before_a_loop_is_forgotten():
    stage = PlannerStage(FakePlanner(), ReasoningConfig(), OdometryConfig())
    stage.add_frame(Frame(OccupancyQueries.fake(T0_NS), T0_NS, "cam_front"), "fake-encoder", T0_NS)
    early = T0_NS - 10 * SECOND
    stage.add_reasoning(Reasoning.fake(early), "0" * 16, T0_NS)
    job = stage.add_frame(Frame(OccupancyQueries.fake(early), T0_NS, "cam_front"), "fake-encoder", T0_NS)
    assert job is not None
    assert job.pairing.reasoning is None


def test_a_reasoner_keeps_to_its_rate_and_starts_afresh_after_a_jump():
    stage = ReasonerStage(FakeReasoner(), max_rate_hz=2.0)
    due = [stage.offer(OccupancyQueries.fake(T0_NS + i * SECOND // 4), "fake-encoder") for i in range(5)]
    assert due == [True, False, True, False, True]
    assert stage.offer(OccupancyQueries.fake(T0_NS - SECOND), "fake-encoder")
