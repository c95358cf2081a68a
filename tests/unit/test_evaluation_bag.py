"""A bag through the cores of the nodes: the same bytes every time, and a live run made again."""

import json

import numpy as np
import pytest

from sparseoccvla.config import ConfigError, ModelSource, ReasoningConfig, SynchronizerConfig
from sparseoccvla.contracts import CAMERA_NAMES, NUM_MODES, PlanProposal, Source
from sparseoccvla.data.bag import BagError, BagReader, BagWriter, RawMessage
from sparseoccvla.data.drive import write_drive
from sparseoccvla.data.messages import STREAM_QOS, typestore
from sparseoccvla.data.nuscenes_drive import scene_drive
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.bag import BagEvaluation, evaluate_bag
from sparseoccvla.evaluation.offline import OfflineStack, StackSettings, read_settings
from sparseoccvla.evaluation.predictions import Part
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.metrics.results import read_results
from tests.nuscenes_root import make_root

# As in config/vehicle/nuscenes.yaml, for the test root's cameras.
PHASES_S = (0.0, 0.008, -0.008, 0.025, 0.035, 0.015)
SETTINGS = StackSettings(sync=SynchronizerConfig(phases_s=PHASES_S))
KEYFRAMES = 10


@pytest.fixture(scope="module")
def models():
    return Models.load(ModelSource(backend="fake"), tuple(Part))


