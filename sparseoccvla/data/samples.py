"""Samples for training and evaluation: what the stack would see at t0, and what was true then.

`scene_samples` describes the keyframes of one scene; `cache.py` stores descriptions and pictures so
that training starts at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import Command, EgoState, EncoderInput
from sparseoccvla.data.agents import Agents, SceneAgents
from sparseoccvla.data.camera_views import CameraViews, scene_views
from sparseoccvla.data.can_bus import CanMotion
from sparseoccvla.data.commands import FUTURE_TRAJECTORY, command_from_future
from sparseoccvla.data.future import future_poses
from sparseoccvla.data.motion import scene_odometry
from sparseoccvla.data.occ3d import OccupancyLabel
from sparseoccvla.data.omnidrive import Language
from sparseoccvla.data.scene import Marks, Scene
from sparseoccvla.ego_state import EgoHistory
from sparseoccvla.geometry import inverse


@dataclass(frozen=True)
class Truth:
    """What is known of a keyframe besides its pictures, all in base_link at t0."""

    token: str
    scene: str
    t0_ns: int
    ego: EgoState
    command: Command
    future: NDArray[np.float64]  # (S, 3) x_m, y_m, yaw_rad
    future_valid: NDArray[np.bool_]  # (S,)
    agents: Agents
    base_from_label: NDArray[np.float64]  # (4, 4) from base_link at the label's (lidar) time
    command_source: str = FUTURE_TRAJECTORY  # "route" where the data set knows it
    hazards: tuple[str, ...] = ()  # kinds of those in sight; only generated roots know
    needs_sight: bool = False  # only sight tells what the expert will do


@dataclass(frozen=True)
class Sample:
    """A keyframe with everything that belongs to it."""

    truth: Truth
    # History frames, newest (t0 itself) first; None is masked, as the live memory would have it.
    history: tuple[EncoderInput | None, ...]
    occupancy: OccupancyLabel | None  # in base_link at the label's time; None where there is no label
    language: Language


@dataclass(frozen=True)
class SceneSamples:
    """Camera sets of a scene, and for each keyframe its truth and which set is its own."""

    views: tuple[CameraViews, ...]
    truths: tuple[Truth, ...]
    view_of_truth: tuple[int, ...]


def scene_samples(scene: Scene, can: CanMotion | None, sweeps: bool) -> SceneSamples:
    """Describe every keyframe of a scene.

    Ego state comes from the same class as in the live stack, from samples not after t0. The first
    keyframe of a scene has little or no past; its valid bits say so.
    """
    odometry = scene_odometry(scene.track, can)
    views = scene_views(scene, odometry.map_from_odom, sweeps)
    history, agents = EgoHistory(odometry.samples), SceneAgents(scene)
    truths = []
    for index, keyframe in enumerate(scene.keyframes):
        t0_ns = keyframe.t0_ns
        future, valid = future_poses(scene.track, t0_ns)
        global_from_base = scene.track.at(t0_ns)[0]
        marks = keyframe.marks or Marks(command_from_future(future, valid), FUTURE_TRAJECTORY, (), False)
        truths.append(
            Truth(
                keyframe.token,
                scene.name,
                t0_ns,
                history.at(t0_ns),
                marks.command,
                future,
                valid,
                agents.at(index),
                inverse(global_from_base) @ scene.pose_of_labels(keyframe),
                marks.command_source,
                marks.hazards,
                marks.needs_sight,
            )
        )
    place = {view.t0_ns: number for number, view in enumerate(views)}
    return SceneSamples(tuple(views), tuple(truths), tuple(place[truth.t0_ns] for truth in truths))
