"""A live run through DDS is made again from its recording, plan by plan."""

from __future__ import annotations

import rclpy
from conftest import Graph, wait_for
from rclpy.parameter import Parameter
from sparseoccvla_msgs.msg import PlanProposal

from sparseoccvla.config import ModelSource, SynchronizerConfig
from sparseoccvla.data.bag import BagWriter
from sparseoccvla.data.drive import write_drive
from sparseoccvla.data.nuscenes_drive import scene_drive
from sparseoccvla.data.tables import Tables
from sparseoccvla.evaluation.bag import BagEvaluation, evaluate_bag
from sparseoccvla.evaluation.offline import StackSettings
from sparseoccvla.evaluation.predictions import Part
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.metrics.results import read_results
from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.planner_node import PlannerNode
from sparseoccvla_ros.reasoner_node import ReasonerNode
from sparseoccvla_ros.recorder import Recorder
from sparseoccvla_ros.replay_node import ReplayNode
from tests.nuscenes_root import make_root

KEYFRAMES = 10
PHASES_S = [0.0, 0.008, -0.008, 0.025, 0.035, 0.015]


def test_live_plans_are_made_again_offline(graph: Graph, tmp_path):
    root = make_root(tmp_path / "root", keyframes=KEYFRAMES, sweeps=False)
    drive, live = tmp_path / "drive", tmp_path / "live"
    write_drive(scene_drive(Tables(root), "scene-0001").drive, drive)
    sim_time = {"use_sim_time": True, "backend": "fake"}
    nodes = [
        graph.add(EncoderNode, **sim_time, sync__phases_s=PHASES_S),
        graph.add(ReasonerNode, **sim_time),
        graph.add(PlannerNode, **sim_time),
    ]
    graph.wait_active(*nodes)
    recording = rclpy.create_node("recorder", parameter_overrides=[Parameter("use_sim_time", value=True)])
    recorder = Recorder(graph.add_plain(recording))
    proposals = graph.listen(PlanProposal, "plan/proposal")
    graph.add(ReplayNode, bag=str(drive), tail_s=60.0)
    wait_for(lambda: len(proposals) == KEYFRAMES, "a plan for every set", 60.0)
    wait_for(lambda: recorder.counts["/plan/proposal"] == KEYFRAMES, "every plan to be recorded")
    with BagWriter(live, {}) as writer:
        recorder.announce(writer)
        recorder.drain(writer)

    models = Models.load(ModelSource(backend="fake"), tuple(Part))
    settings = StackSettings(sync=SynchronizerConfig(phases_s=tuple(PHASES_S)))
    evaluation = BagEvaluation(models, settings, drive, tmp_path / "o", "sparseoccvla eval bag", live)
    follow = read_results(evaluate_bag(evaluation)).figures["follow"]
    assert follow["live_plans"] == follow["repeated"] == KEYFRAMES
    assert follow["equal_history"] == follow["equal_choice"] == KEYFRAMES
    # Odometry may reach a live node a moment after its stamp; the drive goes 10 m/s.
    assert follow["largest_difference_m"] < 0.5
    assert follow["within_0.01_m"] >= KEYFRAMES / 2
