"""Message <-> contract. The only file that knows both.

Arrays go into messages as `array.array`: assigning an ndarray makes rclpy copy element by element.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from diagnostic_msgs.msg import KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion
from nav_msgs.msg import OccupancyGrid, Odometry, Path
from numpy.typing import NDArray
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2, PointField
from sparseoccvla_msgs.msg import CameraStatus, CandidateTrajectory, Provenance, Tensor
from sparseoccvla_msgs.msg import DrivingCommand as DrivingCommandMsg
from sparseoccvla_msgs.msg import OccupancyForecast as OccupancyForecastMsg
from sparseoccvla_msgs.msg import OccupancyQueries as OccupancyQueriesMsg
from sparseoccvla_msgs.msg import PlannedTrajectory as PlannedTrajectoryMsg
from sparseoccvla_msgs.msg import PlanProposal as PlanProposalMsg
from sparseoccvla_msgs.msg import ReasoningTokens as ReasoningTokensMsg
from sparseoccvla_msgs.msg import SparseOccupancy as SparseOccupancyMsg
from sparseoccvla_msgs.msg import StackInfo as StackInfoMsg
from std_msgs.msg import Header

from sparseoccvla.contracts import (
    CLASS_NAMES,
    NS_PER_S,
    NUM_CLASSES,
    NUM_MODES,
    STEP_S,
    CameraCalibration,
    CameraSet,
    CameraState,
    Command,
    ContractError,
    DrivingCommand,
    EncodedImage,
    OccupancyForecast,
    OccupancyQueries,
    PlannedTrajectory,
    PlanProposal,
    PlanStatus,
    Reasoning,
    Source,
    SparseOccupancy,
    StageInfo,
    VoxelGrid,
)
from sparseoccvla.geometry import matrix_from_pose
from sparseoccvla.palette import CLASS_COLORS_RGB
from sparseoccvla.voxels import birds_eye
from sparseoccvla_ros.hand_off import Encoded, Reasoned

BASE_FRAME = "base_link"
_TENSOR_DTYPES = ("float32", "float16", "uint8")


# Time and header -----------------------------------------------------------------------------------


def time_msg(stamp_ns: int) -> Time:
    return Time(sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def time_ns(stamp: Time) -> int:
    return stamp.sec * NS_PER_S + stamp.nanosec


def duration_msg(seconds: float) -> Duration:
    nanoseconds = round(seconds * NS_PER_S)
    return Duration(sec=nanoseconds // NS_PER_S, nanosec=nanoseconds % NS_PER_S)


def header(stamp_ns: int, frame_id: str = BASE_FRAME) -> Header:
    return Header(stamp=time_msg(stamp_ns), frame_id=frame_id)


def provenance(info: StageInfo, sequence: int, execution_s: float) -> Provenance:
    return Provenance(
        sequence=sequence, model_id=info.model_id, stage_id=info.stage_id, execution_s=execution_s
    )


def key_values(values: Mapping[str, str]) -> list[KeyValue]:
    return [KeyValue(key=key, value=value) for key, value in values.items()]


# Arrays --------------------------------------------------------------------------------------------


def byte_array(data: NDArray[Any]) -> array:
    """The bytes of an ndarray as what rclpy takes for uint8[]."""
    result = array("B")
    result.frombytes(np.ascontiguousarray(data).tobytes())
    return result


def _float_array(data: NDArray[Any]) -> array:
    result = array("f")
    result.frombytes(np.ascontiguousarray(data, np.float32).tobytes())
    return result


def tensor_msg(name: str, data: NDArray[Any]) -> Tensor:
    if data.dtype.name not in _TENSOR_DTYPES:
        raise ContractError(
            f"tensor {name} has dtype {data.dtype}, wanted one of {', '.join(_TENSOR_DTYPES)}"
        )
    return Tensor(name=name, dtype=data.dtype.name, shape=array("I", data.shape), data=byte_array(data))


def tensor_array(message: Tensor) -> NDArray[Any]:
    """The array of a Tensor, without a copy.

    Raises:
        ContractError: an unknown dtype, or bytes that do not fill the shape.
    """
    if message.dtype not in _TENSOR_DTYPES:
        raise ContractError(
            f"tensor {message.name} has dtype {message.dtype!r}, wanted one of {', '.join(_TENSOR_DTYPES)}"
        )
    dtype = np.dtype(message.dtype)
    shape = tuple(message.shape)
    wanted = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(message.data) != wanted:
        raise ContractError(
            f"tensor {message.name} has {len(message.data)} bytes, wanted {wanted} for shape {shape} "
            f"of {message.dtype}"
        )
    return np.frombuffer(message.data, dtype).reshape(shape)


# Cameras and vehicle -------------------------------------------------------------------------------


def compressed_image(camera: str, message: CompressedImage) -> EncodedImage:
    """`message.format` is "jpeg", "png" or image_transport's "bgr8; jpeg compressed bgr8"."""
    encoding = "png" if "png" in message.format.lower() else "jpeg"
    return EncodedImage(camera, time_ns(message.header.stamp), memoryview(message.data), encoding)


