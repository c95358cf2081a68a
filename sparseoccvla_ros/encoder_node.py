"""Cameras to queries: the wiring of `sparseoccvla.stages.encoder`.

Subscriptions only hand over: pictures are decoded by a small pool as they arrive, so that a set is
ready one decode after its last camera, and the network runs in a worker that takes the newest set.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from nav_msgs.msg import OccupancyGrid, Odometry
from rclpy.publisher import Publisher
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from sparseoccvla_msgs.msg import OccupancyQueries, Provenance, SparseOccupancy, StackInfo
from tf2_ros import Buffer, TransformException, TransformListener

from sparseoccvla.config import (
    CameraTopicsConfig,
    FramesConfig,
    MemoryConfig,
    ModelSource,
    OdometryConfig,
    SynchronizerConfig,
)
from sparseoccvla.contracts import NS_PER_S, CameraSet, EncodedImage
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import PoseError
from sparseoccvla.runtime.load import load_encoder
from sparseoccvla.stages.encoder import EncoderResult, EncoderStage
from sparseoccvla.synchronizer import Synchronizer
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.hand_off import Encoded, HandOff
from sparseoccvla_ros.health import Level, steady_clock
from sparseoccvla_ros.stage_node import StageNode, spin
from sparseoccvla_ros.worker import LatestWorker

_IMAGE_TYPES = {"compressed": CompressedImage, "raw": Image}
_IMAGE_TOPICS = {"compressed": "image_rect_compressed", "raw": "image_rect"}
_POLL_S = 0.02  # how often the synchronizer's deadlines are looked at
_OLD_S = 60.0  # camera stamps this far from the node clock mean another clock, not a slow driver


class EncoderNode(StageNode):
    """Synchronizes cameras, runs the encoder, publishes queries first and views for people after."""

    def __init__(self, queries_to: HandOff[Encoded] | None = None, **kwargs: Any) -> None:
        super().__init__("encoder_node", **kwargs)
        self._queries_to = queries_to
        self.stage: EncoderStage | None = None
        self.worker: LatestWorker[tuple[CameraSet, float]] | None = None
        self.views: LatestWorker[tuple[EncoderResult, Provenance]]
        self._sequence = 0

    def declare(self) -> None:
        self.source = params.declare(self, ModelSource)
        self.sync = params.declare(self, SynchronizerConfig, "sync")
        self.memory = params.declare(self, MemoryConfig, "memory")
        self.odometry = params.declare(self, OdometryConfig, "odometry")
        self.topics = params.declare(self, CameraTopicsConfig, "camera")
        self.frames = params.declare(self, FramesConfig, "frames")

    def configure(self) -> None:
        self.stage = EncoderStage(load_encoder(self.source), self.sync.cameras, self.memory, self.odometry)
        publisher = self.create_lifecycle_publisher
        self._queries = publisher(OccupancyQueries, "occupancy/queries", qos.RESULT)
        self._voxels = publisher(SparseOccupancy, "occupancy/voxels", qos.RESULT)
        self._cloud = publisher(PointCloud2, "occupancy/points", qos.RESULT)
        self._bev = publisher(OccupancyGrid, "occupancy/bev", qos.RESULT)
        self._info = publisher(StackInfo, "info", qos.LATCHED)

    def activate(self) -> None:
        assert self.stage is not None
        self.synchronizer = Synchronizer(self.sync)
        self.pool = ThreadPoolExecutor(self.topics.decode_threads, "decode")
        self.worker = self.make_worker("encoder", self._encode)
        self.worker.start()
        self.views = self.make_worker("views", self._publish_views, niceness=10)
        self.views.start()
        self._uncalibrated: dict[str, CameraInfo] = {}
        self.tf = Buffer()
        self._tf_listener = TransformListener(self.tf, self, spin_thread=False)
        camera_qos = qos.camera(self.topics.reliability)
        image_type = _IMAGE_TYPES[self.topics.transport]
        for camera in self.sync.cameras:
            topic = f"{camera}/{_IMAGE_TOPICS[self.topics.transport]}"
            self.subscribe(image_type, topic, partial(self._on_image, camera), camera_qos)
            on_info = partial(self._on_camera_info, camera)
            self.subscribe(CameraInfo, f"{camera}/camera_info", on_info, camera_qos)
        self.subscribe(Odometry, "odom", self._on_odometry, qos.ODOM)
        self._poll_timer = self.create_timer(_POLL_S, self._poll, clock=steady_clock())
        self._info.publish(convert.info_msg(self.stage.encoder.info, self.now_ns()))

    def deactivate(self) -> None:
        if self.worker is None:
            return
        self.destroy_timer(self._poll_timer)
        self._tf_listener.unregister()
        self.worker.stop()
        self.views.stop()
        self.pool.shutdown(cancel_futures=True)
        self.worker = None

    def cleanup(self) -> None:
        self.stage = None

    def facts(self) -> Mapping[str, object]:
        if self.stage is None or self.worker is None:
            return {}
        info = self.stage.encoder.info
        return {
            "backend": info.backend,
            "model_id": info.model_id,
            "trained": info.trained,
            "sets encoded": self.worker.done,
            "sets displaced by newer": self.worker.dropped,
            **self.stage.memory.counters.as_dict(),
            **self.synchronizer.counters.as_dict(),
            **self.stage.odometry.counters.as_dict(),
        }

    # Executor thread: hand over only ------------------------------------------------------------

    def _on_image(self, camera: str, message: CompressedImage | Image) -> None:
        received_s = time.monotonic()
        read = convert.compressed_image if isinstance(message, CompressedImage) else convert.raw_image
        image: EncodedImage = read(camera, message)
        now_ns = self.now_ns()
        self._check_clock(image.stamp_ns, now_ns)
        assert self.stage is not None
        # Before its calibration a picture can't be fitted: the first one waits for the worker.
        known = self.stage.calibrated(camera)
        picture = (
            self.pool.submit(self.stage.picture, image).result
            if known
            else partial(self.stage.picture, image)
        )
        self._hand_over(self.synchronizer.add(camera, image.stamp_ns, picture, now_ns), received_s)

    def _poll(self) -> None:
        for camera, message in list(self._uncalibrated.items()):
            self._on_camera_info(camera, message)  # its transform may have come
        self._hand_over(self.synchronizer.poll(self.now_ns()), time.monotonic())

    def _hand_over(self, camera_sets: list[CameraSet], received_s: float) -> None:
        assert self.worker is not None
        for camera_set in camera_sets:
            self.worker.submit((camera_set, received_s))

    def _on_camera_info(self, camera: str, message: CameraInfo) -> None:
        assert self.stage is not None
        frame = message.header.frame_id
        try:
            transform = self.tf.lookup_transform(convert.BASE_FRAME, frame, Time())
        except TransformException as error:
            self._uncalibrated[camera] = message
            self.health.raise_fault(
                f"{camera} extrinsics",
                Level.WARN,
                f"no transform from {frame or '(empty frame_id)'} to {convert.BASE_FRAME} for {camera}: "
                f"{error}; publish it on /tf_static",
            )
            return
        self._uncalibrated.pop(camera, None)
        matrix = convert.transform_matrix(transform.transform)
        if self.stage.set_calibration(convert.calibration(camera, message, matrix)):
            self.get_logger().info(f"{camera}: {message.width}x{message.height} px, frame {frame}")
        self.health.clear(f"{camera} extrinsics")

    def _on_odometry(self, message: Odometry) -> None:
        assert self.stage is not None
        frames = (message.header.frame_id, message.child_frame_id)
        if frames != (self.frames.odom, convert.BASE_FRAME):
            self.health.raise_fault(
                "odometry frames",
                Level.WARN,
                f"odometry is of {frames[1] or '(empty)'} in {frames[0] or '(empty)'}, wanted "
                f"{convert.BASE_FRAME} in {self.frames.odom}: a map frame jumps; set frames.odom if yours is "
                "named otherwise",
            )
        self.stage.add_odometry(*convert.odometry_sample(message))

    def _check_clock(self, stamp_ns: int, now_ns: int) -> None:
        apart_s = (now_ns - stamp_ns) / NS_PER_S
        if abs(apart_s) < _OLD_S:
            return
        mend = (
            "the bag is played without --clock"
            if not self.get_clock().ros_time_is_active
            else "the publisher does not use /clock"
        )
        self.health.raise_fault(
            "clock",
            Level.ERROR,
            f"camera stamps are {apart_s:.0f} s behind this node's clock: {mend}. Play with --clock and set "
            "use_sim_time true for every node",
        )

    # Worker thread -------------------------------------------------------------------------------

    def _encode(self, job: tuple[CameraSet, float]) -> None:
        camera_set, received_s = job
        assert self.stage is not None
        try:
            result = self.stage.process(camera_set)
        except (PoseError, InputError) as error:
            self.health.raise_fault("encode", Level.ERROR, f"set at {camera_set.t0_ns} ns refused: {error}")
            return
        self.health.clear("encode")
        for warning in result.warnings:
            self.health.raise_fault("picture", Level.WARN, warning)
        if result.memory_cleared:
            self.get_logger().warning(f"temporal memory cleared: {result.memory_cleared}")
        self._publish(result, received_s)

    def _publish(self, result: EncoderResult, received_s: float) -> None:
        assert self.stage is not None
        info = self.stage.encoder.info
        self._sequence += 1
        took_s = time.monotonic() - received_s
        origin = convert.provenance(info, self._sequence, took_s)
        if self._queries_to is not None:
            self._queries_to.give(self._encoded(result))
        # Handed over, they are a message only for those who listen from outside.
        if self._queries_to is None or self._queries.get_subscription_count() > 0:
            self._queries.publish(
                convert.queries_msg(
                    result.queries, origin, result.camera_set, result.history_ns, bool(result.memory_cleared)
                )
            )
        if self._wanted_views():
            self.views.submit((result, origin))

    def _encoded(self, result: EncoderResult) -> Encoded:
        assert self.stage is not None
        return Encoded(
            result.queries,
            self.stage.encoder.info.stage_id,
            self._sequence,
            result.camera_set.reference_camera,
            result.history_ns,
            result.camera_set.complete,
            time.monotonic(),
        )

    def _wanted_views(self) -> list[Publisher]:
        return [p for p in (self._voxels, self._cloud, self._bev) if p.get_subscription_count() > 0]

    def _publish_views(self, job: tuple[EncoderResult, Provenance]) -> None:
        """For people and other stacks, in a thread of its own: the next set does not wait for it."""
        result, origin = job
        assert self.stage is not None
        occupancy = self.stage.occupancy(result)
        wanted = self._wanted_views()
        if self._voxels in wanted:
            self._voxels.publish(convert.occupancy_msg(occupancy, origin))
        if self._cloud in wanted:
            self._cloud.publish(convert.occupancy_cloud(occupancy))
        if self._bev in wanted:
            self._bev.publish(convert.birds_eye_msg(occupancy))


def main() -> int:
    return spin(EncoderNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
