"""Other road users over the steps of a plan, from the annotated boxes of a scene."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, NUM_STEPS, STEP_S
from sparseoccvla.data.scene import Box, Scene
from sparseoccvla.geometry import inverse, planar_pose, wrap_angle
from sparseoccvla.metrics.agents import LIDAR_FORWARD_M, AgentFutures, AgentKind

# t0 and the steps after it lie up to 50 ms beside the lidar times of the annotations.
MAX_EXTRAPOLATION_S = 0.1


@dataclass(frozen=True)
class Agents:
    """N boxes annotated at a keyframe, in base_link at its t0. Step 0 is t0, step i is t0 + 0.5 i."""

    poses: NDArray[np.float32]  # (N, S + 1, 3) x_m, y_m, yaw_rad
    valid: NDArray[np.bool_]  # (N, S + 1)
    sizes_m: NDArray[np.float32]  # (N, 3) length, width, height
    kinds: NDArray[np.uint8]  # (N,) AgentKind

    def futures(self) -> AgentFutures:
        """The steps after t0, in the frame of the public planning metrics."""
        x, y, yaw = np.moveaxis(self.poses[:, 1:].astype(float), -1, 0)
        return AgentFutures(
            np.stack([-y, x - LIDAR_FORWARD_M], axis=-1),
            yaw + np.pi / 2,
            self.sizes_m[:, 0].astype(float),
            self.sizes_m[:, 1].astype(float),
            self.kinds,
            self.valid[:, 1:],
        )


def kind_of_category(category: str) -> AgentKind:
    """Human, vehicle (bicycles too) or other, by nuScenes category."""
    group = category.split(".")[0]
    return {"human": AgentKind.HUMAN, "vehicle": AgentKind.VEHICLE}.get(group, AgentKind.OTHER)


class SceneAgents:
    """The annotated tracks of one scene; boxes between two keyframes are interpolated."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._tracks: dict[str, list[tuple[int, Box]]] = defaultdict(list)
        for keyframe in scene.keyframes:
            for box in keyframe.boxes:
                self._tracks[box.instance].append((keyframe.stamp_ns, box))
        for stamp_ns, box in scene.boxes_after:
            self._tracks[box.instance].append((stamp_ns, box))

    def at(self, index: int) -> Agents:
        """Agents annotated at keyframe `index`, now and at every step of the horizon."""
        keyframe = self._scene.keyframes[index]
        base_from_global = inverse(self._scene.track.at(keyframe.t0_ns)[0])
        stamps = [keyframe.t0_ns + round(step * STEP_S * NS_PER_S) for step in range(NUM_STEPS + 1)]
        count = len(keyframe.boxes)
        poses = np.zeros((count, NUM_STEPS + 1, 3), np.float32)
        valid = np.zeros((count, NUM_STEPS + 1), bool)
        for row, box in enumerate(keyframe.boxes):
            track = [
                (stamp, planar_pose(base_from_global @ seen.global_from_box))
                for stamp, seen in self._tracks[box.instance]
            ]
            for step, stamp in enumerate(stamps):
                pose = _interpolate(track, stamp)
                if pose is not None:
                    poses[row, step], valid[row, step] = pose, True
        return Agents(
            poses,
            valid,
            np.array([box.length_width_height_m for box in keyframe.boxes], np.float32).reshape(-1, 3),
            np.array([kind_of_category(box.category) for box in keyframe.boxes], np.uint8),
        )


def _interpolate(track: list[tuple[int, NDArray[np.float64]]], stamp_ns: int) -> NDArray[np.float64] | None:
    """Pose at a time between two annotations, or of the nearest one just beside it."""
    before = max((entry for entry in track if entry[0] <= stamp_ns), key=_stamp, default=None)
    after = min((entry for entry in track if entry[0] >= stamp_ns), key=_stamp, default=None)
    if before is None or after is None:
        nearest = before or after
        if nearest is None or abs(nearest[0] - stamp_ns) > MAX_EXTRAPOLATION_S * NS_PER_S:
            return None
        return nearest[1]
    span_ns = after[0] - before[0]
    if span_ns == 0:
        return before[1]
    if span_ns > 2 * STEP_S * NS_PER_S:
        return None  # not annotated in between
    step = after[1] - before[1]
    step[2] = wrap_angle(step[2])
    return before[1] + step * ((stamp_ns - before[0]) / span_ns)


def _stamp(entry: tuple[int, NDArray[np.float64]]) -> int:
    return entry[0]
