"""PDM score (NAVSIM v1) and EPDMS (v2) of one plan in a scene that knows roads and agents.

Neither is a closed loop: one plan is tracked for 4 s (`pdm_motion.py`) and the driven states are
judged. Progress is relative to a reference plan, which is part of the figure: name it. Kept are the
public scorers' quirks, so that equal inputs give equal scores; v2's two-stage scenes are not built.
Sources: NAVSIM `pdm_scorer.py`, `pdm_scorer_utils.py`, tag v1.1 and main.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError
from sparseoccvla.geometry import wrap_angle
from sparseoccvla.metrics.additive import STATE, Additive, zeros
from sparseoccvla.metrics.agents import box_corners
from sparseoccvla.metrics.pdm_comfort import PdmVersion, comfort_terms, history_comfort
from sparseoccvla.metrics.pdm_motion import (
    DT_S,
    NUM_STATES,
    PACIFICA,
    POSE,
    State,
    VehicleShape,
    interpolate_plan,
    simulate,
)
from sparseoccvla.metrics.polygons import along_path, contains, convex_touch, rectangles_touch, touches

NUM_FUTURE = NUM_STATES + 9  # v1 looks 0.9 s beyond its last state
_STOPPED_MPS = 0.05
_LOOK_STEPS = (0, 3, 6, 9)


@dataclass(frozen=True)
class Road:
    """The map around a scene; polygons (P, 2) in the scene's frame, meters."""

    drivable: tuple[NDArray[np.float64], ...]  # roadblocks, intersections, car parks
    lanes: Mapping[str, NDArray[np.float64]]  # lanes and lane connectors by name
    route: frozenset[str]  # names of lanes that the route uses
    intersections: tuple[NDArray[np.float64], ...]
    centerline: NDArray[np.float64]  # (K, 2) along the route

    def __post_init__(self) -> None:
        if not self.drivable or not self.lanes or len(self.centerline) < 2:
            raise InputError(
                f"a road with {len(self.drivable)} drivable areas, {len(self.lanes)} lanes and "
                f"{len(self.centerline)} center line points scores nothing; wanted 1, 1 and 2 at least"
            )


@dataclass(frozen=True)
class Track:
    """Another road user or obstacle over time."""

    corners_m: NDArray[np.float64]  # (T, 4, 2) at 10 Hz, NaN where it is not there
    speed_mps: float  # when first seen: what NAVSIM uses throughout
    movable: bool  # vehicle, pedestrian, bicycle; False: cone, barrier, sign, debris

    @classmethod
    def moving(
        cls,
        pose: tuple[float, float, float],
        size_m: tuple[float, float],
        velocity_mps: tuple[float, float],
        movable: bool = True,
    ) -> Track:
        """A box of (length, width) at x, y, yaw that keeps its velocity and heading."""
        times = DT_S * np.arange(NUM_FUTURE)[:, None]
        centers = np.array(pose[:2]) + times * np.array(velocity_mps)
        yaws = np.full(NUM_FUTURE, pose[2])
        return cls(box_corners(centers, yaws, *size_m), float(np.hypot(*velocity_mps)), movable)


@dataclass(frozen=True)
class RedLight:
    """A lane connector of the route and when its light is red."""

    connector: NDArray[np.float64]  # (P, 2)
    red: NDArray[np.bool_]  # (41,)


@dataclass(frozen=True)
class DrivingScene:
    """Everything a plan is judged by."""

    start: NDArray[np.float64]  # (11,) state at t0
    road: Road
    tracks: tuple[Track, ...] = ()
    lights: tuple[RedLight, ...] = ()
    past_states: NDArray[np.float64] | None = None  # (4, 11) at -1.5 .. 0 s
    vehicle: VehicleShape = PACIFICA


@dataclass(frozen=True)
class PdmScore:
    """A score with its parts, named as NAVSIM names them. None: not part of this version, or not known."""

    no_at_fault_collisions: float
    drivable_area_compliance: float
    driving_direction_compliance: float  # v1 computes it and gives it no weight
    ego_progress: float
    time_to_collision_within_bound: float
    comfort: float | None  # v1
    traffic_light_compliance: float | None  # v2 from here on
    lane_keeping: float | None
    history_comfort: float | None
    two_frame_extended_comfort: float | None
    score: float
    raw_progress_m: float
    time_to_at_fault_collision_s: float | None  # None: there is none
    time_to_ttc_infraction_s: float | None

    def as_dict(self) -> dict[str, float | None]:
        return asdict(self)


