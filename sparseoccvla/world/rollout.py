"""A whole drive by the expert, with its events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from sparseoccvla.world.cameras import CameraRig, RigCamera
from sparseoccvla.world.drive import DT_S, START_NS, Drive, Event
from sparseoccvla.world.expert import Expert
from sparseoccvla.world.hazards import Hazard
from sparseoccvla.world.motion import matrices_of
from sparseoccvla.world.render import lens_of
from sparseoccvla.world.scene import Scene
from sparseoccvla.world.simulate import Frame, Simulation

REACTION_MPS2 = 0.5
VISIBLE_PIXELS = 50
VISIBLE_SIZE_PX = (704, 396)
_LOOK_EVERY = 2  # ticks
# These begin to be a hazard with their first step, the others are one from the start.
_SUDDEN = ("following", "lead_brake", "pedestrian", "cut_in", "cyclist")


def rollout(scene: Scene, duration_s: float = 20.0, start_ns: int = START_NS) -> Drive:
    """Let the expert drive through a scene, and find out what each of its hazards did."""
    ticks = round(duration_s / DT_S)
    sim = Simulation(scene, start_ns)
    binding = np.array([driver for _, driver in _expert_drive(sim, ticks)], int)
    drive = sim.drive()
    events = tuple(_event(scene, hazard, sim, drive, binding) for hazard in scene.hazards)
    return replace(drive, events=events)


def _expert_drive(sim: Simulation, ticks: int) -> Iterator[tuple[Frame, int]]:
    """Step by step: the frame reached, and the agent that held the expert back (-1 for none)."""
    expert = Expert(sim.scene)
    for _ in range(ticks):
        sim.step(expert.control(sim))
        yield sim.frames[-1], expert.binding


def _event(scene: Scene, hazard: Hazard, sim: Simulation, drive: Drive, binding: NDArray[np.int_]) -> Event:
    names = {thing.name for thing in hazard.things}
    agents = np.array([i for i, thing in enumerate(scene.agents) if thing.name in names])
    onset = int(sim.first_step_tick[agents[0]]) if hazard.kind in _SUDDEN and hazard.plans[0].steps else 0
    began = onset > 0 or hazard.kind not in _SUDDEN or not hazard.plans[0].steps
    react = _reaction_tick(scene, hazard, sim, onset) if began else 0
    visible = (
        _visible_tick(scene, int(agents[0]), drive, onset, react or len(sim.frames) - 1) if began else -1
    )
    end = _end_tick(hazard, sim, agents, binding, react) if react else 0

    def stamp(tick: int, happened: bool) -> int:
        return int(drive.stamps_ns[tick]) if happened else 0

    return Event(
        hazard.name,
        hazard.kind,
        hazard.things[0].name,
        stamp(onset, began),
        stamp(visible, visible >= 0),
        stamp(react, react > 0),
        stamp(end, react > 0),
    )


def _reaction_tick(scene: Scene, hazard: Hazard, sim: Simulation, onset: int) -> int:
    """First tick at which the expert accelerates otherwise than if the hazard did not happen, 0 for never."""
    other = Simulation(scene.calmed(hazard.name), sim.start_ns)
    for tick, (frame, _) in enumerate(_expert_drive(other, len(sim.frames) - 1), start=1):
        here = sim.frames[tick]
        lateral = here.ego_v * here.yaw_rate - frame.ego_v * frame.yaw_rate
        if tick >= onset and np.hypot(here.ego_a - frame.ego_a, lateral) >= REACTION_MPS2:
            return tick
    return 0


def _end_tick(
    hazard: Hazard, sim: Simulation, agents: NDArray[np.int_], binding: NDArray[np.int_], react: int
) -> int:
    """When the ego has passed the construction zone, or was last held back by the hazard's agents."""
    if hazard.zone is not None:
        poses = np.array([frame.ego_pose for frame in sim.frames])
        stations, _, _ = sim.ego_lane.locate(poses)
        past = np.nonzero(stations > hazard.zone.end_m)[0]
        return int(past[0]) if len(past) else len(sim.frames) - 1
    held = np.nonzero(np.isin(binding, agents))[0] + 1
    return int(max(held.max(), react)) if len(held) else react


def _visible_tick(scene: Scene, agent: int, drive: Drive, onset: int, last: int) -> int:
    """First tick from `onset` with enough pixels of an agent in one of the cameras, -1 for never."""
    rig = CameraRig.nuscenes_like()
    instance = drive.instances[scene.agents[agent].name]
    for tick in range(onset, last + 1, _LOOK_EVERY):
        stamp_ns = int(drive.stamps_ns[tick])
        for camera in rig.cameras:
            if _pixels_of(scene, drive, camera, stamp_ns, agent, instance) >= VISIBLE_PIXELS:
                return tick
    return -1


def _pixels_of(
    scene: Scene, drive: Drive, camera: RigCamera, stamp_ns: int, agent: int, instance: int
) -> int:
    """How many pixels of an agent a camera sees: rays are cast only where its box is."""
    lens = lens_of(camera.calibration(VISIBLE_SIZE_PX))
    world_from_camera = drive.world_from_base(stamp_ns) @ camera.base_from_camera
    look = drive.look_at(stamp_ns)
    length, width, height = scene.agents[agent].size_m
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (0, 2)]) / 2
    pose = matrices_of(look.poses[agent])
    world = corners * [length, width, height] @ pose[:3, :3].T + pose[:3, 3]
    x, y, z = ((world - world_from_camera[:3, 3]) @ world_from_camera[:3, :3]).T
    if z.max() < 0.5:
        return 0
    z = np.maximum(z, 0.5)
    u, v = lens.fx * x / z + lens.cx, lens.fy * y / z + lens.cy
    left, right = int(np.clip(u.min(), 0, lens.width_px)), int(np.clip(u.max() + 2, 0, lens.width_px))
    top, bottom = int(np.clip(v.min(), 0, lens.height_px)), int(np.clip(v.max() + 2, 0, lens.height_px))
    if (right - left) * (bottom - top) < VISIBLE_PIXELS:
        return 0
    window = replace(lens, cx=lens.cx - left, cy=lens.cy - top, width_px=right - left, height_px=bottom - top)
    hits, faces = scene.stage.cast(
        torch.from_numpy(world_from_camera).float(), window, scene.stage.moving(look)
    )
    seen = hits.face >= 0
    return int((faces.instance[hits.face.clamp(min=0)][seen] == instance).sum())