def raw_image(camera: str, message: Image) -> EncodedImage:
    if message.is_bigendian and message.encoding not in ("rgb8", "bgr8", "rgba8", "bgra8", "mono8"):
        raise ContractError(f"{camera} sends big-endian {message.encoding}, wanted an 8-bit encoding")
    return EncodedImage(
        camera,
        time_ns(message.header.stamp),
        memoryview(message.data),
        message.encoding,
        message.width,
        message.height,
        message.step,
    )


def calibration(camera: str, message: CameraInfo, base_from_camera: NDArray[np.float64]) -> CameraCalibration:
    """Of rectified pictures: P belongs to them; drivers that leave P empty rectify to K."""
    projection = np.array(message.p, float).reshape(3, 4)[:, :3]
    intrinsics = projection if projection[0, 0] > 0 else np.array(message.k, float).reshape(3, 3)
    return CameraCalibration(camera, message.width, message.height, intrinsics, base_from_camera).validate()


def transform_matrix(transform: Any) -> NDArray[np.float64]:
    """4x4 of a geometry_msgs/Transform."""
    t, q = transform.translation, transform.rotation
    return matrix_from_pose((t.x, t.y, t.z), (q.x, q.y, q.z, q.w))


def odometry_sample(message: Odometry) -> tuple[int, NDArray[np.float64], float, float]:
    """Stamp [ns], odom_from_base (4, 4), forward speed [m/s], yaw rate [rad/s].

    Raises:
        ContractError: a quaternion of zero length, or values that are not finite.
    """
    p, q = message.pose.pose.position, message.pose.pose.orientation
    speed, yaw_rate = message.twist.twist.linear.x, message.twist.twist.angular.z
    values = np.array([p.x, p.y, p.z, q.x, q.y, q.z, q.w, speed, yaw_rate])
    if not np.isfinite(values).all() or not np.linalg.norm(values[3:7]) > 0.5:
        raise ContractError(
            f"odometry has position {values[:3]}, quaternion {values[3:7]}, speed {speed}, "
            f"yaw rate {yaw_rate}; wanted finite values and a unit quaternion"
        )
    return time_ns(message.header.stamp), matrix_from_pose(values[:3], values[3:7]), speed, yaw_rate


def command(message: DrivingCommandMsg) -> DrivingCommand:
    return DrivingCommand(
        time_ns(message.header.stamp),
        _command(message.command),
        message.source,
        time_ns(message.valid_until),
    )


def _command(value: int) -> Command:
    try:
        return Command(value)
    except ValueError:
        raise ContractError(f"command is {value}, wanted 0 UNKNOWN, 1 LEFT, 2 RIGHT or 3 STRAIGHT") from None


# Encoder -------------------------------------------------------------------------------------------


def camera_status(camera_set: CameraSet) -> list[CameraStatus]:
    return [
        CameraStatus(name=slot.name, state=int(slot.state), stamp=time_msg(slot.stamp_ns))
        for slot in camera_set.slots
    ]


