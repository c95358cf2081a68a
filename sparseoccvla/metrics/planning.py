"""L2 and collision of planned trajectories under seven named protocols.

Six are published evaluators, kept with their quirks because published numbers have them; `exact` is
ours. All compare the plan with where the driver went at 0.5, 1.0 ... 3.0 s, and leave out collision at
steps where the driver's own box hits something (annotations overlap). `docs/metrics.md` has the table.

Sources: ST-P3 `stp3/metrics.py`, AD-MLP `deps/stp3`, UniAD `planning_metrics.py`, VAD `metric_stp3.py`,
SparseDrive `planning_eval.py`, OmniDrive `planning_utils.py`. Frame: see `agents.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NUM_STEPS
from sparseoccvla.geometry import headings_along
from sparseoccvla.metrics.additive import STATE, Additive, UnscorableError, zeros
from sparseoccvla.metrics.agents import LIDAR_FORWARD_M, AgentFutures, box_corners
from sparseoccvla.metrics.polygons import rectangles_touch

EGO_WIDTH_M, EGO_LENGTH_M = 1.85, 4.084  # the Renault Zoe of nuScenes, as all evaluators have it
CENTER_AHEAD_OF_LIDAR_M = 0.5
HORIZON_STEPS = {"1s": 2, "2s": 4, "3s": 6}


class PlanningProtocol(StrEnum):
    """Whose rules count."""

    STP3 = "stp3"
    ADMLP = "admlp"
    UNIAD = "uniad"
    VAD = "vad"
    SPARSEDRIVE = "sparsedrive"
    OMNIDRIVE = "omnidrive"
    EXACT = "exact"

    @property
    def needs(self) -> str:
        """What a sample must carry: `raster`, `fine_raster` or `agents`."""
        match self:
            case PlanningProtocol.SPARSEDRIVE | PlanningProtocol.EXACT:
                return "agents"
            case PlanningProtocol.OMNIDRIVE:
                return "fine_raster"
            case _:
                return "raster"


@dataclass(frozen=True)
class PlanSample:
    """One plan, where the driver went, and who else was there. Meters, x right, y forward."""

    predicted_m: NDArray[np.floating]  # (6, 2)
    driven_m: NDArray[np.floating]  # (6, 2)
    driven_valid: NDArray[np.bool_] | None = None  # (6,) None: all
    raster: NDArray[np.bool_] | None = None  # (6, 200, 200) as `agents.vad_raster`
    fine_raster: NDArray[np.bool_] | None = None  # (6, 1000, 1000) as `agents.omnidrive_raster`
    agents: AgentFutures | None = None

    def check(self, protocol: PlanningProtocol) -> NDArray[np.bool_]:
        """Which steps of the driven path are valid (6,).

        Raises:
            UnscorableError: a wrong shape, a value that is not finite, a future that the protocol does
                not take, or no obstacles of the kind it needs.
        """
        valid = self.driven_valid if self.driven_valid is not None else np.ones(NUM_STEPS, bool)
        if not valid.any() or (not valid.all() and protocol is not PlanningProtocol.UNIAD):
            raise UnscorableError(
                f"no valid future: {int(valid.sum())} of {NUM_STEPS} driven steps are known; "
                f"{protocol} wants {'at least one' if protocol is PlanningProtocol.UNIAD else 'all'}"
            )
        for name, path in (("prediction", self.predicted_m), ("driven path", self.driven_m[valid])):
            if name == "prediction" and path.shape != (NUM_STEPS, 2):
                raise UnscorableError(f"the prediction has shape {path.shape}, wanted ({NUM_STEPS}, 2)")
            if not np.isfinite(path).all():
                raise UnscorableError(
                    f"the {name} has {int((~np.isfinite(path)).sum())} values that are not finite"
                )
        if getattr(self, protocol.needs) is None:
            raise UnscorableError(f"{protocol} needs obstacles as {protocol.needs}, which are missing")
        return valid


@dataclass(frozen=True)
class StepScores:
    """What happened at each of the 6 steps."""

    l2_m: NDArray[np.float64]
    box_hits: NDArray[np.bool_]  # the plan's box, where the driven one is free
    center_hits: NDArray[np.bool_] | None  # the plan's center cell, likewise; None: not defined
    driven_hits: NDArray[np.bool_]  # the driven box: steps left out of the two above


def score_steps(sample: PlanSample, protocol: PlanningProtocol) -> StepScores:
    """Distances and collisions of one plan; see `PlanSample.check` for what is refused."""
    valid = sample.check(protocol)
    driven = np.where(valid[:, None], sample.driven_m, 0.0)
    driven_hits = hits(driven, sample, protocol) & valid
    taken = valid & ~driven_hits
    center = None
    if protocol in (PlanningProtocol.STP3, PlanningProtocol.ADMLP, PlanningProtocol.UNIAD):
        center = _center_hits(sample.predicted_m, _occupied(sample, protocol), protocol) & taken
    return StepScores(
        l2_m=np.linalg.norm(sample.predicted_m - driven, axis=1) * valid,
        box_hits=hits(sample.predicted_m, sample, protocol) & taken,
        center_hits=center,
        driven_hits=driven_hits,
    )


def hits(path_m: NDArray[np.floating], sample: PlanSample, protocol: PlanningProtocol) -> NDArray[np.bool_]:
    """(6,) whether the vehicle's box on a path (6, 2) touches an obstacle, by the protocol's geometry."""
    match protocol:
        case PlanningProtocol.SPARSEDRIVE:
            return _polygon_hits(path_m, _sparsedrive_headings(path_m), sample)
        case PlanningProtocol.EXACT:
            # Ours: the direction of travel at each step, kept while standing.
            forward_left = np.stack([path_m[:, 1], -path_m[:, 0]], axis=1)
            return _polygon_hits(path_m, headings_along(forward_left) + np.pi / 2, sample)
        case PlanningProtocol.OMNIDRIVE:
            return _fine_hits(path_m, _occupied(sample, protocol))
        case _:
            return _coarse_hits(path_m, _occupied(sample, protocol), protocol)


def _occupied(sample: PlanSample, protocol: PlanningProtocol) -> NDArray[np.bool_]:
    raster = sample.fine_raster if protocol is PlanningProtocol.OMNIDRIVE else sample.raster
    if raster is None:  # `check` has refused it; this is for the type checker
        raise UnscorableError(f"{protocol} needs obstacles as {protocol.needs}, which are missing")
    cells = 1000 if protocol is PlanningProtocol.OMNIDRIVE else 200
    if raster.shape != (NUM_STEPS, cells, cells):
        raise UnscorableError(f"the raster has shape {raster.shape}, wanted ({NUM_STEPS}, {cells}, {cells})")
    # ST-P3 and AD-MLP mirror x, so their raster is mirrored too; both count rows from behind.
    match protocol:
        case PlanningProtocol.STP3 | PlanningProtocol.ADMLP:
            return raster[:, ::-1, ::-1]
        case PlanningProtocol.UNIAD:
            return raster[:, ::-1]
        case _:
            return raster


def footprint(cell_m: float, center_ahead_m: float) -> NDArray[np.int64]:
    """Cells (F, 2), forward and sideways index, whose centers the box at the origin covers; heading ahead.

    The grid reaches from -50 to 50 m. 0.5 m cells and 0.5 m ahead: 32 cells, 4.0 x 2.0 m.
    """
    first_m = -50 + cell_m / 2

    def covered(low_m: float, high_m: float) -> NDArray[np.int64]:
        return np.arange(
            np.ceil((low_m - first_m) / cell_m), np.floor((high_m - first_m) / cell_m) + 1
        ).astype(np.int64)

    ahead = covered(center_ahead_m - EGO_LENGTH_M / 2, center_ahead_m + EGO_LENGTH_M / 2)
    across = covered(-EGO_WIDTH_M / 2, EGO_WIDTH_M / 2)
    return np.stack(np.meshgrid(ahead, across, indexing="ij"), axis=-1).reshape(-1, 2)


def _coarse_hits(
    path_m: NDArray[np.floating], occupied: NDArray[np.bool_], protocol: PlanningProtocol
) -> NDArray[np.bool_]:
    """The footprint moved to each waypoint, never turned; cells beyond the grid count as its edge's."""
    path = np.asarray(path_m, np.float32).astype(float)
    cells = footprint(0.5, CENTER_AHEAD_OF_LIDAR_M)
    forward = path[:, 1:2] / 0.5 + cells[:, 0]
    match protocol:
        case PlanningProtocol.STP3 | PlanningProtocol.ADMLP:
            rows, columns = forward, -path[:, :1] / 0.5 + cells[:, 1]
        case PlanningProtocol.VAD:
            rows, columns = 200 - forward, path[:, :1] / 0.5 + cells[:, 1]
        case _:
            rows, columns = forward, path[:, :1] / 0.5 + cells[:, 1]
    return _any_occupied(occupied, rows, columns)


