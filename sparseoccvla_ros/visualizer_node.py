"""Results as RViz sees them: candidates, trajectory, words, forecast, and the dashboard picture."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping
from functools import partial
from typing import Any

import cv2
import numpy as np
from geometry_msgs.msg import Point
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, PointCloud2
from sparseoccvla_msgs.msg import (
    OccupancyForecast,
    PlannedTrajectory,
    PlanProposal,
    ReasoningText,
    SparseOccupancy,
    StackInfo,
)
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker, MarkerArray

from sparseoccvla import contracts
from sparseoccvla.config import CameraTopicsConfig, VisualizerConfig
from sparseoccvla.contracts import CAMERA_NAMES, NUM_MODES
from sparseoccvla.dashboard import Dashboard, draw
from sparseoccvla.errors import InputError
from sparseoccvla.images import decode
from sparseoccvla.summary import identity_notes, trust_warning
from sparseoccvla_ros import convert, params, qos
from sparseoccvla_ros.health import Level, steady_clock
from sparseoccvla_ros.stage_node import StageNode, spin
from sparseoccvla_ros.worker import LatestWorker

# Longer than two periods of the slowest plans, or markers blink.
_LIFETIME_S = 1.5


class VisualizerNode(StageNode):
    """Nothing of the stack depends on this node; it works only for who subscribes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("visualizer_node", **kwargs)
        self.worker: LatestWorker[None] | None = None
        self._newest: dict[str, Any] = {}
        self._pictures: dict[str, CompressedImage] = {}
        self._infos: dict[str, StackInfo] = {}

    def declare(self) -> None:
        self.settings = params.declare(self, VisualizerConfig, "visualizer")
        self.topics = params.declare(self, CameraTopicsConfig, "camera")

    def configure(self) -> None:
        publisher = self.create_lifecycle_publisher
        self._candidates = publisher(MarkerArray, "visualizer/candidates", qos.RESULT)
        self._path = publisher(Path, "visualizer/trajectory", qos.RESULT)
        self._text = publisher(Marker, "visualizer/text", qos.RESULT)
        self._forecast = publisher(PointCloud2, "visualizer/forecast_points", qos.RESULT)
        self._dashboard = publisher(CompressedImage, "visualizer/dashboard/compressed", qos.RESULT)

    def activate(self) -> None:
        self.worker = self.make_worker("dashboard", self._draw)
        self.worker.start()
        quiet = partial(self.subscribe, awaited=False)
        quiet(PlanProposal, "plan/proposal", self._on_proposal, qos.RESULT)
        quiet(PlannedTrajectory, "plan/trajectory", self._on_trajectory, qos.RESULT)
        quiet(ReasoningText, "reasoning/text", self._on_text, qos.STREAM)
        quiet(OccupancyForecast, "occupancy/forecast", self._on_forecast, qos.RESULT)
        quiet(StackInfo, "info", self._on_info, qos.LATCHED_ALL)
        quiet(SparseOccupancy, "occupancy/voxels", partial(self._keep, "occupancy"), qos.RESULT)
        if self.topics.transport == "compressed":
            for camera in CAMERA_NAMES:
                topic = f"{camera}/image_rect_compressed"
                profile = qos.camera(self.topics.reliability)
                quiet(CompressedImage, topic, partial(self._keep_picture, camera), profile)
        self._timer = self.create_timer(1 / self.settings.dashboard_hz, self._on_timer, clock=steady_clock())

    def deactivate(self) -> None:
        if self.worker is not None:
            self.destroy_timer(self._timer)
            self.worker.stop()
            self.worker = None

    def facts(self) -> Mapping[str, object]:
        return {"dashboards drawn": self.worker.done if self.worker else 0}

    def _keep(self, name: str, message: Any) -> None:
        self._newest[name] = message

    def _keep_picture(self, camera: str, message: CompressedImage) -> None:
        self._pictures[camera] = message

    def _on_info(self, message: StackInfo) -> None:
        self._infos[message.stage] = message

    def _on_proposal(self, message: PlanProposal) -> None:
        self._keep("proposal", message)
        if self._candidates.get_subscription_count():
            self._candidates.publish(_candidate_markers(message))

    def _on_trajectory(self, message: PlannedTrajectory) -> None:
        self._keep("trajectory", message)
        if self._path.get_subscription_count():
            plan = convert.trajectory(message)
            self._path.publish(convert.path_msg(plan.poses, plan.t0_ns))

    def _on_text(self, message: ReasoningText) -> None:
        self._keep("text", message)
        if self._text.get_subscription_count():
            marker = _marker(message.header, "text", 0, Marker.TEXT_VIEW_FACING)
            marker.pose.position.x, marker.pose.position.z = -6.0, 4.0
            marker.scale.z = 1.0
            marker.color = ColorRGBA(r=0.9, g=0.92, b=0.95, a=1.0)
            marker.text = message.text if message.trained else f"(untrained) {message.text}"
            self._text.publish(marker)

    def _on_forecast(self, message: OccupancyForecast) -> None:
        if self._forecast.get_subscription_count():
            last = convert.forecast(message).occupancy[-1]
            self._forecast.publish(convert.occupancy_cloud(last))

    def _on_timer(self) -> None:
        if self.worker is not None and self._dashboard.get_subscription_count():
            self.worker.submit(None)

    def _draw(self, _: None) -> None:
        """Worker thread: a whole picture takes some 40 ms."""
        try:
            picture = draw(self._board())
        except InputError as error:
            self.health.raise_fault("dashboard", Level.WARN, f"dashboard not drawn: {error}")
            return
        ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
        if ok:
            message = CompressedImage(header=convert.header(self.now_ns()), format="jpeg")
            message.data = array("B", data.tobytes())
            self._dashboard.publish(message)

    def _board(self) -> Dashboard:
        newest = dict(self._newest)
        infos = list(self._infos.values())
        return Dashboard(
            cameras={name: _picture(name, message) for name, message in dict(self._pictures).items()},
            occupancy=convert.occupancy(newest["occupancy"]) if "occupancy" in newest else None,
            proposal=convert.proposal(newest["proposal"]) if "proposal" in newest else None,
            trajectory=convert.trajectory(newest["trajectory"]) if "trajectory" in newest else None,
            text=newest["text"].text if "text" in newest else "",
            notes=identity_notes(infos),
            warning=trust_warning(infos),
        )


