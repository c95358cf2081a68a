"""How many camera sets a bag holds, counted without the synchronizer that the stack uses.

A demo that counts its own inputs with its own synchronizer could lose a set and never know.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from sparseoccvla.config import SynchronizerConfig
from sparseoccvla.contracts import CAMERA_NAMES, NS_PER_S
from sparseoccvla.data.bag import BagError, BagReader
from sparseoccvla.data.messages import camera_topics, stamp_ns


@dataclass(frozen=True)
class CameraSets:
    """`t0_ns` of every picture of the reference camera, and which of them have all other cameras."""

    reference_camera: str
    t0_ns: tuple[int, ...]
    complete_t0_ns: tuple[int, ...]


def count_camera_sets(
    bag: Path,
    cameras: tuple[str, ...] = CAMERA_NAMES,
    tolerance_s: float = SynchronizerConfig().tolerance_s,
) -> CameraSets:
    """Match header stamps: each picture of the first camera with the nearest one of every other.

    A picture belongs to at most one set. Sets need not be one after another in the bag.

    Raises:
        BagError: no readable bag, or the first camera has no pictures in it.
    """
    with BagReader(bag) as reader:
        topics = {camera_topics(camera)[0]: camera for camera in cameras}
        present = [topic for topic in topics if topic in reader.topics]
        stamps: dict[str, list[int]] = {camera: [] for camera in cameras}
        for message in reader.messages(present) if present else ():
            stamps[topics[message.topic]].append(stamp_ns(reader.decode(message).header.stamp))
    reference, *others = cameras
    if not stamps[reference]:
        raise BagError(
            f"bag {bag} has no pictures on {camera_topics(reference)[0]}; "
            f"it has {', '.join(sorted(reader.topics))}"
        )
    all_t0_ns = sorted(stamps[reference])
    complete = set(all_t0_ns)
    for camera in others:
        complete &= _matched(all_t0_ns, sorted(stamps[camera]), round(tolerance_s * NS_PER_S))
    return CameraSets(reference, tuple(all_t0_ns), tuple(t for t in all_t0_ns if t in complete))


def _matched(all_t0_ns: list[int], stamps_ns: list[int], tolerance_ns: int) -> set[int]:
    """The reference stamps that are the nearest one of some picture, within the tolerance."""
    matched = set()
    for stamp in stamps_ns:
        place = bisect_left(all_t0_ns, stamp)
        nearest = min(all_t0_ns[max(place - 1, 0) : place + 1], key=lambda t0: abs(t0 - stamp))
        if abs(nearest - stamp) <= tolerance_ns:
            matched.add(nearest)
    return matched