def _any_occupied(
    occupied: NDArray[np.bool_], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.bool_]:
    row, column = (
        np.clip(np.trunc(cells).astype(np.int64), 0, occupied.shape[1] - 1) for cells in (rows, columns)
    )
    return occupied[np.arange(len(occupied))[:, None], row, column].any(axis=1)


def _center_hits(
    path_m: NDArray[np.floating], occupied: NDArray[np.bool_], protocol: PlanningProtocol
) -> NDArray[np.bool_]:
    """Whether the cell of each waypoint is occupied; outside the grid nothing is."""
    path = np.asarray(path_m, np.float32)
    x = path[:, 0] if protocol is PlanningProtocol.UNIAD else -path[:, 0]
    row, column = (
        np.trunc((value + np.float32(49.75)) / np.float32(0.5)).astype(int) for value in (path[:, 1], x)
    )
    inside = (row >= 0) & (row < 200) & (column >= 0) & (column < 200)
    result = np.zeros(len(path), bool)
    step = np.flatnonzero(inside)
    result[step] = occupied[step, row[step], column[step]]
    return result


def _fine_hits(path_m: NDArray[np.floating], occupied: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """OmniDrive: 0.1 m cells, turned by the step's direction unless it is shorter than 1 m."""
    path = np.stack([path_m[:, 1], -path_m[:, 0]], axis=1).astype(float)  # forward, left of the rear axle
    steps = np.diff(path, axis=0, prepend=np.zeros((1, 2)))
    moved = np.linalg.norm(steps, axis=1) >= 1
    heading = np.where(moved, np.arctan2(steps[:, 1], steps[:, 0]), 0.0)
    cosine, sine = np.cos(heading)[:, None], np.sin(heading)[:, None]
    # Cell numbers from the grid's middle, which is between cells 499 and 500.
    ahead, across = (footprint(0.1, CENTER_AHEAD_OF_LIDAR_M + LIDAR_FORWARD_M) - 499.5).T
    columns = np.round(cosine * ahead - sine * across + 499.5)
    rows = np.round(sine * ahead + cosine * across + 499.5)
    # The original divides by a single-precision 0.1, which decides waypoints on a cell's edge.
    cell_m = float(np.float32(0.1))
    return _any_occupied(occupied, path[:, 1:] / cell_m + rows, path[:, :1] / cell_m + columns)


def _polygon_hits(
    path_m: NDArray[np.floating], headings_rad: NDArray[np.floating], sample: PlanSample
) -> NDArray[np.bool_]:
    """Exact rectangles, any kind of agent, the box turned to its heading."""
    agents = sample.agents
    if agents is None:
        raise UnscorableError("exact collision needs agents, which are missing")
    ahead = np.stack([np.cos(headings_rad), np.sin(headings_rad)], axis=1) * CENTER_AHEAD_OF_LIDAR_M
    boxes = box_corners(path_m + ahead, headings_rad, EGO_LENGTH_M, EGO_WIDTH_M)
    everyone = np.ones(len(agents.kinds), bool)
    return np.array(
        [rectangles_touch(box, agents.corners_m(step, everyone)).any() for step, box in enumerate(boxes)]
    )


def _sparsedrive_headings(path_m: NDArray[np.floating]) -> NDArray[np.float64]:
    """Central differences along the path from the origin; straight ahead if it spans less than 0.5 m."""
    if np.linalg.norm(path_m[-1] - path_m[0]) < 0.5:
        return np.full(len(path_m), np.pi / 2)
    path = np.concatenate([np.zeros((1, 2)), path_m])
    steps = np.concatenate([path[2:] - path[:-2], path[-1:] - path[-2:-1]])
    return np.arctan2(steps[:, 1], steps[:, 0])


@dataclass
class PlanningMetric(Additive):
    """Sums over samples at each step, and whether anything was hit up to each horizon."""

    protocol: PlanningProtocol
    l2_m: NDArray[np.float64] = field(default_factory=zeros(NUM_STEPS), metadata=STATE)
    box_hits: NDArray[np.float64] = field(default_factory=zeros(NUM_STEPS), metadata=STATE)
    center_hits: NDArray[np.float64] = field(default_factory=zeros(NUM_STEPS), metadata=STATE)
    driven_hits: NDArray[np.float64] = field(default_factory=zeros(NUM_STEPS), metadata=STATE)
    any_hits: NDArray[np.float64] = field(default_factory=zeros(len(HORIZON_STEPS)), metadata=STATE)
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)

    def update(self, sample: PlanSample) -> None:
        """Add one plan.

        Raises:
            UnscorableError: see `PlanSample.check`.
        """
        steps = score_steps(sample, self.protocol)
        self.l2_m = self.l2_m + steps.l2_m
        self.box_hits = self.box_hits + steps.box_hits
        if steps.center_hits is not None:
            self.center_hits = self.center_hits + steps.center_hits
        self.driven_hits = self.driven_hits + steps.driven_hits
        self.any_hits = self.any_hits + [steps.box_hits[:end].any() for end in HORIZON_STEPS.values()]
        self.samples = self.samples + 1

    def result(self) -> dict[str, Any]:
        """L2 in meters and collision as a fraction at 1, 2, 3 s and their mean, by the protocol's averaging.

        Keys: L2_1s.., L2_avg, obj_box_col_1s.., obj_box_col_avg, obj_col_* (center cell, where the
        protocol has one), obj_box_col_any_* (exact: hit anything up to the horizon), per-step lists, and
        driven_col_per_step, the share of steps left out because the driven box hits something.
        """
        count = max(int(self.samples), 1)
        l2, box = self.l2_m / count, self.box_hits / count
        figures: dict[str, Any] = dict(self._at_horizons("L2", l2))
        match self.protocol:
            case PlanningProtocol.OMNIDRIVE:
                figures |= _with_average("obj_box_col", self.any_hits / count)
            case PlanningProtocol.EXACT:
                figures |= self._at_horizons("obj_box_col", box)
                figures |= _with_average("obj_box_col_any", self.any_hits / count)
            case PlanningProtocol.STP3 | PlanningProtocol.ADMLP | PlanningProtocol.UNIAD:
                figures |= self._at_horizons("obj_box_col", box)
                figures |= self._at_horizons("obj_col", self.center_hits / count)
            case _:
                figures |= self._at_horizons("obj_box_col", box)
        figures["L2_per_step"] = l2.tolist()
        figures["obj_box_col_per_step"] = box.tolist()
        figures["driven_col_per_step"] = (self.driven_hits / count).tolist()
        return figures

    def _at_horizons(self, name: str, per_step: NDArray[np.float64]) -> dict[str, float]:
        at_step = self.protocol is PlanningProtocol.UNIAD
        return _with_average(
            name,
            np.array(
                [per_step[end - 1] if at_step else per_step[:end].mean() for end in HORIZON_STEPS.values()]
            ),
        )


def _with_average(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    figures = {f"{name}_{horizon}": float(v) for horizon, v in zip(HORIZON_STEPS, values, strict=True)}
    return figures | {f"{name}_avg": float(values.mean())}