def score_plan(
    scene: DrivingScene,
    plan: NDArray[np.floating],
    reference_plan: NDArray[np.floating],
    version: PdmVersion,
    step_s: float = 0.5,
) -> PdmScore:
    """Score of a plan (K, 3) of x_m, y_m, yaw_rad at `step_s`, at least 4 s, in the scene's frame.

    Args:
        scene: start, road, agents.
        plan: what is judged.
        reference_plan: likewise; progress is relative to the better of the two. NAVSIM's is PDM-Closed.
        version: whose rules.
        step_s: time between poses of both plans.

    Raises:
        ValueError: a plan shorter than 4 s, or agents known for too short a time.
    """
    judged, reference = (
        _Judged(
            scene, simulate(interpolate_plan(p, scene.start, step_s), scene.start, scene.vehicle), version
        )
        for p in (plan, reference_plan)
    )
    return _combined(judged, reference, version)


def with_extended_comfort(score: PdmScore, extended: float) -> PdmScore:
    """An EPDMS with the term that needs two consecutive plans (`pdm_comfort.extended_comfort`)."""
    return _rescored(replace(score, two_frame_extended_comfort=extended), PdmVersion.V2)


def human_filtered(score: PdmScore, human: PdmScore) -> PdmScore:
    """An EPDMS in which terms that the human driver's plan fails outright (exactly 0) count as passed."""
    forgiven = {
        name: 1.0
        for name in (*_MULTIPLIERS[PdmVersion.V2], *_WEIGHTS[PdmVersion.V2])
        if name != "two_frame_extended_comfort" and getattr(human, name) == 0
    }
    return _rescored(replace(score, **forgiven), PdmVersion.V2)


def baseline_plans(scene: DrivingScene) -> dict[str, NDArray[np.float64]]:
    """The rows that stand beside every PDM score: plans (8, 3) at 0.5 s that need no perception."""
    times = 0.5 * np.arange(1, 9)
    x, y, yaw = scene.start[POSE]
    gone = scene.start[State.VX] * times
    still = np.tile(scene.start[POSE], (8, 1))
    rolling = np.stack([x + gone * np.cos(yaw), y + gone * np.sin(yaw), np.full(8, yaw)], axis=1)
    return {"never_move": still, "constant_velocity": rolling}


_MULTIPLIERS = {
    PdmVersion.V1: ("no_at_fault_collisions", "drivable_area_compliance"),
    PdmVersion.V2: (
        "no_at_fault_collisions",
        "drivable_area_compliance",
        "driving_direction_compliance",
        "traffic_light_compliance",
    ),
}
_WEIGHTS = {
    PdmVersion.V1: {"time_to_collision_within_bound": 5, "ego_progress": 5, "comfort": 2},
    PdmVersion.V2: {
        "ego_progress": 5,
        "time_to_collision_within_bound": 5,
        "lane_keeping": 2,
        "history_comfort": 2,
        "two_frame_extended_comfort": 2,
    },
}


def _rescored(score: PdmScore, version: PdmVersion) -> PdmScore:
    """The same parts with their product of multipliers and weighted mean; a part not known has no weight."""
    known = {n: w for n, w in _WEIGHTS[version].items() if getattr(score, n) is not None}
    mean = sum(w * getattr(score, n) for n, w in known.items()) / sum(known.values())
    product = np.prod([getattr(score, n) for n in _MULTIPLIERS[version]])
    return replace(score, score=float(product * mean))


def _combined(judged: _Judged, reference: _Judged, version: PdmVersion) -> PdmScore:
    best = max(judged.raw_progress_m * judged.product, reference.raw_progress_m * reference.product)
    v1 = version is PdmVersion.V1
    if best > 5:
        raw = judged.raw_progress_m * (judged.product if v1 else 1.0)
        progress = float(np.clip(raw / best, 0, 1))
    else:
        progress = 0.0 if v1 and judged.product == 0 else 1.0
    states = judged.states
    comfortable = float(all(comfort_terms(states, version, judged.scene.vehicle).values()))
    past = judged.scene.past_states
    return _rescored(
        PdmScore(
            no_at_fault_collisions=judged.collisions[0],
            drivable_area_compliance=judged.drivable,
            driving_direction_compliance=judged.direction,
            ego_progress=progress,
            time_to_collision_within_bound=judged.ttc[0],
            comfort=comfortable if v1 else None,
            traffic_light_compliance=None if v1 else judged.lights,
            lane_keeping=None if v1 else judged.lane_keeping,
            history_comfort=None if v1 else history_comfort(states, past, judged.scene.vehicle),
            two_frame_extended_comfort=None,
            score=float("nan"),
            raw_progress_m=judged.raw_progress_m,
            time_to_at_fault_collision_s=judged.collisions[1],
            time_to_ttc_infraction_s=judged.ttc[1],
        ),
        version,
    )


