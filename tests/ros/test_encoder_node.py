"""The encoder node on real topics: what becomes of good, late, damaged and missing pictures."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from conftest import Graph, wait_for
from diagnostic_msgs.msg import DiagnosticArray
from nav_msgs.msg import OccupancyGrid
from sensor_msgs.msg import PointCloud2
from sparseoccvla_msgs.msg import OccupancyQueries, SparseOccupancy, StackInfo

from sparseoccvla.contracts import CAMERA_NAMES
from sparseoccvla_ros import convert, qos
from sparseoccvla_ros.encoder_node import EncoderNode
from sparseoccvla_ros.rig import Rig

SECOND = 1_000_000_000


class Bench:
    """An encoder node with the fake backend, a rig, and what comes out."""

    def __init__(self, graph: Graph, **parameters) -> None:
        self.graph = graph
        self._next_ns = 0
        self.queries: list[OccupancyQueries] = graph.listen(OccupancyQueries, "occupancy/queries")
        self.diagnostics: list[DiagnosticArray] = graph.listen(DiagnosticArray, "/diagnostics")
        self.node = graph.add(EncoderNode, backend="fake", camera__reliability="reliable", **parameters)
        graph.wait_active(self.node)
        self.rig = graph.add_plain(Rig())
        wait_for(lambda: self.rig.images["cam_back"].get_subscription_count(), "the rig to be matched")
        wait_for(lambda: self.rig.odom.get_subscription_count(), "odometry to be matched")
        wait_for(lambda: self.node.tf.can_transform("base_link", "cam_back", convert.Time()), "transforms")

    def t0s(self) -> list[int]:
        return [convert.time_ns(message.header.stamp) for message in self.queries]

    def wait_sets(self, count: int) -> None:
        wait_for(lambda: len(self.queries) >= count, f"{count} sets, got {len(self.queries)}")

    def wait_diagnosis(self, text: str) -> str:
        def said() -> str:
            found = [s.message for d in self.diagnostics for s in d.status if text in s.message]
            return found[-1] if found else ""

        return wait_for(said, f"a diagnosis that says {text!r}")

    def drive(self, sets: int, step_ns: int = SECOND // 4, paced: bool = True, **kwargs) -> list[int]:
        """Send sets, each after the one before is done: sets that come together displace one another."""
        # Never nearer to the set before than a real rig's.
        start = max(time.time_ns() - sets * step_ns, self._next_ns)
        self._next_ns = start + sets * step_ns
        t0s = [start + i * step_ns for i in range(sets)]
        for t0_ns in t0s:
            done = self.done()
            self.rig.send_set(t0_ns, **kwargs)
            time.sleep(0.03)
            deadline = time.monotonic() + 0.5
            while paced and self.done() == done and time.monotonic() < deadline:
                time.sleep(0.005)
        return t0s

    def done(self) -> int:
        return self.node.worker.done if self.node.worker else 0


def test_each_set_becomes_queries_stamped_with_the_front_camera(graph):
    bench = Bench(graph)
    sent = bench.drive(6)
    bench.wait_sets(6)
    assert bench.t0s() == sent
    last = bench.queries[-1]
    assert last.header.frame_id == "base_link"
    assert last.reference_camera == "cam_front"
    assert [camera.name for camera in last.cameras] == list(CAMERA_NAMES)
    # Two frames of history 0.5 s apart: four sets a second, so the second set before.
    assert convert.time_ns(last.history[0]) == sent[-3]
    assert [message.provenance.sequence for message in bench.queries] == [1, 2, 3, 4, 5, 6]


def test_a_stamp_offset_moves_t0_once(graph):
    """A driver that stamps 20 ms late is corrected by 20 ms, not by 40."""
    bench = Bench(graph, sync__stamp_offsets_s=[-0.02] * len(CAMERA_NAMES))
    sent = bench.drive(3)
    bench.wait_sets(3)
    assert bench.t0s() == [t0_ns - 20_000_000 for t0_ns in sent]


def test_a_missing_camera_is_masked_and_named_and_costs_no_more_than_the_deadline(graph):
    bench = Bench(graph, sync__deadline_s=0.1)
    bench.drive(2)
    sent = bench.drive(1, without={"cam_back"})
    bench.wait_sets(3)
    assert bench.t0s()[-1] == sent[0]
    states = {camera.name: camera.state for camera in bench.queries[-1].cameras}
    assert states.pop("cam_back") == 0
    assert set(states.values()) == {1}


def test_a_damaged_picture_is_named_and_the_others_are_used(graph):
    bench = Bench(graph)
    bench.drive(2)
    for _ in range(12):  # a fault must last to become a diagnosis
        bench.drive(1, damaged={"cam_back_left"})
        time.sleep(0.1)
    bench.wait_sets(3)
    states = {camera.name: camera.state for camera in bench.queries[-1].cameras}
    assert states["cam_back_left"] == 0
    assert states["cam_front"] == 1
    text = bench.wait_diagnosis("damaged JPEG")
    assert "picture of cam_back_left at" in text
    assert graph.state(bench.node) == "active"


def test_pictures_without_odometry_are_refused_with_the_reason(graph):
    bench = Bench(graph)
    bench.rig.send_odometry = lambda until_ns: None
    bench.drive(3)
    assert "is odometry published?" in bench.wait_diagnosis("no pose at all")
    assert bench.queries == []
    assert graph.state(bench.node) == "active"


def test_pictures_without_camera_info_are_refused_with_the_reason(graph):
    bench = Bench(graph)
    bench.rig.send_info = lambda t0_ns: None
    bench.drive(3)
    text = bench.wait_diagnosis("no readable picture")
    assert "publish its camera_info and the transform from its frame to base_link" in text


def test_a_picture_of_another_size_than_its_calibration_is_refused(graph):
    bench = Bench(graph)
    bench.rig.size_px = (200, 350)  # what camera_info says; the pictures stay 704x396
    bench.drive(3)
    assert "it is 704x396 px, its calibration (CameraInfo) says 350x200" in bench.wait_diagnosis("704x396")


def test_time_that_jumps_back_clears_memory_and_goes_on(graph):
    bench = Bench(graph)
    bench.drive(4)
    bench.wait_sets(4)
    past = time.time_ns() - 20 * SECOND
    bench.rig._odom_ns = 0
    for i in range(4):
        bench.rig.send_set(past + i * SECOND // 4)
        bench.wait_sets(5 + i)
    bench.wait_sets(8)
    cleared = [message.memory_cleared for message in bench.queries]
    assert cleared[:4] == [False] * 4
    assert cleared[4], "the first set after the jump says so"
    assert convert.time_ns(bench.queries[4].history[0]) == 0, "nothing of the time before is used"
    assert not any(cleared[5:])


def test_an_odometry_jump_clears_memory(graph):
    bench = Bench(graph)
    bench.drive(3)
    bench.wait_sets(3)
    bench.rig._origin_ns -= 100 * SECOND  # 800 m from where 8 m/s leads
    bench.drive(1, step_ns=1)
    bench.wait_sets(4)
    assert bench.queries[-1].memory_cleared


def test_stamps_of_another_clock_are_explained(graph):
    bench = Bench(graph)
    for i in range(3):
        bench.rig.send_set(1_500_000_000 * SECOND + i * SECOND // 4)
    assert "the bag is played without --clock" in bench.wait_diagnosis("behind this node's clock")


def test_views_are_published_only_for_who_subscribes(graph):
    bench = Bench(graph)
    bench.drive(2)
    bench.wait_sets(2)
    assert bench.node._voxels.get_subscription_count() == 0
    clouds = graph.listen(PointCloud2, "occupancy/points")
    voxels = graph.listen(SparseOccupancy, "occupancy/voxels")
    grids = graph.listen(OccupancyGrid, "occupancy/bev")
    wait_for(lambda: bench.node._bev.get_subscription_count(), "subscriptions to match")
    time.sleep(0.2)
    sent = bench.drive(1)
    for messages in (clouds, voxels, grids):
        wait_for(lambda messages=messages: messages, "a view")
        assert convert.time_ns(messages[-1].header.stamp) == sent[0]
    assert len(voxels[-1].labels) == clouds[-1].width > 100
    observed = convert.occupancy(voxels[-1]).observed
    assert 0.05 < observed.mean() < 0.95, "cameras see some of the grid, not all"


def test_who_comes_late_still_learns_what_runs(graph):
    Bench(graph)
    infos = graph.listen(StackInfo, "info", qos.LATCHED_ALL)
    info = wait_for(lambda: infos, "the latched info")[0]
    assert (info.stage, info.backend, info.trained) == ("encoder", "fake", False)
    assert len(info.class_names) == len(info.class_colors) // 3 == 17


def test_overload_drops_old_sets_and_counts_them(graph):
    bench = Bench(graph)
    slow = bench.node.stage.encoder.extract

    def extract(inputs):
        time.sleep(0.3)
        return slow(inputs)

    bench.node.stage.encoder.extract = extract
    sent = bench.drive(10, paced=False)
    wait_for(lambda: bench.t0s() and bench.t0s()[-1] == sent[-1], "the newest set")
    assert len(bench.queries) < 10
    assert bench.node.worker.dropped == 10 - len(bench.queries)
    assert bench.t0s() == sorted(bench.t0s())


def test_a_network_that_fails_is_an_error_and_the_next_set_is_tried(graph):
    bench = Bench(graph)
    good = bench.node.stage.encoder.extract

    def fail(inputs):
        raise RuntimeError("out of memory")

    bench.node.stage.encoder.extract = fail
    bench.drive(2)
    assert "encoder failed" in bench.wait_diagnosis("out of memory")
    assert bench.queries == []
    bench.node.stage.encoder.extract = good
    bench.drive(2)
    bench.wait_sets(2)


def test_nothing_is_decoded_or_computed_in_the_executor_thread(graph):
    bench = Bench(graph)
    threads = set()
    original = bench.node.stage.picture, bench.node.stage.encoder.extract

    def noting(function):
        def wrapped(*args):
            threads.add(threading.current_thread().name)
            return function(*args)

        return wrapped

    bench.node.stage.picture = noting(original[0])
    bench.node.stage.encoder.extract = noting(original[1])
    bench.drive(3)
    bench.wait_sets(3)
    assert threads
    assert all(name.startswith(("decode", "encoder")) for name in threads), threads


def test_a_deactivated_node_is_silent_and_comes_back(graph):
    bench = Bench(graph)
    bench.drive(1)
    bench.wait_sets(1)
    done = threading.Event()

    def cycle() -> None:
        bench.node.trigger_deactivate()
        done.set()

    # Transitions belong to the executor's thread, like the services that call them.
    timer = bench.node.create_timer(0.01, lambda: None if done.is_set() else cycle())
    assert done.wait(5)
    timer.cancel()
    bench.drive(2)
    time.sleep(0.3)
    assert len(bench.queries) == 1
    back = threading.Event()
    timer = bench.node.create_timer(
        0.01, lambda: None if back.is_set() else (bench.node.trigger_activate(), back.set())
    )
    assert back.wait(5)
    timer.cancel()
    wait_for(lambda: bench.rig.images["cam_back"].get_subscription_count(), "the rig to be matched again")
    bench.rig.tf_static.publish(
        bench.rig.tf_static.msg_type(transforms=[bench.rig._extrinsics(n) for n in CAMERA_NAMES])
    )
    time.sleep(0.3)
    bench.drive(2)
    bench.wait_sets(3)


@pytest.mark.parametrize("policy", ["partial", "blank", "hold", "drop"])
def test_the_policy_for_missing_cameras_is_the_one_asked_for(graph, policy):
    bench = Bench(graph, sync__policy=policy)
    bench.drive(2)
    bench.wait_sets(2)
    bench.drive(1, without={"cam_back"})
    time.sleep(0.3)  # its deadline passes; sets that are ready together displace one another
    bench.drive(1)
    if policy == "drop":
        time.sleep(0.5)
        assert len(bench.queries) == 3
        return
    bench.wait_sets(4)
    states = {camera.name: camera.state for camera in bench.queries[2].cameras}
    assert states["cam_back"] == {"partial": 0, "hold": 2, "blank": 3}[policy]
    assert np.isfinite(convert.queries(bench.queries[2]).features).all()
