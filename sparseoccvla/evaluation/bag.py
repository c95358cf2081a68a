"""`eval bag`: what the stack plans over a bag, and how far that is from where the driver then went.

    OUT/plans.jsonl     every proposal and guarded trajectory in order; equal runs give equal bytes
    OUT/bag.json        figures, as `metrics.results` has them
    OUT/report.md       for people

A bag knows no other road users, so there is no collision figure: this is shadow mode.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NUM_STEPS, STEP_S, PlannedTrajectory, PlanProposal, Source
from sparseoccvla.data.bag import BagReader
from sparseoccvla.data.future import future_poses
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation import bag_messages
from sparseoccvla.evaluation.figures import Figures
from sparseoccvla.evaluation.follow import Follower, Repeated, read_live
from sparseoccvla.evaluation.offline import OfflineStack, Published, StackSettings
from sparseoccvla.evaluation.report import write_report
from sparseoccvla.evaluation.runner import Models
from sparseoccvla.geometry import PoseError, PoseTrack
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.agents import AgentFutures, from_base_link
from sparseoccvla.metrics.planning import PlanningMetric, PlanningProtocol, PlanSample
from sparseoccvla.metrics.results import DataOrigin, Results, write_results

PLANS = "plans.jsonl"
PROPOSAL, GUARDED, ROLLING, LIVE = "proposal", "guarded trajectory", "constant velocity", "live proposal"
SAME_M = 0.01  # a live plan is repeated if no waypoint is farther off


@dataclass(frozen=True)
class BagEvaluation:
    """What is run over which bag."""

    models: Models
    settings: StackSettings
    bag: Path
    out: Path
    command: str
    follow: Path | None = None  # a live run's recording of its outputs


def evaluate_bag(evaluation: BagEvaluation) -> Path:
    """Run it; returns the results file.

    Raises:
        InputError: a bag can't be read, another model recorded it, `out` holds something else, or no
            plan can be scored.
    """
    _make_folder(evaluation.out)
    figures = Figures("bag", "L2 to where the driver went; no collision: a bag knows no other road users")
    track = _driven(evaluation.bag)
    shadow = _Shadow(track, figures)
    with (evaluation.out / PLANS).open("w", encoding="utf-8") as lines:
        if evaluation.follow is None:
            _run(evaluation, shadow, figures, lines)
        else:
            _follow(evaluation, evaluation.follow, shadow, figures, lines)
    figures.rows = shadow.rows()
    figures.n = shadow.samples
    figures.require_items()
    info = evaluation.models.encoder.info
    stages = (evaluation.models.encoder, evaluation.models.reasoner, evaluation.models.planner)
    results = Results(
        kind="bag",
        protocol=figures.protocol,
        model_id=info.model_id,
        data=DataOrigin("bag", evaluation.bag.name, "", ()),
        command=evaluation.command,
        n=figures.n,
        skipped=len(figures.skipped),
        figures={
            "trained": {stage.info.stage: stage.info.trained_on for stage in stages if stage is not None},
            **figures.as_dict(),
        },
        hardware=f"{info.backend}: {info.backend_reason}",
    )
    write_results(evaluation.out / "bag.json", results)
    write_report(evaluation.out / "report.md", [results])
    return evaluation.out / "bag.json"


def _run(evaluation: BagEvaluation, shadow: _Shadow, figures: Figures, lines: TextIO) -> None:
    stack = OfflineStack(evaluation.models, evaluation.settings)
    sent: dict[str, int] = {source.name.lower(): 0 for source in Source if source is not Source.UNSET}
    for published in stack.run(evaluation.bag):
        lines.write(_line(published) + "\n")
        content = published.content
        if isinstance(content, PlanProposal):
            shadow.add(PROPOSAL, content.t0_ns, content.trajectory)
            shadow.add(ROLLING, content.t0_ns, _rolling(content.speed_mps))
            continue
        sent[content.source.name.lower()] += 1
        if content.source is Source.MODEL:
            shadow.add(GUARDED, content.t0_ns, content.poses)
    for t0_ns, reason in stack.refused:
        figures.skip(f"set at {t0_ns} ns", reason)
    figures.extra["trajectories"] = sent
    figures.extra["command_sources"] = sorted(stack.command_sources)


def _follow(
    evaluation: BagEvaluation, recorded: Path, shadow: _Shadow, figures: Figures, lines: TextIO
) -> None:
    sets, plans = read_live(recorded, evaluation.models.encoder.info.model_id)
    follower = Follower(evaluation.models, evaluation.settings, sets, plans)
    repeated: list[Repeated] = []
    met: set[int] = set()
    for found in follower.run(evaluation.bag):
        met.add(found.live.t0_ns)
        if found.again is None:
            figures.skip(f"live plan at {found.live.t0_ns} ns", found.reason)
            continue
        lines.write(_line(Published(found.live.t0_ns, found.again)) + "\n")
        shadow.add(LIVE, found.live.t0_ns, found.live.trajectory)
        shadow.add(PROPOSAL, found.again.t0_ns, found.again.trajectory)
        shadow.add(ROLLING, found.again.t0_ns, _rolling(found.again.speed_mps))
        repeated.append(found)
    for t0_ns in sorted(set(plans) - met):
        figures.skip(f"live plan at {t0_ns} ns", "no set with its t0 was recorded")
    figures.extra["follow"] = _agreement(repeated, len(plans))


def _agreement(repeated: list[Repeated], live: int) -> dict[str, Any]:
    """How well the live plans were met."""
    if not repeated:
        return {"live_plans": live, "repeated": 0}
    apart = np.array([found.difference_m for found in repeated])
    return {
        "live_plans": live,
        "repeated": len(repeated),
        "equal_history": sum(found.history_equal for found in repeated),
        "equal_choice": sum(found.live.chosen == found.again.chosen for found in repeated if found.again),
        f"within_{SAME_M:g}_m": int((apart <= SAME_M).sum()),
        "median_difference_m": float(np.median(apart)),
        "largest_difference_m": float(apart.max()),
    }


class _Shadow:
    """L2 of every row against the odometry of the same bag."""

    def __init__(self, track: PoseTrack, figures: Figures) -> None:
        self._track = track
        self._figures = figures
        self._metrics: dict[str, PlanningMetric] = {}
        self._nobody = AgentFutures(
            np.zeros((0, NUM_STEPS, 2)),
            np.zeros((0, NUM_STEPS)),
            np.zeros(0),
            np.zeros(0),
            np.zeros(0, int),
            np.zeros((0, NUM_STEPS), bool),
        )

    @property
    def samples(self) -> int:
        metric = self._metrics.get(PROPOSAL)
        return int(metric.samples) if metric is not None else 0

    def add(self, row: str, t0_ns: int, poses: NDArray[np.floating]) -> None:
        """Add a plan (6, 3) in base_link at t0; one that can't be scored is listed."""
        metric = self._metrics.setdefault(row, PlanningMetric(PlanningProtocol.EXACT))
        try:
            driven, valid = future_poses(self._track, t0_ns)
            metric.update(
                PlanSample(
                    from_base_link(poses)[:, :2],
                    from_base_link(driven)[:, :2],
                    valid,
                    agents=self._nobody,
                )
            )
        except (UnscorableError, PoseError) as error:
            self._figures.skip(f"{row} at {t0_ns} ns", error)

    def rows(self) -> dict[str, Any]:
        """Without collision, which nobody can know here."""
        return {
            row: {
                "n": int(metric.samples),
                **{name: value for name, value in metric.result().items() if name.startswith("L2")},
            }
            for row, metric in self._metrics.items()
            if int(metric.samples)
        }


