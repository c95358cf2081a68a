"""What an agent means to do: a path, a wish, and steps that wait for their moment."""

from __future__ import annotations

from dataclasses import dataclass

from sparseoccvla.world.curves import Path


@dataclass(frozen=True)
class Step:
    """One change of mind. It waits until all its conditions hold, then the next step begins to wait."""

    after_s: float = 0.0  # since the step before, or since the start
    ego_gap_m: float = float("inf")  # the ego's bumper is at most this far behind, along the ego's path
    ego_arrival: tuple[float, float] | None = (
        None  # the ego is this many seconds (2nd) from its station (1st)
    )
    speed_mps: float | None = None  # a new wish
    braking_mps2: float | None = None  # how hard to brake toward it; None: comfortably
    offset_m: float | None = None  # a new offset from the path
    over_s: float = 3.0  # how long the shift takes
    signal: int | None = None  # turn signal from now on: 1 left, -1 right, 0 off; it ends with a shift


@dataclass(frozen=True)
class Plan:
    """An agent's path and wishes. Stations are those of its center."""

    path: Path
    start_m: float
    speed_mps: float  # at the start
    wish_mps: float
    offset_m: float = 0.0  # left of the path
    reactive: bool = True  # keeps its distance; people on foot don't
    priority: int = 4  # at a junction the higher one goes first
    steps: tuple[Step, ...] = ()
    # Own station and the ego's: the speed is chosen so that both are reached at the same time.
    meets: tuple[float, float] | None = None
    hazard: str = ""  # the name of the hazard this belongs to, "" for everyday traffic