class _Judged:
    """The terms of one driven plan that need no other plan."""

    def __init__(self, scene: DrivingScene, states: NDArray[np.float64], version: PdmVersion) -> None:
        self.scene, self.states, self.version = scene, states, version
        needed = NUM_FUTURE if version is PdmVersion.V1 else NUM_STATES
        for track in scene.tracks:
            if len(track.corners_m) < needed:
                raise ValueError(
                    f"an agent is known for {len(track.corners_m)} steps of 0.1 s, {version} wants {needed}"
                )
        self.corners, self.centers = scene.vehicle.corners_m(states), scene.vehicle.centers_m(states)
        self.speeds = np.hypot(states[:, State.VX], states[:, State.VY])
        self._find_areas()
        self.collisions = self._collisions()
        self.drivable = float(not self.off_road.any())
        self.direction = self._direction()
        self.lights = float(not any(self._crosses(light) for light in scene.lights))
        self.ttc = self._time_to_collision()
        self.lane_keeping = self._lane_keeping()
        start, end = along_path(scene.road.centerline, self.centers[[0, -1]])[0]
        self.raw_progress_m = float(max(end - start, 0.0))
        self.product = self.collisions[0] * self.drivable
        if version is PdmVersion.V2:
            self.product *= self.direction * self.lights

    def _find_areas(self) -> None:
        """At each state: across lanes, off the road, off the route, in an intersection."""
        road = self.scene.road
        in_lane = np.array([contains(lane, self.corners) for lane in road.lanes.values()])  # (L, T, 4)
        self.across_lanes = (in_lane.any(axis=-1).sum(axis=0) > 1) & ~in_lane.all(axis=-1).any(axis=0)
        on_road = np.array([contains(area, self.corners) for area in road.drivable])
        self.off_road = ~on_road.any(axis=0).all(axis=-1)
        on_route = [contains(lane, self.centers) for name, lane in road.lanes.items() if name in road.route]
        self.off_route = ~np.any(on_route, axis=0) if on_route else np.ones(len(self.states), bool)
        self.center_in_intersection = self._in_intersection(self.centers)
        self.axle_in_intersection = self._in_intersection(self.states[:, [State.X, State.Y]])

    def _in_intersection(self, points_m: NDArray[np.float64]) -> NDArray[np.bool_]:
        inside = [contains(area, points_m) for area in self.scene.road.intersections]
        return np.any(inside, axis=0) if inside else np.zeros(len(points_m), bool)

    def _collisions(self) -> tuple[float, float | None]:
        """NC and the time of the first collision that is the vehicle's fault."""
        score, first = 1.0, None
        for track in self.scene.tracks:
            step = self._first_fault(track)
            if step is not None:
                score = min(score, 0.0 if track.movable else 0.5)
                first = step if first is None else min(first, step)
        return score, None if first is None else first * DT_S

    def _first_fault(self, track: Track) -> int | None:
        """Step of the first touch if it is the vehicle's fault; a track once not at fault is left alone.

        As in NAVSIM: no fault while standing; else fault if the track stands or can't move; else none if
        it comes from behind; else fault if the front bumper touches; else only off the road or across lanes.
        """
        touching = np.flatnonzero(rectangles_touch_each(self.corners, track.corners_m[: len(self.corners)]))
        if not len(touching):
            return None
        step = int(touching[0])
        if self.speeds[step] <= _STOPPED_MPS:
            return None
        if not track.movable or track.speed_mps <= _STOPPED_MPS:
            return step
        if self._bearing(step, track.corners_m[step]) > np.deg2rad(150):
            return None
        bumper = self.corners[step][[0, 3]]
        if convex_touch(bumper, track.corners_m[step]):
            return step
        return step if self.across_lanes[step] or self.off_road[step] else None

    def _bearing(self, step: int, corners_m: NDArray[np.float64]) -> float:
        """Angle in [0, pi] from the heading to a box's center, seen from the rear axle."""
        dx, dy = corners_m.mean(axis=0) - self.states[step, [State.X, State.Y]]
        return abs(float(wrap_angle(np.arctan2(dy, dx) - self.states[step, State.HEADING])))

    def _direction(self) -> float:
        """DDC: distance off the route within 1.0 s: below 2 m 1, below 6 m 0.5. V2 forgives intersections."""
        moved = np.concatenate([[0.0], np.linalg.norm(np.diff(self.centers, axis=0), axis=1)])
        moved[~self.off_route] = 0
        if self.version is PdmVersion.V2:
            moved[self.center_in_intersection] = 0
        sums = np.convolve(moved, np.ones(11))[: len(moved)]
        worst = float(sums.max())
        return 1.0 if worst < 2 else 0.5 if worst < 6 else 0.0

    def _crosses(self, light: RedLight) -> bool:
        return bool((touches(self.corners, light.connector) & light.red[: len(self.corners)]).any())

    def _time_to_collision(self) -> tuple[float, float | None]:
        """TTC and the time of its first failure: the box slid ahead 0 to 0.9 s meets an agent's real box.

        V1 looks from every state, V2 only from those whose 0.9 s lie within the plan. A track first met
        where it does not count is ignored from then on.
        """
        last = NUM_STATES if self.version is PdmVersion.V1 else NUM_STATES - _LOOK_STEPS[-1]
        failures = [s for t in self.scene.tracks if (s := self._first_ttc_failure(t, last)) is not None]
        return (0.0, min(failures) * DT_S) if failures else (1.0, None)

    def _first_ttc_failure(self, track: Track, last: int) -> int | None:
        steps, ahead = np.arange(last)[:, None], np.array(_LOOK_STEPS)
        heading, speed = self.states[:last, State.HEADING], self.speeds[:last]
        per_s = np.stack([np.cos(heading), np.sin(heading)], axis=-1) * speed[:, None]
        slid = self.corners[:last, None] + (per_s[:, None] * (ahead * DT_S)[:, None])[:, :, None]
        met = rectangles_touch_each(slid, track.corners_m[steps + ahead]) & (speed >= 0.005)[:, None]
        hits = np.argwhere(met)  # in the order of NAVSIM's loops
        if not len(hits):
            return None
        step, look = (int(i) for i in hits[0])
        bearing = self._bearing(step, track.corners_m[step + _LOOK_STEPS[look]])
        exposed = self.across_lanes[step] or self.off_road[step] or self.axle_in_intersection[step]
        counts = bearing < np.deg2rad(30) or (exposed and bearing <= np.deg2rad(150))
        return step if counts else None

    def _lane_keeping(self) -> float:
        """LK: 0 after 2.0 s more than 0.5 m beside the center line; intersections neither count nor reset."""
        distance = along_path(self.scene.road.centerline, self.centers)[1]
        run = 0
        for far in distance[~self.center_in_intersection] > 0.5:
            run = run + 1 if far else 0
            if run >= 20:
                return 0.0
        return 1.0


def rectangles_touch_each(first_m: NDArray[np.floating], second_m: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Whether quadrilaterals (..., 4, 2) touch those at the same place; never where one is NaN."""
    here = np.isfinite(second_m).all(axis=(-2, -1))
    result = np.zeros(here.shape, bool)
    result[here] = rectangles_touch(first_m[here], second_m[here])
    return result


@dataclass
class PdmMetric(Additive):
    """Mean of a PDM score and of its parts over scenes. A part that is None everywhere stays None."""

    version: PdmVersion
    sums: NDArray[np.float64] = field(default_factory=zeros(len(fields(PdmScore))), metadata=STATE)
    known: NDArray[np.int64] = field(default_factory=zeros(len(fields(PdmScore)), np.int64), metadata=STATE)
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)

    def update(self, score: PdmScore) -> None:
        values = list(score.as_dict().values())
        self.sums = self.sums + [0.0 if value is None else value for value in values]
        self.known = self.known + [value is not None for value in values]
        self.samples = self.samples + 1

    def result(self) -> dict[str, Any]:
        return {
            item.name: float(total / count) if count else None
            for item, total, count in zip(fields(PdmScore), self.sums, self.known, strict=True)
        }
