"""Odometry of a recorded scene: ego poses in an odom frame, with a twist and where it comes from."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.data.can_bus import CanMotion
from sparseoccvla.ego_state import MotionSample, samples_from_poses
from sparseoccvla.errors import InputError
from sparseoccvla.geometry import PoseTrack, inverse, planar_matrix, planar_pose, yaw_of

MIN_SPACING_S = 0.001  # two sensors that fire together give one sample: their difference is noise
BRIEF_TRACK_S = 0.2


@dataclass(frozen=True)
class Odometry:
    """Samples by rising stamp, the pose of their frame in the map, and what the twist was made of."""

    map_from_odom: NDArray[np.float64]  # (4, 4)
    samples: tuple[MotionSample, ...]
    twist_source: str


def scene_odometry(track: PoseTrack, can: CanMotion | None) -> Odometry:
    """Odometry that starts at the origin of odom, with the twist of the CAN bus where there is one.

    Its records are samples of their own, from before the first picture to the last. Elsewhere the twist
    comes from poses not after the sample (`ego_state.samples_from_poses`). A track of a single keyframe,
    the poses of six cameras within 43 ms, is too brief for that: all its samples get the mean motion of
    the whole track. This looks ahead by those milliseconds, and says so.

    Raises:
        InputError: fewer than two poses: nobody can tell how the vehicle moves.
    """
    stamps_ns = _spaced(track.stamps_ns)
    if len(stamps_ns) < 2:
        raise InputError(
            f"{len(stamps_ns)} ego pose, wanted at least two at different times to know the speed; "
            "does every sample_data row have its own ego_pose?"
        )
    poses = dict(zip(track.stamps_ns, track.fixed_from_base, strict=True))
    map_from_odom = planar_matrix(*planar_pose(poses[stamps_ns[0]]))
    odom_from_map = inverse(map_from_odom)
    odom_from_base = [odom_from_map @ poses[stamp] for stamp in stamps_ns]
    if (stamps_ns[-1] - stamps_ns[0]) < BRIEF_TRACK_S * NS_PER_S:
        samples, source = _mean_motion(stamps_ns, odom_from_base), "mean of the ego poses, too few to differ"
    else:
        samples, source = samples_from_poses(stamps_ns, odom_from_base), "ego pose differences"
    if can is None:
        return Odometry(map_from_odom, tuple(samples), source)
    measured = [_with_twist(sample, can) for sample in samples]
    count = sum(can.at(sample.stamp_ns) is not None for sample in samples)
    if count:
        source = f"CAN bus pose for {count} of {len(samples)} samples, else {source}"
    between = _records(can, stamps_ns, [poses[stamp] for stamp in stamps_ns], odom_from_map)
    merged = sorted((*measured, *between), key=lambda sample: sample.stamp_ns)
    return Odometry(map_from_odom, tuple(merged), source)


def _spaced(stamps_ns: Sequence[int]) -> list[int]:
    kept: list[int] = []
    for stamp in stamps_ns:
        if not kept or stamp - kept[-1] >= MIN_SPACING_S * NS_PER_S:
            kept.append(stamp)
    return kept


def _mean_motion(stamps_ns: Sequence[int], poses: Sequence[NDArray[np.float64]]) -> list[MotionSample]:
    """The least-squares straight motion through all poses, for every sample."""
    times_s = np.array([stamp - stamps_ns[0] for stamp in stamps_ns]) / NS_PER_S
    in_first = [inverse(poses[0]) @ pose for pose in poses]
    along_m = [pose[0, 3] for pose in in_first]
    turned_rad = [yaw_of(pose) for pose in in_first]
    speed = float(np.polyfit(times_s, along_m, 1)[0])
    yaw_rate = float(np.polyfit(times_s, turned_rad, 1)[0])
    return [MotionSample(stamp, pose, speed, yaw_rate) for stamp, pose in zip(stamps_ns, poses, strict=True)]


def _with_twist(sample: MotionSample, can: CanMotion) -> MotionSample:
    steered = replace(sample, steering_rad=can.steering_at(sample.stamp_ns))
    twist = can.at(sample.stamp_ns)
    if twist is None:
        return steered
    speed_mps, yaw_rate_radps = twist
    return replace(steered, speed_mps=speed_mps, yaw_rate_radps=yaw_rate_radps)


def _records(
    can: CanMotion,
    stamps_ns: Sequence[int],
    map_from_base: Sequence[NDArray[np.float64]],
    odom_from_map: NDArray[np.float64],
) -> list[MotionSample]:
    """The CAN bus records as samples, but those beside a pose of the track and those after it.

    Records are planar; height and tilt are those of the newest pose of the track not after the record.
    """
    samples = []
    for k, stamp in enumerate(can.stamps_ns.tolist()):
        after = bisect_right(stamps_ns, stamp)
        near = [abs(stamp - stamps_ns[i]) for i in (after - 1, after) if 0 <= i < len(stamps_ns)]
        if after == len(stamps_ns) or min(near) < MIN_SPACING_S * NS_PER_S:
            continue
        last = map_from_base[max(after - 1, 0)]
        moved = planar_matrix(*can.poses[k]) @ inverse(planar_matrix(*planar_pose(last)))
        samples.append(
            MotionSample(
                stamp,
                odom_from_map @ moved @ last,
                float(can.speed_mps[k]),
                float(can.yaw_rate_radps[k]),
                can.steering_at(stamp),
            )
        )
    return samples