def _driven(bag: Path) -> PoseTrack:
    """Where the vehicle went, in the odom frame."""
    poses: dict[int, NDArray[np.float64]] = {}
    with BagReader(bag) as reader:
        if "/odom" not in reader.topics:
            raise InputError(f"bag {bag} has no /odom, so nobody knows how the vehicle moved")
        for raw in reader.messages(["/odom"]):
            stamp_ns, pose, _, _ = bag_messages.odometry_sample(reader.decode(raw))
            poses[stamp_ns] = pose
    stamps = sorted(poses)
    return PoseTrack(tuple(stamps), tuple(poses[stamp] for stamp in stamps))


def _rolling(speed_mps: float) -> NDArray[np.float64]:
    poses = np.zeros((NUM_STEPS, 3))
    poses[:, 0] = speed_mps * STEP_S * np.arange(1, NUM_STEPS + 1)
    return poses


def _line(published: Published) -> str:
    """One output as a JSON object; keys and numbers always the same for the same content."""
    content = published.content
    topic = "plan/trajectory" if isinstance(content, PlannedTrajectory) else "plan/proposal"
    return json.dumps({"topic": topic, "stamp_ns": published.stamp_ns, **_plain(asdict(content))})


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case np.ndarray():
            return _plain(value.tolist())
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case Enum():
            return value.name
        case float() if not np.isfinite(value):
            return None
    return value


def _make_folder(out: Path) -> None:
    ours = {PLANS, "bag.json", "report.md"}
    if out.exists() and not (out.is_dir() and {item.name for item in out.iterdir()} <= ours):
        raise InputError(f"{out} holds something that this command did not make; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
