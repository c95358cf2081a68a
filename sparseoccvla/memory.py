"""Temporal memory: the ring of past feature sets, and which of them are the history frames of t0.

Frames are `HISTORY_INTERVAL_S` apart whatever the camera rate: a network trained on keyframes at 2 Hz
gets the same spacing from cameras at 12 Hz. The selector is a function of stamps alone, and training
calls the same one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparseoccvla.config import MemoryConfig
from sparseoccvla.contracts import HISTORY_INTERVAL_S, NS_PER_S
from sparseoccvla.counters import Counters


def select_history(
    stamps_ns: Sequence[int],
    t0_ns: int,
    frames: int,
    tolerance_s: float,
    jitter_s: Sequence[float] = (),
) -> list[int | None]:
    """Which stamp is each history frame of t0, newest first; indices into `stamps_ns`.

    Frame 0 is t0 itself and nothing else. Frame k is the stamp nearest to t0 - 0.5 k, among those
    within the tolerance of it; of two equally near ones the newer. None is a masked frame.

    Args:
        stamps_ns: candidates, in any order.
        t0_ns: the moment asked for.
        frames: T, how many frames the network takes, t0's own among them.
        tolerance_s: farthest a frame may lie from its time.
        jitter_s: training only: moves the time that is aimed at, one value for each of the T frames
            (the first is not used); the tolerance stays where it was.
    """
    if jitter_s and len(jitter_s) != frames:
        raise ValueError(f"jitter_s has {len(jitter_s)} values for {frames} frames, wanted one for each")
    tolerance_ns = round(tolerance_s * NS_PER_S)
    chosen: list[int | None] = [next((i for i, stamp in enumerate(stamps_ns) if stamp == t0_ns), None)]
    for k in range(1, frames):
        target_ns = t0_ns - round(HISTORY_INTERVAL_S * k * NS_PER_S)
        aim_ns = target_ns + (round(jitter_s[k] * NS_PER_S) if jitter_s else 0)
        near = [i for i, stamp in enumerate(stamps_ns) if abs(stamp - target_ns) <= tolerance_ns]
        chosen.append(min(near, key=lambda i: (abs(stamps_ns[i] - aim_ns), -stamps_ns[i]), default=None))
    return chosen


@dataclass(frozen=True)
class MemoryCounters(Counters):
    """What the memory holds and how often it was cleared."""

    PREFIX: ClassVar[str] = "memory"

    entries: int = 0
    added: int = 0
    thinned: int = 0
    cleared: int = 0


class FeatureMemory[Payload]:
    """Feature sets of the last (T - 1) * 0.5 s plus tolerance and slack, by t0; for T = 1 the last one.

    Args:
        config: tolerance and bounds.
        frames: T of the network.
    """

    def __init__(self, config: MemoryConfig, frames: int) -> None:
        if frames < 1:
            raise ValueError(f"frames is {frames}, wanted at least 1: the set at t0 itself")
        self.config = config
        self.frames = frames
        self.last_clear_reason = ""
        self._entries: list[tuple[int, Payload]] = []  # by rising t0
        self._added = self._thinned = self._cleared = 0
        beyond_s = config.tolerance_s + config.slack_s if frames > 1 else 0.0
        self._kept_ns = round((HISTORY_INTERVAL_S * (frames - 1) + beyond_s) * NS_PER_S)

    @property
    def counters(self) -> MemoryCounters:
        """A snapshot."""
        return MemoryCounters(len(self._entries), self._added, self._thinned, self._cleared)

    def add(self, t0_ns: int, payload: Payload) -> None:
        """Take the feature set of t0, forgetting what is too old for any later set.

        Raises:
            ValueError: t0 is not after the newest; after a time jump `clear` comes first.
        """
        if self._entries and t0_ns <= self._entries[-1][0]:
            raise ValueError(
                f"feature set at {t0_ns} ns is not after the newest at {self._entries[-1][0]} ns; "
                "clear the memory after a time jump"
            )
        self._thin()
        self._entries.append((t0_ns, payload))
        self._added += 1
        self._entries = [entry for entry in self._entries if t0_ns - entry[0] <= self._kept_ns]

    def select(self, t0_ns: int) -> list[Payload | None]:
        """The T history frames of t0, newest first; None is masked. See `select_history`."""
        stamps_ns = [stamp_ns for stamp_ns, _ in self._entries]
        chosen = select_history(stamps_ns, t0_ns, self.frames, self.config.tolerance_s)
        return [None if i is None else self._entries[i][1] for i in chosen]

    def clear(self, reason: str) -> None:
        """Forget everything: a time jump, another scene, another calibration, a long gap."""
        self._cleared += 1
        self.last_clear_reason = reason
        self._entries.clear()

    def _thin(self) -> None:
        """Drop the newest entry if it follows the one before it too closely: a fast camera's feature
        maps would fill the memory of the device, and no network asks for frames that close.
        """
        if len(self._entries) < 2:
            return
        spacing_ns = self._entries[-1][0] - self._entries[-2][0]
        if spacing_ns < self.config.min_spacing_s * NS_PER_S:
            self._entries.pop()
            self._thinned += 1
