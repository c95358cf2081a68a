"""ROS messages without ROS: the types, and builders for what a drive is made of.

Everything is made by `rosbags`, whose CDR is byte for byte what a node publishes. Quaternions are
(x, y, z, w) and stamps are split into seconds and nanoseconds here, nowhere else in this package.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from sparseoccvla.contracts import (
    CAMERA_NAMES,
    NS_PER_S,
    CameraCalibration,
    DrivingCommand,
)
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import pose_from_matrix

MAP_FRAME = "map"
ODOM_FRAME = "odom"
BASE_FRAME = "base_link"
LIDAR_FRAME = "lidar_top"

_OUR_PACKAGE = "sparseoccvla_msgs"


class MessageTypesError(InputError):
    """The definitions of our own messages are not where they should be."""


@cache
def typestore() -> Typestore:
    """The store everybody shares and nobody registers in; see `new_typestore`."""
    return new_typestore()


def new_typestore() -> Typestore:
    """Every message of Jazzy and ours, read from the .msg files of the clone or of the ROS install.

    Raises:
        MessageTypesError: neither has them.
    """
    store = get_typestore(Stores.ROS2_JAZZY)
    types: dict[str, Any] = {}
    for file in sorted(_definitions().glob("*.msg")):
        types |= get_types_from_msg(file.read_text(), f"{_OUR_PACKAGE}/msg/{file.stem}")
    store.register(types)
    return store


def _definitions() -> Path:
    prefixes = [Path(entry) for entry in os.environ.get("AMENT_PREFIX_PATH", "").split(":") if entry]
    places = [
        Path(__file__).parents[2] / "msg",
        *(prefix / "share" / _OUR_PACKAGE / "msg" for prefix in prefixes),
    ]
    for place in places:
        if any(place.glob("*.msg")):
            return place
    raise MessageTypesError(
        f"no .msg files of {_OUR_PACKAGE} in {', '.join(map(str, places))}; "
        "run from a clone, or source ros2_ws/install/setup.bash"
    )


def _qos(depth: int, durability: QosDurability = QosDurability.VOLATILE) -> Qos:
    unlimited = QosTime(0, 0)
    return Qos(
        QosHistory.KEEP_LAST,
        depth,
        QosReliability.RELIABLE,
        durability,
        unlimited,
        unlimited,
        QosLiveliness.SYSTEM_DEFAULT,
        unlimited,
        avoid_ros_namespace_conventions=False,
    )


STREAM_QOS = _qos(10)
TF_QOS = _qos(100)
LATCHED_QOS = _qos(1, QosDurability.TRANSIENT_LOCAL)


def camera_topics(camera: str) -> tuple[str, str]:
    """Picture and calibration topic of a camera, named as nuscenes2mcap does."""
    return f"/{camera}/image_rect_compressed", f"/{camera}/camera_info"


# Topic -> type and offered QoS: all that a drive's bag may hold.
TOPICS: dict[str, tuple[str, Qos]] = {
    "/tf_static": ("tf2_msgs/msg/TFMessage", LATCHED_QOS),
    "/tf": ("tf2_msgs/msg/TFMessage", TF_QOS),
    "/odom": ("nav_msgs/msg/Odometry", STREAM_QOS),
    "/command": (f"{_OUR_PACKAGE}/msg/DrivingCommand", LATCHED_QOS),
    "/lidar_top": ("sensor_msgs/msg/PointCloud2", STREAM_QOS),
    "/ground_truth/trajectory": ("nav_msgs/msg/Path", STREAM_QOS),
    "/ground_truth/boxes": ("visualization_msgs/msg/MarkerArray", STREAM_QOS),
    **{camera_topics(name)[0]: ("sensor_msgs/msg/CompressedImage", STREAM_QOS) for name in CAMERA_NAMES},
    **{camera_topics(name)[1]: ("sensor_msgs/msg/CameraInfo", STREAM_QOS) for name in CAMERA_NAMES},
}


def _make(kind: str, **fields: Any) -> Any:
    return typestore().types[kind](**fields)


def _time(stamp_ns: int) -> Any:
    return _make("builtin_interfaces/msg/Time", sec=stamp_ns // NS_PER_S, nanosec=stamp_ns % NS_PER_S)


def stamp_ns(time: Any) -> int:
    """Nanoseconds of a builtin_interfaces/Time."""
    return int(time.sec) * NS_PER_S + int(time.nanosec)


def _header(stamp_ns: int, frame: str) -> Any:
    return _make("std_msgs/msg/Header", stamp=_time(stamp_ns), frame_id=frame)


def _vector(values: Sequence[float] | NDArray[np.floating]) -> Any:
    x, y, z = map(float, values)
    return _make("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def _pose(parent_from_child: NDArray[np.floating]) -> Any:
    (x, y, z), (qx, qy, qz, qw) = (values.tolist() for values in pose_from_matrix(parent_from_child))
    return _make(
        "geometry_msgs/msg/Pose",
        position=_make("geometry_msgs/msg/Point", x=x, y=y, z=z),
        orientation=_make("geometry_msgs/msg/Quaternion", x=qx, y=qy, z=qz, w=qw),
    )


def transforms(entries: Sequence[tuple[int, str, str, NDArray[np.floating]]]) -> Any:
    """TFMessage of (stamp_ns, parent, child, parent_from_child 4x4)."""
    stamped = []
    for stamp, parent, child, parent_from_child in entries:
        pose = _pose(parent_from_child)
        transform = _make(
            "geometry_msgs/msg/Transform",
            translation=_vector((pose.position.x, pose.position.y, pose.position.z)),
            rotation=pose.orientation,
        )
        stamped.append(
            _make(
                "geometry_msgs/msg/TransformStamped",
                header=_header(stamp, parent),
                child_frame_id=child,
                transform=transform,
            )
        )
    return _make("tf2_msgs/msg/TFMessage", transforms=stamped)


def odometry(
    stamp_ns: int,
    odom_from_base: NDArray[np.floating],
    linear_mps: NDArray[np.floating],
    angular_radps: NDArray[np.floating],
) -> Any:
    """Odometry: pose of base_link in odom, twist (3,) and (3,) in base_link; covariances unknown (zero)."""
    unknown = np.zeros(36)
    twist = _make("geometry_msgs/msg/Twist", linear=_vector(linear_mps), angular=_vector(angular_radps))
    return _make(
        "nav_msgs/msg/Odometry",
        header=_header(stamp_ns, ODOM_FRAME),
        child_frame_id=BASE_FRAME,
        pose=_make("geometry_msgs/msg/PoseWithCovariance", pose=_pose(odom_from_base), covariance=unknown),
        twist=_make("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=unknown),
    )


def compressed_image(stamp_ns: int, camera: str, data: bytes, encoding: str = "jpeg") -> Any:
    """CompressedImage with these very bytes in the camera's optical frame."""
    return _make(
        "sensor_msgs/msg/CompressedImage",
        header=_header(stamp_ns, camera),
        format=encoding,
        data=np.frombuffer(data, np.uint8),
    )


