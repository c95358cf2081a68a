"""Camera messages become sets: one picture of each camera, of one moment, in the order of t0.

message_filters' synchronizers fall silent when one camera is missing, when a bag loops, or when a
callback raises. This one never does: every set has a deadline, a jump of time clears everything, and
nothing is called back while state is half changed.

How pictures find each other. A set belongs to a picture of its **reference camera** (the first in the
configured order that is present), whose stamp is t0. A picture of camera c belongs to the set for
which ``stamp - phase_c - t0`` is smallest, within the tolerance; ``phase_c`` is when the camera fires
after the reference. The grouping is a pure function of the pictures at hand (`group`), computed anew
for every arrival, so the order of arrival has no say in it. nuScenes needs the phases: its cameras
fire as the lidar sweeps past, 43 ms from first to last and at most 35 ms from CAM_FRONT, while two
sweeps may be 50 ms apart. Without phases such sets are told apart only if pictures arrive in order.

Time is an argument: stamps say what belongs together, ``now_ns`` (the node's clock) says how long to
wait. Deadlines are applied before a new picture is looked at, so results do not depend on how often
`poll` is called, and a runner without a clock gets the same sets.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sparseoccvla.config import ConfigError, SynchronizerConfig
from sparseoccvla.contracts import NS_PER_S, CameraSet, CameraSlot, CameraState
from sparseoccvla.counters import Counters


@dataclass(frozen=True)
class SynchronizerCounters(Counters):
    """What became of every picture and every set since the start.

    Pictures: ``pictures = used + late + duplicate + unstamped + unknown_camera + discarded + pending``.
    Sets: each is one of complete, held, blanked, partial (with MISSING cameras) or dropped.
    """

    PREFIX: ClassVar[str] = "sync"

    pictures: int = 0
    used: int = 0
    late: int = 0  # their set was closed, or would lie before one that was handed on
    duplicate: int = 0  # the same camera and stamp again
    unstamped: int = 0  # stamp zero: the driver does not fill the header
    unknown_camera: int = 0
    discarded: int = 0  # of dropped sets, and by resets
    pending: int = 0
    complete: int = 0
    held: int = 0
    blanked: int = 0
    partial: int = 0
    dropped: int = 0
    deadline: int = 0  # sets closed because their deadline passed
    overtaken: int = 0  # sets closed because a later one was complete
    overflow: int = 0  # sets closed because too many were waiting
    out_of_order: int = 0  # pictures before the newest of their camera; used where they still fit
    gaps: int = 0
    time_jumps: int = 0
    resets: int = 0  # time jumps and those asked for
    missing: dict[str, int] = field(default_factory=dict)  # closed sets without a fresh picture of it


# No equality below: payloads are arrays, and what counts is which picture it is.
@dataclass(frozen=True, eq=False)
class Picture:
    """One arrival; `camera` is its place in the configured order, `stamp_ns` is mid-exposure."""

    camera: int
    stamp_ns: int
    arrived_ns: int
    payload: Any = None


@dataclass(frozen=True, eq=False)
class Group:
    """Pictures of one moment by camera. `anchor_ns`: when the reference camera fired or should have."""

    anchor_ns: int
    pictures: dict[int, Picture]

    @property
    def first_arrival_ns(self) -> int:
        return min(picture.arrived_ns for picture in self.pictures.values())


def group(pictures: Sequence[Picture], phases_ns: Sequence[int], tolerance_ns: int) -> list[Group]:
    """Pictures sorted into sets, oldest first; a pure function, whatever the order of `pictures`.

    Each picture of the first camera founds a group. Pictures of the other cameras join the group
    nearest to their own idea of t0, one for each group and camera, nearest pairs first. What is left
    over of the second camera founds groups in turn, and so on.
    """
    cameras = len(phases_ns)
    free: list[list[Picture]] = [[] for _ in range(cameras)]
    for picture in sorted(pictures, key=lambda picture: picture.stamp_ns):
        free[picture.camera].append(picture)
    groups: list[Group] = []
    for camera in range(cameras):
        founded = [Group(p.stamp_ns - phases_ns[camera], {camera: p}) for p in free[camera]]
        anchors_ns = [member.anchor_ns for member in founded]
        for other in range(camera + 1, cameras):
            ideas_ns = [p.stamp_ns - phases_ns[other] for p in free[other]]
            joined = _nearest_pairs(anchors_ns, ideas_ns, tolerance_ns)
            for i, j in joined:
                founded[i].pictures[other] = free[other][j]
            taken = {j for _, j in joined}
            free[other] = [p for j, p in enumerate(free[other]) if j not in taken]
        groups += founded
    return sorted(groups, key=lambda member: member.anchor_ns)


def _nearest_pairs(anchors: list[int], values: list[int], tolerance: int) -> list[tuple[int, int]]:
    """Pairs (anchor, value) of two sorted lists, nearest first, each used at most once."""
    pairs = sorted(
        (abs(value - anchors[i]), i, j)
        for j, value in enumerate(values)
        for i in range(bisect_left(anchors, value - tolerance), bisect_right(anchors, value + tolerance))
    )
    chosen: list[tuple[int, int]] = []
    used_anchors: set[int] = set()
    used_values: set[int] = set()
    for _, i, j in pairs:
        if i not in used_anchors and j not in used_values:
            chosen.append((i, j))
            used_anchors.add(i)
            used_values.add(j)
    return chosen


class Synchronizer:
    """Pictures in, sets out, in the order of t0. See the module's text for the rules.

    Raises:
        ConfigError: no cameras, a camera twice, or as many offsets or phases as there are not cameras.
    """

    def __init__(self, config: SynchronizerConfig) -> None:
        self.config = config
        count = len(config.cameras)
        if not count or len(set(config.cameras)) != count:
            raise ConfigError(
                f"SynchronizerConfig.cameras is {config.cameras!r}, wanted at least one, each once"
            )
        self._offsets_ns = self._per_camera("stamp_offsets_s", config.stamp_offsets_s)
        self._phases_ns = self._per_camera("phases_s", config.phases_s)
        self._index = {name: i for i, name in enumerate(config.cameras)}
        self._tolerance_ns = round(config.tolerance_s * NS_PER_S)
        self._deadline_ns = round(config.deadline_s * NS_PER_S)
        self._time_jump_ns = round(config.time_jump_s * NS_PER_S)
        self._count: Counter[str] = Counter()
        self._missing: Counter[str] = Counter()
        self._sequence = 0
        self._after_reset = False
        self._now_ns: int | None = None
        self.last_reset_reason = ""
        self._clear()

    @property
    def counters(self) -> SynchronizerCounters:
        """A snapshot."""
        names = {item.name for item in fields(SynchronizerCounters)} - {"pending", "missing"}
        return SynchronizerCounters(
            **{name: self._count[name] for name in names},
            pending=len(self._pending),
            missing={name: self._missing[name] for name in self.config.cameras},
        )

    def add(self, camera: str, stamp_ns: int, payload: Any, now_ns: int) -> list[CameraSet]:
        """Take one picture; returns the sets that are finished by it, or by the time that has passed.

        Args:
            camera: its configured name.
            stamp_ns: header stamp; the camera's configured offset is added here.
            payload: handed through in `CameraSlot.payload`.
            now_ns: the node's clock.
        """
        sets = self.poll(now_ns)
        self._count["pictures"] += 1
        index = self._index.get(camera)
        if index is None or stamp_ns <= 0:
            self._count["unknown_camera" if index is None else "unstamped"] += 1
            return sets
        stamp_ns += self._offsets_ns[index]
        self._look_for_jump(index, stamp_ns)
        if stamp_ns in self._seen_ns[index]:
            self._count["duplicate"] += 1
            return sets
        self._seen_ns[index].append(stamp_ns)
        newest_ns = self._newest_ns[index]
        self._count["out_of_order"] += newest_ns is not None and stamp_ns < newest_ns
        self._newest_ns[index] = max(stamp_ns, newest_ns or stamp_ns)
        self._keep([*self._pending, Picture(index, stamp_ns, now_ns, payload)])
        return sets + self._hand_on_complete() + self._limit()

    def poll(self, now_ns: int) -> list[CameraSet]:
        """Close the sets whose deadline has passed; call it at `next_deadline_ns`, or often."""
        before_ns = self._now_ns
        if before_ns is not None and now_ns < before_ns - self._time_jump_ns:
            self._jump(f"the clock jumped back by {(before_ns - now_ns) / NS_PER_S:.3f} s")
        # A small step back is a caller that read the clock before another one did.
        elif before_ns is not None:
            now_ns = max(now_ns, before_ns)
        self._now_ns = now_ns
        sets: list[CameraSet] = []
        while self._groups:
            due = min(self._groups, key=lambda member: (member.first_arrival_ns, member.anchor_ns))
            if due.first_arrival_ns + self._deadline_ns > now_ns:
                break
            sets += self._close_until(due, "deadline")
        return sets

    def next_deadline_ns(self) -> int | None:
        """When `poll` will have something to do, in the node's clock; None: nothing is waiting."""
        arrivals = [member.first_arrival_ns for member in self._groups]
        return min(arrivals) + self._deadline_ns if arrivals else None

    def reset(self, reason: str) -> None:
        """Forget everything that waits; the next set says `after_reset`."""
        self._count["resets"] += 1
        self._count["discarded"] += len(self._pending)
        self.last_reset_reason = reason
        self._after_reset = True
        self._clear()

    def _clear(self) -> None:
        cameras = range(len(self.config.cameras))
        length = 4 * self.config.max_pending_sets
        self._pending: list[Picture] = []
        self._groups: list[Group] = []
        self._newest_ns: list[int | None] = [None for _ in cameras]
        self._seen_ns: list[deque[int]] = [deque(maxlen=length) for _ in cameras]
        self._last_pictures: list[Picture | None] = [None for _ in cameras]
        # Closed sets with the cameras they lacked: what comes for those is late, not a new set.
        self._closed: deque[tuple[int, frozenset[int]]] = deque(maxlen=length)
        self._last_t0_ns: int | None = None
        self._behind_run = 0

    def _per_camera(self, name: str, values_s: tuple[float, ...]) -> list[int]:
        cameras = self.config.cameras
        if values_s and len(values_s) != len(cameras):
            raise ConfigError(
                f"SynchronizerConfig.{name} has {len(values_s)} values for {len(cameras)} cameras "
                f"({', '.join(cameras)}), wanted one for each, or none"
            )
        return [round(value * NS_PER_S) for value in values_s or (0.0,) * len(cameras)]

    def _look_for_jump(self, camera: int, stamp_ns: int) -> None:
        """Reset on a stamp that says that time has begun again.

        A camera far behind its own newest stamp is proof. Far behind the last set only is a slow
        camera, unless nobody else contradicts: then one wild stamp in the future must not silence
        the cameras that go on as before.
        """
        newest_ns = self._newest_ns[camera]
        name = self.config.cameras[camera]
        if newest_ns is not None and newest_ns - stamp_ns > self._time_jump_ns:
            self._jump(f"{name} jumped back by {(newest_ns - stamp_ns) / NS_PER_S:.3f} s")
            return
        last_ns = self._last_t0_ns
        behind = last_ns is not None and last_ns - stamp_ns > self._time_jump_ns
        self._behind_run = self._behind_run + 1 if behind else 0
        if self._behind_run > len(self.config.cameras):
            self._jump(f"{self._behind_run} pictures in a row lie far before the last set")

    def _jump(self, reason: str) -> None:
        self._count["time_jumps"] += 1
        self.reset(reason)

    def _keep(self, pictures: list[Picture]) -> None:
        self._pending = pictures
        self._groups = group(pictures, self._phases_ns, self._tolerance_ns)

    def _hand_on_complete(self) -> list[CameraSet]:
        sets: list[CameraSet] = []
        wanted = len(self.config.cameras)
        while complete := next((m for m in self._groups if len(m.pictures) == wanted), None):
            sets += self._close_until(complete, "overtaken")
        return sets

    def _limit(self) -> list[CameraSet]:
        sets: list[CameraSet] = []
        while len(self._groups) > self.config.max_pending_sets:
            sets += self._close_until(self._groups[0], "overflow")
        return sets

    def _close_until(self, last: Group, why: str) -> list[CameraSet]:
        """Close `last` and, before it, all that are older: sets leave in the order of t0."""
        closing = self._groups[: self._groups.index(last) + 1]
        leaving = {id(picture) for member in closing for picture in member.pictures.values()}
        self._keep([picture for picture in self._pending if id(picture) not in leaving])
        return [made for member in closing if (made := self._close(member, why)) is not None]

    def _close(self, member: Group, why: str) -> CameraSet | None:
        """What becomes of one group: a set by policy, or None."""
        on_time = {c: p for c, p in member.pictures.items() if not self._is_late(p, member)}
        t0_ns = on_time[min(on_time)].stamp_ns if on_time else 0
        if self._last_t0_ns is not None and t0_ns <= self._last_t0_ns:
            on_time = {}
        self._count["late"] += len(member.pictures) - len(on_time)
        for picture in member.pictures.values():
            before = self._last_pictures[picture.camera]
            if before is None or before.stamp_ns < picture.stamp_ns:
                self._last_pictures[picture.camera] = picture
        if not on_time:
            return None
        lacking = frozenset(range(len(self.config.cameras))) - frozenset(on_time)
        self._closed.append((t0_ns - self._phases_ns[min(on_time)], lacking))
        self._missing.update(self.config.cameras[camera] for camera in lacking)
        self._count[why] += bool(lacking)
        if lacking and self.config.policy == "drop":
            self._count["dropped"] += 1
            self._count["discarded"] += len(on_time)
            return None
        return self._make_set(t0_ns, on_time)

    def _make_set(self, t0_ns: int, pictures: dict[int, Picture]) -> CameraSet:
        slots = tuple(self._slot(c, pictures.get(c), t0_ns) for c in range(len(self.config.cameras)))
        states = {slot.state for slot in slots}
        kind = next(
            name
            for state, name in (
                (CameraState.MISSING, "partial"),
                (CameraState.BLANK, "blanked"),
                (CameraState.HELD, "held"),
                (CameraState.FRESH, "complete"),
            )
            if state in states
        )
        gap = self._last_t0_ns is not None and t0_ns - self._last_t0_ns > self.config.max_gap_s * NS_PER_S
        self._count[kind] += 1
        self._count["used"] += len(pictures)
        self._count["gaps"] += gap
        made = CameraSet(
            t0_ns, self.config.cameras[min(pictures)], slots, self._sequence, self._after_reset or gap
        )
        self._sequence += 1
        self._last_t0_ns = t0_ns
        self._after_reset = False
        return made

    def _slot(self, camera: int, picture: Picture | None, t0_ns: int) -> CameraSlot:
        name = self.config.cameras[camera]
        if picture is not None:
            return CameraSlot(name, CameraState.FRESH, picture.stamp_ns, picture.payload)
        last = self._last_pictures[camera]
        max_hold_ns = round(self.config.max_hold_s * NS_PER_S)
        match self.config.policy:
            case "blank":
                return CameraSlot(name, CameraState.BLANK, 0)
            case "hold" if last is not None and t0_ns - last.stamp_ns <= max_hold_ns:
                return CameraSlot(name, CameraState.HELD, last.stamp_ns, last.payload)
        return CameraSlot(name, CameraState.MISSING, 0)

    def _is_late(self, picture: Picture, member: Group) -> bool:
        """True if the set this picture was made for has been closed without it.

        Beside a reference picture the nearer of the two sets has it.
        """
        idea_ns = picture.stamp_ns - self._phases_ns[picture.camera]
        reach_ns = self._tolerance_ns
        if picture.camera != 0 and 0 in member.pictures:
            reach_ns = min(reach_ns, abs(idea_ns - member.anchor_ns))
        return any(
            picture.camera in lacking and abs(idea_ns - anchor_ns) <= reach_ns
            for anchor_ns, lacking in self._closed
        )
