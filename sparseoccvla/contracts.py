"""Everything that crosses a node or backend boundary: names, shapes, units, frames.

Conventions (REP-103, REP-105; `docs/frames.md` has the long form):

* ``base_link`` is the rear-axle center projected to the ground: x forward, y left, z up, meters.
* ``t0`` is the mid-exposure stamp of the reference camera. Every output of the stack carries it,
  and every coordinate below is in base_link **at t0** unless its name says otherwise.
* ``a_from_b`` is a 4x4 matrix that takes column points of frame b to frame a.
* Stamps are integer nanoseconds (``_ns``), durations are seconds (``_s``), angles radians (``_rad``).
* A pose is ``(x_m, y_m, yaw_rad)``; yaw is counter-clockwise from x.

Dimension legend used in shapes:

    N cameras          Q queries             R points per query     C query width
    M occupied voxels  K classes without free = 17                  D reasoning token width
    A anchors = 18     S trajectory steps = 6

Nothing here imports torch or ROS, so that the guard and every test can use it. Arrays are numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, IntFlag
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError

NS_PER_S = 1_000_000_000

# The order in which a reference camera is looked for, and the order of every camera axis.
CAMERA_NAMES = (
    "cam_front",
    "cam_front_right",
    "cam_front_left",
    "cam_back",
    "cam_back_left",
    "cam_back_right",
)

# Occ3D-nuScenes, camera-visible semantic occupancy (17 is free space).
CLASS_NAMES = (
    "others",
    "barrier",
    "bicycle",
    "bus",
    "car",
    "construction_vehicle",
    "motorcycle",
    "pedestrian",
    "traffic_cone",
    "trailer",
    "truck",
    "driveable_surface",
    "other_flat",
    "sidewalk",
    "terrain",
    "manmade",
    "vegetation",
)
NUM_CLASSES = len(CLASS_NAMES)
FREE_CLASS = NUM_CLASSES
FLAT_CLASSES = (11, 12, 13, 14)
MOVABLE_CLASSES = (2, 3, 4, 5, 6, 7, 9, 10)

HISTORY_INTERVAL_S = 0.5  # the paper's frames are keyframes, 2 Hz
STEP_S = 0.5
NUM_STEPS = 6
HORIZON_S = STEP_S * NUM_STEPS
FORECAST_HORIZONS_S = (1.0, 2.0, 3.0)
NUM_MODES = 6
NUM_GLOBAL_TOKENS = 12
PAST_POSE_TIMES_S = (-0.5, -1.0, -1.5, -2.0)


class Command(IntEnum):
    """Where the route goes next. The numbers are those of DrivingCommand.msg."""

    UNKNOWN = 0
    LEFT = 1
    RIGHT = 2
    STRAIGHT = 3

    @property
    def anchor_row(self) -> int:
        """Row of the anchor table [LEFT, RIGHT, STRAIGHT]; UNKNOWN drives on STRAIGHT anchors."""
        return (self if self is not Command.UNKNOWN else Command.STRAIGHT) - 1


NUM_COMMANDS = 3
NUM_ANCHORS = NUM_COMMANDS * NUM_MODES


class Source(IntEnum):
    """Who made a trajectory. The numbers are those of PlannedTrajectory.msg."""

    UNSET = 0
    MODEL = 1
    FALLBACK = 2


class PlanStatus(IntFlag):
    """What was missing or wrong when a plan was made; 0 is a plan with everything it wants."""

    OK = 0
    DEGRADED_NO_REASONING = 1
    DEGRADED_NO_COMMAND = 2
    DEGRADED_CAMERAS = 4
    DEGRADED_EGO_STATE = 8
    NEXT_BEST_CANDIDATE = 16
    NO_PROPOSAL = 256
    NO_ODOMETRY = 512
    NOT_FINITE = 1024
    INFEASIBLE = 2048
    COLLISION = 4096
    UNKNOWN_SPACE = 8192
    STALE = 16384


class CameraState(IntEnum):
    """What a camera contributes to a set. The numbers are those of CameraStatus.msg."""

    MISSING = 0
    FRESH = 1
    HELD = 2
    BLANK = 3


class ContractError(InputError):
    """A value broke a contract; the text says which, what came and what was wanted."""


def check_array(name: str, array: Any, shape: tuple[int | None, ...], kind: str) -> None:
    """Raise `ContractError` unless `array` is finite and has this shape and dtype kind.

    Args:
        name: what to call it in the error, e.g. ``"OccupancyQueries.features"``.
        array: the candidate.
        shape: wanted shape; None is any length.
        kind: wanted numpy dtype kinds, e.g. ``"f"`` or ``"iu"``.

    Raises:
        ContractError: not an ndarray, another rank, length or kind, or not finite.
    """
    wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
    if not isinstance(array, np.ndarray):
        raise ContractError(f"{name} is a {type(array).__name__}, wanted an ndarray of shape {wanted}")
    if array.ndim != len(shape) or any(
        want is not None and got != want for got, want in zip(array.shape, shape, strict=True)
    ):
        raise ContractError(f"{name} has shape {array.shape}, wanted {wanted}")
    if array.dtype.kind not in kind:
        raise ContractError(f"{name} has dtype {array.dtype}, wanted kind {kind!r}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise ContractError(f"{name} has {bad} of {array.size} values that are not finite")


@dataclass(frozen=True)
class VoxelGrid:
    """A regular grid in base_link. Axis order of every dense array is x, y, z."""

    min_m: tuple[float, float, float] = (-40.0, -40.0, -1.0)
    voxel_size_m: float = 0.4
    shape: tuple[int, int, int] = (200, 200, 16)

    @property
    def max_m(self) -> tuple[float, float, float]:
        x, y, z = (lo + n * self.voxel_size_m for lo, n in zip(self.min_m, self.shape, strict=True))
        return (x, y, z)

    def centers_m(self, indices: NDArray[np.integer]) -> NDArray[np.float32]:
        """Centers (..., 3) in meters of voxel indices (..., 3)."""
        return (indices * self.voxel_size_m + (np.asarray(self.min_m) + self.voxel_size_m / 2)).astype(
            np.float32
        )

    def indices(self, points_m: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Voxel indices (..., 3) of points (..., 3) and whether each lies inside the grid (...)."""
        index = np.floor((points_m - np.asarray(self.min_m)) / self.voxel_size_m).astype(np.int64)
        inside = ((index >= 0) & (index < np.asarray(self.shape))).all(axis=-1)
        return index, inside