def camera_info(stamp_ns: int, camera: CameraCalibration) -> Any:
    """CameraInfo of a rectified camera: no distortion, P is K."""
    k = np.asarray(camera.image_from_camera, float)
    return _make(
        "sensor_msgs/msg/CameraInfo",
        header=_header(stamp_ns, camera.name),
        height=camera.height_px,
        width=camera.width_px,
        distortion_model="plumb_bob",
        d=np.zeros(5),
        k=k.ravel(),
        r=np.eye(3).ravel(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel(),
        binning_x=0,
        binning_y=0,
        roi=_make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        ),
    )


def driving_command(command: DrivingCommand) -> Any:
    return _make(
        f"{_OUR_PACKAGE}/msg/DrivingCommand",
        header=_header(command.stamp_ns, ""),
        command=int(command.command),
        source=command.source,
        valid_until=_time(command.valid_until_ns),
    )


def path(stamp_ns: int, frame: str, poses: Sequence[tuple[int, NDArray[np.floating]]]) -> Any:
    """Path of (time_ns, frame_from_base 4x4): where the vehicle is at each time."""
    stamped = [
        _make("geometry_msgs/msg/PoseStamped", header=_header(time_ns, frame), pose=_pose(pose))
        for time_ns, pose in poses
    ]
    return _make("nav_msgs/msg/Path", header=_header(stamp_ns, frame), poses=stamped)