def _picture(camera: str, message: CompressedImage) -> NDArray[np.uint8]:
    return decode(convert.compressed_image(camera, message), at_least_px=(173, 308))


def _marker(header: Any, namespace: str, number: int, kind: int) -> Marker:
    marker = Marker(header=header, ns=namespace, id=number, type=kind, action=Marker.ADD)
    marker.pose.orientation.w = 1.0
    marker.lifetime = convert.duration_msg(_LIFETIME_S)
    return marker


def _candidate_markers(message: PlanProposal) -> MarkerArray:
    """Every candidate as a line: the command's group bright by score, the rest dim."""
    row = contracts.Command(message.command).anchor_row
    markers = []
    for i, candidate in enumerate(message.candidates):
        marker = _marker(message.header, "candidates", i, Marker.LINE_STRIP)
        mine = i // NUM_MODES == row
        score = min(max(candidate.score, 0.0), 1.0)
        marker.scale.x = 0.25 if i == message.chosen else 0.08
        marker.color = ColorRGBA(r=0.35 + 0.65 * score, g=0.78, b=1.0 - 0.5 * score, a=0.9 if mine else 0.25)
        marker.points = [Point(z=0.1)] + [
            # Slightly raised: lines in the ground flicker.
            Point(x=float(x), y=float(y), z=0.1)
            for x, y in zip(candidate.x, candidate.y, strict=True)
        ]
        markers.append(marker)
    return MarkerArray(markers=markers)


def main() -> int:
    return spin(VisualizerNode, sys.argv)


if __name__ == "__main__":
    sys.exit(main())