OCC3D_GRID = VoxelGrid()


@dataclass(frozen=True)
class CameraCalibration:
    """One rectified pinhole camera; the optical frame has z forward, x right, y down (REP-103)."""

    name: str
    width_px: int
    height_px: int
    image_from_camera: NDArray[np.float64]  # (3, 3) pixels
    base_from_camera: NDArray[np.float64]  # (4, 4) meters

    def validate(self) -> Self:
        check_array(f"{self.name}.image_from_camera", self.image_from_camera, (3, 3), "f")
        check_array(f"{self.name}.base_from_camera", self.base_from_camera, (4, 4), "f")
        if self.width_px <= 0 or self.height_px <= 0:
            raise ContractError(
                f"{self.name} has size {self.width_px}x{self.height_px}, wanted positive pixels; "
                "does its CameraInfo carry width and height?"
            )
        if self.image_from_camera[0, 0] <= 0 or self.image_from_camera[1, 1] <= 0:
            raise ContractError(
                f"{self.name} has focal lengths {self.image_from_camera[0, 0]:g}, "
                f"{self.image_from_camera[1, 1]:g} px, wanted positive; is this camera calibrated?"
            )
        return self

    @classmethod
    def fake(cls, name: str = "cam_front", width_px: int = 704, height_px: int = 396) -> Self:
        """A 70 degree camera 1.5 m above base_link; names of CAMERA_NAMES look where they say."""
        yaw = dict(zip(CAMERA_NAMES, np.deg2rad([0.0, -55.0, 55.0, 180.0, 110.0, -110.0]), strict=True))
        c, s = np.cos(yaw.get(name, 0.0)), np.sin(yaw.get(name, 0.0))
        base_from_camera = np.eye(4)
        base_from_camera[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array(
            [[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]
        )
        base_from_camera[:3, 3] = (1.5 * c, 0.5 * s, 1.5)
        focal = width_px / (2 * np.tan(np.deg2rad(35.0)))
        image_from_camera = np.array([[focal, 0, width_px / 2], [0, focal, height_px / 2], [0, 0, 1.0]])
        return cls(name, width_px, height_px, image_from_camera, base_from_camera)


@dataclass(frozen=True)
class EncodedImage:
    """One camera picture as it arrived. `stamp_ns` is mid-exposure, driver offset already applied."""

    camera: str
    stamp_ns: int
    data: bytes | memoryview
    encoding: str = "jpeg"  # "jpeg", "png", or a sensor_msgs/Image encoding such as "bgr8"
    width_px: int = 0  # 0 for compressed pictures: known after decoding
    height_px: int = 0
    row_bytes: int = 0


@dataclass(frozen=True)
class CameraSlot:
    """One camera's part of a set: `payload` is whatever the synchronizer was given, None if absent."""

    name: str
    state: CameraState
    stamp_ns: int
    payload: Any = None


@dataclass(frozen=True)
class CameraSet:
    """What the synchronizer hands on: one slot per configured camera, in the configured order."""

    t0_ns: int
    reference_camera: str
    slots: tuple[CameraSlot, ...]
    sequence: int = 0
    # Why it was emitted and what came before it: True after a time jump, so that memory is cleared.
    after_reset: bool = False

    @property
    def complete(self) -> bool:
        return all(slot.state is CameraState.FRESH for slot in self.slots)


@dataclass(frozen=True)
class EncoderInput:
    """Pictures at model resolution with the projection that belongs to them."""

    t0_ns: int
    images_rgb: NDArray[np.uint8]  # (N, H, W, 3)
    # (N, 4, 4) float64: a homogeneous odom point -> (u*d, v*d, d, 1), pixels of `images_rgb`.
    image_from_odom: NDArray[np.float64]
    odom_from_base: NDArray[np.float64]  # (4, 4) at t0
    valid: NDArray[np.bool_]  # (N,) False: this picture is masked

    def validate(self) -> Self:
        check_array("EncoderInput.images_rgb", self.images_rgb, (None, None, None, 3), "u")
        cameras = len(self.images_rgb)
        check_array("EncoderInput.image_from_odom", self.image_from_odom, (cameras, 4, 4), "f")
        check_array("EncoderInput.odom_from_base", self.odom_from_base, (4, 4), "f")
        check_array("EncoderInput.valid", self.valid, (cameras,), "b")
        return self

    @classmethod
    def fake(cls, t0_ns: int = 10 * NS_PER_S, size: tuple[int, int] = (128, 352), seed: int = 0) -> Self:
        """Six noise pictures of (height, width) `size` from cameras that look all around."""
        rng = np.random.default_rng(seed)
        height, width = size
        image_from_odom = np.tile(np.eye(4), (len(CAMERA_NAMES), 1, 1))
        for matrix, name in zip(image_from_odom, CAMERA_NAMES, strict=True):
            camera = CameraCalibration.fake(name, width, height)
            matrix[:3] = camera.image_from_camera @ np.linalg.inv(camera.base_from_camera)[:3]
        return cls(
            t0_ns,
            rng.integers(0, 256, (len(CAMERA_NAMES), height, width, 3), dtype=np.uint8),
            image_from_odom,
            np.eye(4),
            np.ones(len(CAMERA_NAMES), bool),
        )


@dataclass(frozen=True)
class OccupancyQueries:
    """What the encoder knows: Q_L with the 3-D points each query stands for."""

    t0_ns: int
    features: NDArray[np.floating]  # (Q, C)
    points_base_m: NDArray[np.floating]  # (Q, R, 3)
    point_labels: NDArray[np.uint8]  # (Q, R) best class of each point, 0..16
    point_scores: NDArray[np.floating]  # (Q, R) its score in [0, 1]

    def validate(self) -> Self:
        check_array("OccupancyQueries.features", self.features, (None, None), "f")
        check_array("OccupancyQueries.points_base_m", self.points_base_m, (len(self.features), None, 3), "f")
        points = self.points_base_m.shape[:2]
        check_array("OccupancyQueries.point_labels", self.point_labels, points, "u")
        check_array("OccupancyQueries.point_scores", self.point_scores, points, "f")
        if self.point_labels.max(initial=0) >= NUM_CLASSES:
            raise ContractError(
                f"OccupancyQueries.point_labels has {self.point_labels.max()}, wanted 0 to {NUM_CLASSES - 1}"
            )
        return self

    @classmethod
    def of(
        cls,
        t0_ns: int,
        features: NDArray[np.floating],
        points_base_m: NDArray[np.floating],
        class_scores: NDArray[np.floating],
    ) -> Self:
        """With the best of each point's `class_scores` (Q, R, 17)."""
        labels = class_scores.argmax(axis=-1)
        best = np.take_along_axis(class_scores, labels[..., None], axis=-1)[..., 0]
        return cls(t0_ns, features, points_base_m, labels.astype(np.uint8), best.astype(np.float16))

    @classmethod
    def fake(
        cls, t0_ns: int = 10 * NS_PER_S, shape: tuple[int, int, int] = (128, 8, 96), seed: int = 0
    ) -> Self:
        """Random queries; `shape` is (Q, R, C)."""
        rng = np.random.default_rng(seed)
        queries, points, width = shape
        center = rng.uniform((-39, -39, -0.9), (39, 39, 3), (queries, 1, 3))
        return cls(
            t0_ns,
            rng.standard_normal((queries, width)).astype(np.float32),
            (center + rng.normal(0, 0.5, (queries, points, 3))).astype(np.float32),
            rng.integers(0, NUM_CLASSES, (queries, points), np.uint8),
            rng.uniform(0, 1, (queries, points)).astype(np.float32),
        )


@dataclass(frozen=True)
class OccupancyPoints:
    """Points with a score per class, before they become voxels."""

    points_base_m: NDArray[np.floating]  # (P, 3)
    class_scores: NDArray[np.floating]  # (P, K) in [0, 1]

    def validate(self) -> Self:
        check_array("OccupancyPoints.points_base_m", self.points_base_m, (None, 3), "f")
        check_array(
            "OccupancyPoints.class_scores", self.class_scores, (len(self.points_base_m), NUM_CLASSES), "f"
        )
        return self


@dataclass(frozen=True)
class SparseOccupancy:
    """Occupied voxels of a grid. Unobserved is not free: `observed` says where free means free."""

    t0_ns: int
    indices: NDArray[np.uint8]  # (M, 3) x, y, z
    labels: NDArray[np.uint8]  # (M,) 0..16
    scores: NDArray[np.floating]  # (M,) in [0, 1]
    observed: NDArray[np.bool_]  # grid.shape
    grid: VoxelGrid = OCC3D_GRID

    def validate(self) -> Self:
        check_array("SparseOccupancy.indices", self.indices, (None, 3), "u")
        count = len(self.indices)
        check_array("SparseOccupancy.labels", self.labels, (count,), "u")
        check_array("SparseOccupancy.scores", self.scores, (count,), "f")
        check_array("SparseOccupancy.observed", self.observed, self.grid.shape, "b")
        if count and int(self.labels.max()) >= NUM_CLASSES:
            raise ContractError(
                f"SparseOccupancy.labels holds {int(self.labels.max())}, wanted 0..{NUM_CLASSES - 1}; "
                "free voxels are left out, not labeled"
            )
        if count and (self.indices.max(axis=0) >= self.grid.shape).any():
            raise ContractError(
                f"SparseOccupancy.indices reach {tuple(self.indices.max(axis=0))}, "
                f"wanted below {self.grid.shape}"
            )
        return self

    def dense(self) -> NDArray[np.uint8]:
        """Labels (x, y, z) with FREE_CLASS where nothing is."""
        grid = np.full(self.grid.shape, FREE_CLASS, np.uint8)
        grid[tuple(self.indices.T)] = self.labels
        return grid

    @classmethod
    def fake(cls, t0_ns: int = 10 * NS_PER_S, count: int = 500, seed: int = 0) -> Self:
        rng = np.random.default_rng(seed)
        flat = rng.choice(int(np.prod(OCC3D_GRID.shape)), count, replace=False)
        indices = np.stack(np.unravel_index(flat, OCC3D_GRID.shape), axis=1).astype(np.uint8)
        return cls(
            t0_ns,
            indices,
            rng.integers(0, NUM_CLASSES, count, dtype=np.uint8),
            rng.uniform(0.5, 1, count).astype(np.float32),
            np.ones(OCC3D_GRID.shape, bool),
        )


@dataclass(frozen=True)
class OccupancyForecast:
    """The world at t0 + each horizon, still in base_link at t0, not conditioned on ego motion."""

    t0_ns: int
    occupancy: tuple[SparseOccupancy, ...]
    horizons_s: tuple[float, ...] = FORECAST_HORIZONS_S

    def validate(self) -> Self:
        if len(self.occupancy) != len(self.horizons_s):
            raise ContractError(
                f"OccupancyForecast has {len(self.occupancy)} grids for {len(self.horizons_s)} horizons"
            )
        for step in self.occupancy:
            step.validate()
        return self


@dataclass(frozen=True)
class EgoState:
    """Motion of the vehicle at `stamp_ns` from samples not after it; built by `ego_state.EgoHistory`."""

    stamp_ns: int
    speed_mps: float
    acceleration_mps2: float
    yaw_rate_radps: float
    steering_rad: float  # road-wheel angle, positive left; 0 when not valid
    past_poses: NDArray[np.float64]  # (4, 3) x_m, y_m, yaw_rad at PAST_POSE_TIMES_S in base_link at stamp
    motion_valid: bool
    steering_valid: bool
    past_valid: NDArray[np.bool_]  # (4,)

    def validate(self) -> Self:
        check_array("EgoState.past_poses", self.past_poses, (len(PAST_POSE_TIMES_S), 3), "f")
        check_array("EgoState.past_valid", self.past_valid, (len(PAST_POSE_TIMES_S),), "b")
        motion = np.array([self.speed_mps, self.acceleration_mps2, self.yaw_rate_radps, self.steering_rad])
        check_array("EgoState motion (speed, acceleration, yaw rate, steering)", motion, (4,), "f")
        return self

    @classmethod
    def fake(cls, stamp_ns: int = 10 * NS_PER_S, speed_mps: float = 8.0) -> Self:
        """Straight driving at a constant speed."""
        past = np.zeros((len(PAST_POSE_TIMES_S), 3))
        past[:, 0] = speed_mps * np.asarray(PAST_POSE_TIMES_S)
        return cls(stamp_ns, speed_mps, 0.0, 0.0, 0.0, past, True, False, np.ones(len(past), bool))


@dataclass(frozen=True)
class DrivingCommand:
    """A command with who gave it and until when it holds (0: no end)."""

    stamp_ns: int
    command: Command
    source: str = ""  # "route", "operator", "future_trajectory", ...
    valid_until_ns: int = 0

    def at(self, t_ns: int) -> Command:
        """The command in force at `t_ns`, UNKNOWN once expired."""
        return Command.UNKNOWN if self.valid_until_ns and t_ns > self.valid_until_ns else self.command


@dataclass(frozen=True)
class Reasoning:
    """T_r, one hidden state of the language model at the reasoning token. `t0_ns` is its cameras' time."""

    t0_ns: int
    token: NDArray[np.floating]  # (D,)

    def validate(self) -> Self:
        check_array("Reasoning.token", self.token, (None,), "f")
        return self

    @classmethod
    def fake(cls, t0_ns: int = 10 * NS_PER_S, width: int = 256, seed: int = 0) -> Self:
        return cls(t0_ns, np.random.default_rng(seed).standard_normal(width).astype(np.float32))


@dataclass(frozen=True)
class PlanProposal:
    """18 candidates with scores. Waypoint i is the pose at t0 + (i + 1) * STEP_S."""

    t0_ns: int
    command: Command
    candidates: NDArray[np.floating]  # (A, S, 3) x_m, y_m, yaw_rad; rows LEFT, RIGHT, STRAIGHT of 6 modes
    scores: NDArray[np.floating]  # (A,) in [0, 1]
    chosen: int  # index into candidates, inside the command's group
    status: PlanStatus = PlanStatus.OK
    # The recorded pairing: an offline run repeats any live plan from these.
    reasoning_t0_ns: int = 0  # 0: the null token was used
    forecast_t0_ns: int = 0
    history_stamps_ns: tuple[int, ...] = ()
    # The motion the plan starts from; the guard checks feasibility against it.
    speed_mps: float = 0.0
    yaw_rate_radps: float = 0.0
    stamp_source: str = CAMERA_NAMES[0]  # the camera whose stamp is t0

    @property
    def trajectory(self) -> NDArray[np.floating]:
        """(S, 3) the chosen refined candidate."""
        return self.candidates[self.chosen]

    def validate(self) -> Self:
        check_array("PlanProposal.candidates", self.candidates, (NUM_ANCHORS, NUM_STEPS, 3), "f")
        check_array("PlanProposal.scores", self.scores, (NUM_ANCHORS,), "f")
        if not 0 <= self.chosen < NUM_ANCHORS:
            raise ContractError(f"PlanProposal.chosen is {self.chosen}, wanted 0..{NUM_ANCHORS - 1}")
        return self

    @classmethod
    def fake(cls, t0_ns: int = 10 * NS_PER_S, speed_mps: float = 8.0) -> Self:
        """Constant speed fans: each command bends one way, each mode is a fraction of the speed."""
        t_s = STEP_S * np.arange(1, NUM_STEPS + 1)
        rate = np.repeat([0.08, -0.08, 0.0], NUM_MODES)[:, None]  # LEFT, RIGHT, STRAIGHT
        speed = speed_mps * np.tile(np.linspace(0.75, 1.0, NUM_MODES), NUM_COMMANDS)[:, None]
        yaw = rate * t_s
        # Arc length over a turn at constant rate; np.sinc keeps the straight case exact.
        radius = speed * t_s * np.sinc(yaw / (2 * np.pi))
        candidates = np.stack([radius * np.cos(yaw / 2), radius * np.sin(yaw / 2), yaw], axis=-1)
        scores = np.tile(np.linspace(0.1, 0.6, NUM_MODES), NUM_COMMANDS)
        return cls(t0_ns, Command.STRAIGHT, candidates, scores, NUM_ANCHORS - 1, speed_mps=speed_mps)


@dataclass(frozen=True)
class PlannedTrajectory:
    """The guarded plan, the only one a controller may follow."""

    t0_ns: int
    poses: NDArray[np.floating]  # (S, 3) x_m, y_m, yaw_rad
    speeds_mps: NDArray[np.floating]  # (S,)
    accelerations_mps2: NDArray[np.floating]  # (S,)
    source: Source
    stamp_source: str  # whose stamp t0 is: a camera's; for a fallback "odometry", or "clock" if none is known
    valid_until_ns: int
    command: Command = Command.UNKNOWN
    status: PlanStatus = PlanStatus.OK
    reasoning_age_s: float = float("nan")  # NaN: no reasoning took part
    camera_age_s: float = float("nan")  # t0 to publication, node clock
    reason: str = ""  # empty, or why this is a fallback, for people
    chosen: int = -1

    def validate(self) -> Self:
        check_array("PlannedTrajectory.poses", self.poses, (None, 3), "f")
        check_array("PlannedTrajectory.speeds_mps", self.speeds_mps, (len(self.poses),), "f")
        check_array("PlannedTrajectory.accelerations_mps2", self.accelerations_mps2, (len(self.poses),), "f")
        if self.source is Source.UNSET:
            raise ContractError("PlannedTrajectory.source is UNSET, wanted MODEL or FALLBACK")
        return self


@dataclass(frozen=True)
class StageInfo:
    """What a stage is: published once, latched, and printed by every report."""

    stage: str  # "encoder", "reasoner", "planner"
    model_id: str  # first 16 hex digits of the manifest's sha256
    stage_id: str
    requires_stage_id: str  # "" for the first stage
    trained: bool
    trained_on: str  # "" when untrained
    backend: str
    backend_reason: str
    cameras: tuple[str, ...] = CAMERA_NAMES
    image_size_px: tuple[int, int] = (0, 0)  # height, width
    history_frames: int = 1
    extras: dict[str, str] = field(default_factory=dict)