@pytest.fixture(scope="module")
def drive(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bag")
    root = make_root(folder / "root", keyframes=KEYFRAMES, sweeps=False)
    write_drive(scene_drive(Tables(root), "scene-0001").drive, folder / "drive")
    return folder / "drive"


def evaluate(models, drive, out, follow=None, settings=SETTINGS):
    return read_results(
        evaluate_bag(BagEvaluation(models, settings, drive, out, "sparseoccvla eval bag", follow))
    )


def test_a_bag_gives_the_same_bytes_twice(models, drive, tmp_path):
    evaluate(models, drive, tmp_path / "a")
    evaluate(models, drive, tmp_path / "b")
    plans = (tmp_path / "a/plans.jsonl").read_bytes()
    assert plans == (tmp_path / "b/plans.jsonl").read_bytes()
    assert (tmp_path / "a/bag.json").read_bytes() == (tmp_path / "b/bag.json").read_bytes()
    proposals = [row for row in map(json.loads, plans.splitlines()) if row["topic"] == "plan/proposal"]
    assert len(proposals) == KEYFRAMES
    # Another policy is another run: the bytes are those of what happened, not of the bag.
    off = StackSettings(sync=SETTINGS.sync, reasoning=ReasoningConfig(policy="off"))
    evaluate(models, drive, tmp_path / "c", settings=off)
    assert plans != (tmp_path / "c/plans.jsonl").read_bytes()


def test_every_set_is_planned_with_its_own_reasoning(models, drive):
    stack = OfflineStack(models, SETTINGS)
    published = list(stack.run(drive))
    plans = [p.content for p in published if isinstance(p.content, PlanProposal)]
    assert len(plans) == KEYFRAMES
    assert stack.refused == []
    assert all(plan.reasoning_t0_ns == plan.t0_ns for plan in plans)
    assert [plan.history_stamps_ns for plan in plans[1:]] == [(plan.t0_ns,) for plan in plans[:-1]]
    assert stack.command_sources == {"future_trajectory"}
    trajectories = [p.content for p in published if not isinstance(p.content, PlanProposal)]
    assert [t.t0_ns for t in trajectories if t.source is Source.MODEL] == [
        p.t0_ns
        for p in plans[1:]  # at the first nobody knows the motion yet
    ]
    # The guard's own timer brakes before the first proposal and after the last.
    assert {t.source for t in trajectories} == {Source.MODEL, Source.FALLBACK}
    assert [p.stamp_ns for p in published] == sorted(p.stamp_ns for p in published)


def test_shadow_mode_compares_with_what_the_driver_did(models, drive, tmp_path):
    result = evaluate(models, drive, tmp_path / "o")
    rows = result.figures["rows"]
    # Three seconds after t0 are known of all but the last six keyframes.
    assert rows["proposal"]["n"] == rows["constant velocity"]["n"] == KEYFRAMES - 6
    assert result.skipped >= 6
    # The drive is an arc to the left at a constant speed; the stand-in turns when told to.
    assert 0 < rows["proposal"]["L2_avg"] < rows["constant velocity"]["L2_avg"]
    assert not any("col" in name for name in rows["proposal"])
    report = (tmp_path / "o/report.md").read_text()
    assert "Commands: future_trajectory." in report
    assert "Sent: model 9, fallback" in report


def test_a_live_run_is_made_again_from_its_recording(models, drive, tmp_path):
    live = record_live(models, drive, tmp_path / "live", token_delay_sets=1)
    result = evaluate(models, drive, tmp_path / "o", follow=live)
    assert result.figures["follow"] == {
        "live_plans": KEYFRAMES,
        "repeated": KEYFRAMES,
        "equal_history": KEYFRAMES,
        "equal_choice": KEYFRAMES,
        "within_0.01_m": KEYFRAMES,
        "median_difference_m": pytest.approx(0, abs=1e-5),
        "largest_difference_m": pytest.approx(0, abs=1e-5),
    }
    assert f"live plans {KEYFRAMES}, repeated {KEYFRAMES}" in (tmp_path / "o/report.md").read_text()
    again = [json.loads(line) for line in (tmp_path / "o/plans.jsonl").read_text().splitlines()]
    assert [row["reasoning_t0_ns"] for row in again[1:]] == [row["t0_ns"] for row in again[:-1]]
    assert again[0]["reasoning_t0_ns"] == 0


def test_a_plan_that_was_not_made_of_this_bag_shows(models, drive, tmp_path):
    live = record_live(models, drive, tmp_path / "live", shift_m=3.0)
    follow = evaluate(models, drive, tmp_path / "o", follow=live).figures["follow"]
    assert follow["within_0.01_m"] == 0
    assert follow["largest_difference_m"] == pytest.approx(3.0, abs=1e-3)


def test_a_run_of_another_model_is_refused(models, drive, tmp_path):
    live = record_live(models, drive, tmp_path / "live", model_id="f" * 16)
    with pytest.raises(InputError, match=r"was recorded from model f{16}, this one is 0{16}"):
        evaluate(models, drive, tmp_path / "o", follow=live)
    with pytest.raises(BagError, match="has no /occupancy/queries, so it is no recording"):
        evaluate(models, drive, tmp_path / "p", follow=drive)


def test_a_foreign_folder_is_left_alone(models, drive, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o/thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds something that this command did not make"):
        evaluate(models, drive, tmp_path / "o")


def test_settings_come_from_the_vehicle_s_parameter_file(tmp_path):
    file = tmp_path / "vehicle.yaml"
    file.write_text(
        "encoder_node:\n  ros__parameters:\n    sync.phases_s: [0.0, 0.008, -0.008, 0.025, 0.035, 0.015]\n"
        "planner_node:\n  ros__parameters:\n    reasoning.max_age_s: 1\n    model: tiny\n"
    )
    settings = read_settings(file)
    assert settings.sync.phases_s == PHASES_S
    assert settings.reasoning == ReasoningConfig(policy="same_frame", max_age_s=1.0)
    file.write_text("encoder_node:\n  ros__parameters:\n    sync.deadline: 1\n")
    with pytest.raises(ConfigError, match="deadline"):
        read_settings(file)
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="no ROS parameter file"):
        read_settings(file)


def record_live(models, drive, out, token_delay_sets=0, shift_m=0.0, model_id="0" * 16):
    """What a live run over a drive would have recorded, if each plan had an older token."""
    stack = OfflineStack(models, SETTINGS)
    types = typestore().types

    def make(kind, **fields):
        return types[kind](**fields)

    def time(ns):
        return make("builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)

    def header(ns):
        return make("std_msgs/msg/Header", stamp=time(ns), frame_id="base_link")

    def origin(stage_id):
        return make(
            "sparseoccvla_msgs/msg/Provenance",
            sequence=1,
            model_id=model_id,
            stage_id=stage_id,
            execution_s=0.0,
            extras=[],
        )

    def tensor(name, array):
        return make(
            "sparseoccvla_msgs/msg/Tensor",
            name=name,
            dtype="float32",
            shape=np.array(array.shape, np.uint32),
            data=np.frombuffer(array.astype(np.float32).tobytes(), np.uint8),
        )

    encoded, published = [], []
    process = stack.encoder.process

    def watched(camera_set):
        encoded.append((camera_set, process(camera_set)))
        return encoded[-1][1]

    stack.encoder.process = watched
    published = [p for p in stack.run(drive) if isinstance(p.content, PlanProposal)]
    tokens = [models.reasoner.reason(result.queries).reasoning for _, result in encoded]
    writer = BagWriter(out, {})
    with writer as bag:
        bag.add_topic("/occupancy/queries", "sparseoccvla_msgs/msg/OccupancyQueries", STREAM_QOS)
        bag.add_topic("/plan/proposal", "sparseoccvla_msgs/msg/PlanProposal", STREAM_QOS)
        for number, ((camera_set, result), plan) in enumerate(zip(encoded, published, strict=True)):
            queries = make(
                "sparseoccvla_msgs/msg/OccupancyQueries",
                header=header(result.queries.t0_ns),
                provenance=origin("fake-encoder"),
                reference_camera=CAMERA_NAMES[0],
                cameras=[
                    make(
                        "sparseoccvla_msgs/msg/CameraStatus",
                        name=slot.name,
                        state=int(slot.state),
                        stamp=time(slot.stamp_ns),
                    )
                    for slot in camera_set.slots
                ],
                history=[time(ns) for ns in result.history_ns],
                memory_cleared=False,
                features=tensor("features", result.queries.features[:1]),
                points_m=tensor("points_m", result.queries.points_base_m[:1]),
                point_labels=tensor("point_labels", result.queries.point_labels[:1]),
                point_scores=tensor("point_scores", result.queries.point_scores[:1]),
            )
            write(bag, "/occupancy/queries", plan.stamp_ns, queries)
            source = number - token_delay_sets
            token = tokens[source] if source >= 0 else None
            age_s = 0.5 * token_delay_sets if token else 0.0
            made = models.planner.plan(
                result.queries,
                stack_ego(drive, plan.content.t0_ns),
                plan.content.command,
                token,
                age_s,
            )
            proposal = make(
                "sparseoccvla_msgs/msg/PlanProposal",
                header=header(made.t0_ns),
                provenance=origin("fake-planner"),
                requires_stage_id="fake-encoder",
                stamp_source=CAMERA_NAMES[0],
                command=int(made.command),
                status=int(made.status),
                candidates=[
                    make(
                        "sparseoccvla_msgs/msg/CandidateTrajectory",
                        command=1 + i // NUM_MODES,
                        mode=i % NUM_MODES,
                        score=float(score),
                        x=(poses[:, 0] + shift_m).astype(np.float32),
                        y=poses[:, 1].astype(np.float32),
                        yaw=poses[:, 2].astype(np.float32),
                    )
                    for i, (poses, score) in enumerate(zip(made.candidates, made.scores, strict=True))
                ],
                chosen=made.chosen,
                reasoning_t0=time(token.t0_ns if token else 0),
                forecast_t0=time(token.t0_ns if token else 0),
                history=[time(ns) for ns in result.history_ns],
                speed=made.speed_mps,
                yaw_rate=made.yaw_rate_radps,
                trained=False,
            )
            write(bag, "/plan/proposal", plan.stamp_ns, proposal)
    return out


def write(bag, topic, stamp_ns, message):
    kind = message.__msgtype__
    bag.write_raw(RawMessage(topic, stamp_ns, bytes(typestore().serialize_cdr(message, kind))))


def stack_ego(drive, t0_ns):
    """The ego state at t0 from the odometry of a bag, as the planner's stage builds it."""
    from sparseoccvla.config import OdometryConfig
    from sparseoccvla.evaluation.bag_messages import odometry_sample
    from sparseoccvla.odometry import OdometryBuffer

    buffer = OdometryBuffer(OdometryConfig())
    with BagReader(drive) as bag:
        for raw in bag.messages(["/odom"]):
            if raw.stamp_ns <= t0_ns:
                buffer.add(*odometry_sample(bag.decode(raw)))
    return buffer.ego_state(t0_ns)