def cube(
    stamp_ns: int,
    frame: str,
    number: int,
    namespace: str,
    frame_from_box: NDArray[np.floating],
    length_width_height_m: tuple[float, float, float],
    color_rgb: NDArray[np.uint8],
    lifetime_s: float,
) -> Any:
    """One solid box of a MarkerArray; x of the box is its length."""
    return _marker(
        header=_header(stamp_ns, frame),
        ns=namespace,
        id=number,
        type=1,  # CUBE
        action=0,  # ADD
        pose=_pose(frame_from_box),
        scale=_vector(length_width_height_m),
        color=_color(color_rgb, 0.6),
        lifetime=_make(
            "builtin_interfaces/msg/Duration",
            sec=int(lifetime_s),
            nanosec=round(lifetime_s % 1 * NS_PER_S),
        ),
    )


def markers(stamp_ns: int, frame: str, cubes: Sequence[Any]) -> Any:
    """MarkerArray that first takes away everything shown before."""
    clear = _marker(
        header=_header(stamp_ns, frame),
        ns="",
        id=0,
        type=1,
        action=3,  # DELETEALL
        pose=_pose(np.eye(4)),
        scale=_vector((0, 0, 0)),
        color=_color(np.zeros(3, np.uint8), 0.0),
        lifetime=_make("builtin_interfaces/msg/Duration", sec=0, nanosec=0),
    )
    return _make("visualization_msgs/msg/MarkerArray", markers=[clear, *cubes])


def _color(rgb: NDArray[np.uint8], alpha: float) -> Any:
    red, green, blue = (float(value) / 255 for value in rgb)
    return _make("std_msgs/msg/ColorRGBA", r=red, g=green, b=blue, a=alpha)


def _marker(**fields: Any) -> Any:
    nothing = np.zeros(0, np.uint8)
    return _make(
        "visualization_msgs/msg/Marker",
        **fields,
        frame_locked=False,
        points=[],
        colors=[],
        texture_resource="",
        texture=_make("sensor_msgs/msg/CompressedImage", header=_header(0, ""), format="", data=nothing),
        uv_coordinates=[],
        text="",
        mesh_resource="",
        mesh_file=_make("visualization_msgs/msg/MeshFile", filename="", data=nothing),
        mesh_use_embedded_materials=False,
    )


def point_cloud(stamp_ns: int, frame: str, names: Sequence[str], data: bytes) -> Any:
    """PointCloud2 of packed float32 columns `names`, the bytes as they are."""
    point_step = 4 * len(names)
    points, rest = divmod(len(data), point_step)
    if rest:
        raise InputError(
            f"{len(data)} bytes of points, wanted a multiple of {point_step} ({', '.join(names)})"
        )
    return _make(
        "sensor_msgs/msg/PointCloud2",
        header=_header(stamp_ns, frame),
        height=1,
        width=points,
        fields=[
            _make("sensor_msgs/msg/PointField", name=name, offset=4 * index, datatype=7, count=1)
            for index, name in enumerate(names)
        ],
        is_bigendian=False,
        point_step=point_step,
        row_step=point_step * points,
        data=np.frombuffer(data, np.uint8),
        is_dense=True,
    )