def queries_msg(
    queries: OccupancyQueries,
    origin: Provenance,
    camera_set: CameraSet,
    history_ns: Sequence[int],
    memory_cleared: bool,
) -> OccupancyQueriesMsg:
    return OccupancyQueriesMsg(
        header=header(queries.t0_ns),
        provenance=origin,
        reference_camera=camera_set.reference_camera,
        cameras=camera_status(camera_set),
        history=[time_msg(stamp) for stamp in history_ns],
        memory_cleared=memory_cleared,
        features=tensor_msg("features", queries.features),
        points_m=tensor_msg("points_m", queries.points_base_m),
        point_labels=tensor_msg("point_labels", queries.point_labels),
        point_scores=tensor_msg("point_scores", queries.point_scores),
    )


def queries(message: OccupancyQueriesMsg) -> OccupancyQueries:
    return OccupancyQueries(
        time_ns(message.header.stamp),
        tensor_array(message.features),
        tensor_array(message.points_m),
        tensor_array(message.point_labels),
        tensor_array(message.point_scores),
    ).validate()


def all_fresh(message: OccupancyQueriesMsg) -> bool:
    return all(camera.state == CameraState.FRESH for camera in message.cameras)


def encoded(message: OccupancyQueriesMsg) -> Encoded:
    """Received now: reading a message is work of the stage that does it."""
    received_s = time.monotonic()
    return Encoded(
        queries(message),
        message.provenance.stage_id,
        message.provenance.sequence,
        message.reference_camera,
        tuple(time_ns(stamp) for stamp in message.history),
        all_fresh(message),
        received_s,
    )


def occupancy_msg(occupancy: SparseOccupancy, origin: Provenance) -> SparseOccupancyMsg:
    x, y, z = occupancy.grid.min_m
    return SparseOccupancyMsg(
        header=header(occupancy.t0_ns),
        provenance=origin,
        origin=Point(x=x, y=y, z=z),
        voxel_size=occupancy.grid.voxel_size_m,
        shape=np.array(occupancy.grid.shape, np.uint32),  # three numbers: rclpy wants an ndarray here
        indices=byte_array(occupancy.indices),
        labels=byte_array(occupancy.labels),
        scores=byte_array(np.round(occupancy.scores * 255).astype(np.uint8)),
        observed=byte_array(np.packbits(occupancy.observed)),
    )


