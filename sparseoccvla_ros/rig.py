"""A vehicle for tests and benchmarks: six cameras, calibration, transforms, odometry, a command."""

from __future__ import annotations

import time
from array import array
from collections.abc import Collection

import cv2
import numpy as np
from geometry_msgs.msg import TransformStamped
from nav_msgs.msg import Odometry
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, CompressedImage
from sparseoccvla_msgs.msg import DrivingCommand
from tf2_msgs.msg import TFMessage

from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S, CameraCalibration
from sparseoccvla.geometry import pose_from_matrix
from sparseoccvla_ros import convert, qos

# As a nuScenes sweep fires them, seconds after cam_front.
FIRING_S = dict(zip(CAMERA_NAMES, (0.0, 0.008, -0.008, 0.025, 0.035, 0.015), strict=True))
ODOM_HZ = 50


class Rig(Node):
    """Drives straight at `speed_mps`; every call publishes with the stamps it is told."""

    def __init__(self, speed_mps: float = 8.0, size_px: tuple[int, int] = (396, 704)) -> None:
        super().__init__("rig")
        self.speed_mps = speed_mps
        self.size_px = size_px
        self.images = {
            n: self.create_publisher(CompressedImage, f"{n}/image_rect_compressed", 10) for n in CAMERA_NAMES
        }
        self.infos = {n: self.create_publisher(CameraInfo, f"{n}/camera_info", 10) for n in CAMERA_NAMES}
        self.odom = self.create_publisher(Odometry, "odom", 100)
        self.command = self.create_publisher(DrivingCommand, "command", qos.LATCHED)
        self.tf_static = self.create_publisher(TFMessage, "/tf_static", qos.LATCHED)
        self.tf_static.publish(TFMessage(transforms=[self._extrinsics(name) for name in CAMERA_NAMES]))
        self.command.publish(DrivingCommand(command=DrivingCommand.STRAIGHT, source="route"))
        noise = np.random.default_rng(0).integers(0, 256, (*size_px, 3), np.uint8)
        self.jpeg = cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 3))[1].tobytes()
        self._odom_ns = 0
        self._origin_ns = time.time_ns()  # where the position is zero

    def _extrinsics(self, name: str) -> TransformStamped:
        translation, rotation = pose_from_matrix(CameraCalibration.fake(name).base_from_camera)
        message = TransformStamped(child_frame_id=name)
        message.header.frame_id = "base_link"
        t, r = message.transform.translation, message.transform.rotation
        t.x, t.y, t.z = translation
        r.x, r.y, r.z, r.w = rotation
        return message

    def send_odometry(self, until_ns: int) -> None:
        """Every sample after the last one sent, up to `until_ns`; 2.5 s of history the first time."""
        step_ns = NS_PER_S // ODOM_HZ
        start_ns = max(self._odom_ns + step_ns, until_ns - 5 * NS_PER_S // 2)
        for stamp_ns in range(start_ns - start_ns % step_ns, until_ns + 1, step_ns):
            message = Odometry(header=convert.header(stamp_ns, "odom"), child_frame_id="base_link")
            message.pose.pose.position.x = self.speed_mps * (stamp_ns - self._origin_ns) / NS_PER_S
            message.pose.pose.orientation.w = 1.0
            message.twist.twist.linear.x = self.speed_mps
            self.odom.publish(message)
            self._odom_ns = stamp_ns

    def send_info(self, t0_ns: int, names: Collection[str] = CAMERA_NAMES) -> None:
        for name in names:
            camera = CameraCalibration.fake(name, self.size_px[1], self.size_px[0])
            message = CameraInfo(header=convert.header(t0_ns, name), distortion_model="plumb_bob")
            message.width, message.height = camera.width_px, camera.height_px
            message.k = camera.image_from_camera.ravel()
            message.p = np.hstack([camera.image_from_camera, np.zeros((3, 1))]).ravel()
            message.d = array("d", [0.0] * 5)
            self.infos[name].publish(message)

    def send_image(self, name: str, stamp_ns: int, data: bytes | None = None) -> None:
        message = CompressedImage(header=convert.header(stamp_ns, name), format="jpeg")
        message.data = array("B", data if data is not None else self.jpeg)
        self.images[name].publish(message)

    def drive(self, sets: int, rate_hz: float) -> dict[int, float]:
        """Drive in real time as hardware does: odometry at 50 Hz, cameras one after the other.

        Returns when the last picture of each set was published, by t0; steady seconds.
        """
        sent: dict[int, float] = {}
        start_ns = time.time_ns() + NS_PER_S // 10
        due: list[tuple[int, str, int]] = []
        for i in range(sets):
            t0_ns = start_ns + round(i * NS_PER_S / rate_hz)
            due += [(t0_ns + round(after_s * NS_PER_S), name, t0_ns) for name, after_s in FIRING_S.items()]
        due += [(t_ns, "odom", 0) for t_ns in range(start_ns, due[-1][0], NS_PER_S // ODOM_HZ)]
        for stamp_ns, name, t0_ns in sorted(due):
            time.sleep(max(0.0, (stamp_ns - time.time_ns()) / NS_PER_S))
            if name == "odom":
                self.send_odometry(stamp_ns)
            else:
                self.send_info(t0_ns, (name,))
                self.send_image(name, stamp_ns)
                sent[t0_ns] = time.monotonic()
        return sent

    def send_set(self, t0_ns: int, without: Collection[str] = (), damaged: Collection[str] = ()) -> None:
        """One set as it fires, with odometry up to its last picture."""
        self.send_odometry(t0_ns + round(max(FIRING_S.values()) * NS_PER_S))
        self.send_info(t0_ns)
        for name in sorted(CAMERA_NAMES, key=lambda name: FIRING_S[name]):
            if name not in without:
                data = self.jpeg[: len(self.jpeg) // 2] if name in damaged else None
                self.send_image(name, t0_ns + round(FIRING_S[name] * NS_PER_S), data)