def occupancy(message: SparseOccupancyMsg) -> SparseOccupancy:
    grid = VoxelGrid(
        (message.origin.x, message.origin.y, message.origin.z),
        # float32 on the wire: 0.4 must come back as 0.4
        round(message.voxel_size, 6),
        (int(message.shape[0]), int(message.shape[1]), int(message.shape[2])),
    )
    cells = int(np.prod(grid.shape))
    if len(message.indices) != 3 * len(message.labels):
        raise ContractError(
            f"SparseOccupancy has {len(message.indices)} index bytes for {len(message.labels)} labels, "
            "wanted 3 each"
        )
    if len(message.observed) not in (0, (cells + 7) // 8):
        raise ContractError(
            f"SparseOccupancy.observed has {len(message.observed)} bytes, wanted {(cells + 7) // 8} or none"
        )
    observed = (
        np.unpackbits(np.frombuffer(message.observed, np.uint8), count=cells).astype(bool)
        if len(message.observed)
        else np.zeros(cells, bool)
    )
    return SparseOccupancy(
        time_ns(message.header.stamp),
        np.frombuffer(message.indices, np.uint8).reshape(-1, 3),
        np.frombuffer(message.labels, np.uint8),
        np.frombuffer(message.scores, np.uint8).astype(np.float32) / 255,
        observed.reshape(grid.shape),
        grid,
    ).validate()


_POINT_FIELDS = [
    PointField(name=name, offset=4 * i, datatype=datatype, count=1)
    for i, (name, datatype) in enumerate(
        [("x", PointField.FLOAT32), ("y", PointField.FLOAT32), ("z", PointField.FLOAT32),
         ("rgb", PointField.UINT32), ("label", PointField.UINT32), ("score", PointField.FLOAT32)]
    )
]  # fmt: skip
_POINT_DTYPE = np.dtype([("xyz", "<f4", 3), ("rgb", "<u4"), ("label", "<u4"), ("score", "<f4")])


def occupancy_cloud(occupancy: SparseOccupancy) -> PointCloud2:
    """Voxel centers colored by class: the cheap way to see occupancy in RViz (style Boxes, 0.4 m)."""
    points = np.empty(len(occupancy.labels), _POINT_DTYPE)
    points["xyz"] = occupancy.grid.centers_m(occupancy.indices)
    color = CLASS_COLORS_RGB.astype(np.uint32)
    packed = (color[:, 0] << 16) | (color[:, 1] << 8) | color[:, 2]
    points["rgb"] = packed[occupancy.labels]
    points["label"] = occupancy.labels
    points["score"] = occupancy.scores
    return PointCloud2(
        header=header(occupancy.t0_ns),
        height=1,
        width=len(points),
        fields=_POINT_FIELDS,
        is_bigendian=False,
        point_step=_POINT_DTYPE.itemsize,
        row_step=points.nbytes,
        data=byte_array(points),
        is_dense=True,
    )


def birds_eye_msg(occupancy: SparseOccupancy) -> OccupancyGrid:
    """The occupancy from above as nav stacks read it: -1 unknown, 0 free, 100 occupied."""
    cells, cell_m, (x_m, y_m) = birds_eye(occupancy)
    message = OccupancyGrid(header=header(occupancy.t0_ns))
    message.info.map_load_time = time_msg(occupancy.t0_ns)
    message.info.resolution = cell_m
    message.info.height, message.info.width = cells.shape
    message.info.origin.position.x, message.info.origin.position.y = x_m, y_m
    message.info.origin.orientation.w = 1.0
    data = array("b")
    data.frombytes(cells.tobytes())
    message.data = data
    return message


# Reasoner ------------------------------------------------------------------------------------------


def reasoning_msg(
    reasoning: Reasoning, origin: Provenance, requires: str, sequence: int, prompt: str
) -> ReasoningTokensMsg:
    return ReasoningTokensMsg(
        header=header(reasoning.t0_ns),
        provenance=origin,
        requires_stage_id=requires,
        queries_sequence=sequence,
        prompt=prompt,
        token=tensor_msg("token", reasoning.token),
    )


def reasoning(message: ReasoningTokensMsg) -> Reasoning:
    return Reasoning(time_ns(message.header.stamp), tensor_array(message.token)).validate()


def reasoned(message: ReasoningTokensMsg) -> Reasoned:
    return Reasoned(reasoning(message), message.provenance.model_id)


def forecast_msg(forecast: OccupancyForecast, origin: Provenance) -> OccupancyForecastMsg:
    return OccupancyForecastMsg(
        header=header(forecast.t0_ns),
        provenance=origin,
        horizons=array("f", forecast.horizons_s),
        occupancy=[occupancy_msg(step, origin) for step in forecast.occupancy],
    )


def forecast(message: OccupancyForecastMsg) -> OccupancyForecast:
    return OccupancyForecast(
        time_ns(message.header.stamp),
        tuple(occupancy(step) for step in message.occupancy),
        tuple(round(h, 6) for h in message.horizons),
    ).validate()


# Planner and guard ---------------------------------------------------------------------------------


def proposal_msg(proposal: PlanProposal, origin: Provenance, info: StageInfo) -> PlanProposalMsg:
    return PlanProposalMsg(
        header=header(proposal.t0_ns),
        provenance=origin,
        requires_stage_id=info.requires_stage_id,
        stamp_source=proposal.stamp_source,
        command=int(proposal.command),
        status=int(proposal.status),
        candidates=[
            CandidateTrajectory(
                command=1 + i // NUM_MODES,
                mode=i % NUM_MODES,
                score=float(score),
                x=_float_array(poses[:, 0]),
                y=_float_array(poses[:, 1]),
                yaw=_float_array(poses[:, 2]),
            )
            for i, (poses, score) in enumerate(zip(proposal.candidates, proposal.scores, strict=True))
        ],
        chosen=proposal.chosen,
        reasoning_t0=time_msg(proposal.reasoning_t0_ns),
        forecast_t0=time_msg(proposal.forecast_t0_ns),
        history=[time_msg(stamp) for stamp in proposal.history_stamps_ns],
        speed=float(proposal.speed_mps),
        yaw_rate=float(proposal.yaw_rate_radps),
        trained=info.trained,
    )


def proposal(message: PlanProposalMsg) -> PlanProposal:
    """Not validated here: what is wrong with a proposal is the guard's to say."""
    lengths = {len(axis) for c in message.candidates for axis in (c.x, c.y, c.yaw)}
    if len(lengths) > 1:
        raise ContractError(f"PlanProposal candidates have {sorted(lengths)} waypoints, wanted equal lengths")
    candidates = [np.stack([c.x, c.y, c.yaw], axis=-1) for c in message.candidates]
    return PlanProposal(
        time_ns(message.header.stamp),
        _command(message.command),
        np.array(candidates, float).reshape(len(candidates), -1, 3),
        np.array([c.score for c in message.candidates], float),
        message.chosen,
        PlanStatus(message.status),
        time_ns(message.reasoning_t0),
        time_ns(message.forecast_t0),
        tuple(time_ns(stamp) for stamp in message.history),
        message.speed,
        message.yaw_rate,
        message.stamp_source,
    )


def _pose(x_m: float, y_m: float, yaw_rad: float) -> Pose:
    return Pose(
        position=Point(x=float(x_m), y=float(y_m), z=0.0),
        orientation=Quaternion(z=float(np.sin(yaw_rad / 2)), w=float(np.cos(yaw_rad / 2))),
    )


def trajectory_msg(trajectory: PlannedTrajectory, origin: Provenance) -> PlannedTrajectoryMsg:
    return PlannedTrajectoryMsg(
        header=header(trajectory.t0_ns),
        provenance=origin,
        source=int(trajectory.source),
        stamp_source=trajectory.stamp_source,
        status=int(trajectory.status),
        reason=trajectory.reason,
        command=int(trajectory.command),
        chosen=trajectory.chosen,
        poses=[_pose(*pose) for pose in trajectory.poses],
        velocity=_float_array(trajectory.speeds_mps),
        acceleration=_float_array(trajectory.accelerations_mps2),
        time_from_start=[duration_msg(STEP_S * (i + 1)) for i in range(len(trajectory.poses))],
        valid_until=time_msg(trajectory.valid_until_ns),
        camera_age=float(trajectory.camera_age_s),
        reasoning_age=float(trajectory.reasoning_age_s),
    )


def trajectory(message: PlannedTrajectoryMsg) -> PlannedTrajectory:
    yaw = [2 * np.arctan2(p.orientation.z, p.orientation.w) for p in message.poses]
    poses = [(p.position.x, p.position.y, a) for p, a in zip(message.poses, yaw, strict=True)]
    return PlannedTrajectory(
        time_ns(message.header.stamp),
        np.array(poses, float).reshape(-1, 3),
        np.array(message.velocity, float),
        np.array(message.acceleration, float),
        Source(message.source),
        message.stamp_source,
        time_ns(message.valid_until),
        Command(message.command),
        PlanStatus(message.status),
        message.reasoning_age,
        message.camera_age,
        message.reason,
        message.chosen,
    ).validate()


def path_msg(poses: NDArray[np.floating], t0_ns: int) -> Path:
    """The start and every waypoint; each pose carries the time it is for."""
    start = PoseStamped(header=header(t0_ns), pose=_pose(0.0, 0.0, 0.0))
    ahead = [
        PoseStamped(header=header(t0_ns + round((i + 1) * STEP_S * NS_PER_S)), pose=_pose(*pose))
        for i, pose in enumerate(poses)
    ]
    return Path(header=header(t0_ns), poses=[start, *ahead])


# Identity ------------------------------------------------------------------------------------------


def info_msg(info: StageInfo, now_ns: int, anchors_m: NDArray[np.floating] | None = None) -> StackInfoMsg:
    message = StackInfoMsg(
        header=header(now_ns, ""),
        stage=info.stage,
        model_id=info.model_id,
        stage_id=info.stage_id,
        requires_stage_id=info.requires_stage_id,
        trained=info.trained,
        trained_on=info.trained_on,
        backend=info.backend,
        backend_reason=info.backend_reason,
        cameras=list(info.cameras),
        image_size=np.array(info.image_size_px, np.uint32),
        history_frames=info.history_frames,
        class_names=list(CLASS_NAMES),
        class_colors=byte_array(CLASS_COLORS_RGB[:NUM_CLASSES]),
        extras=key_values(info.extras),
    )
    if anchors_m is not None:
        message.anchors = tensor_msg("anchors", anchors_m.astype(np.float32))
    return message
