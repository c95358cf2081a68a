"""Plans against what the driver did, beside rows that need no eyes, overall and on event frames.

Event frames are those between a hazard's becoming visible and the driver's reacting to it: elsewhere
speed and past say nearly everything, so an open-loop figure over all frames shows little sight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NS_PER_S, NUM_COMMANDS, NUM_MODES, NUM_STEPS
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.samples import Truth
from sparseoccvla.evaluation.anchors import AnchorMetric
from sparseoccvla.evaluation.figures import Figures, PerScene, Said, keyframes
from sparseoccvla.evaluation.predictions import Plan, Prediction
from sparseoccvla.geometry import planar_pose
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.agents import (
    LIDAR_FORWARD_M,
    AgentKind,
    from_base_link,
    omnidrive_raster,
    vad_raster,
)
from sparseoccvla.metrics.baselines import constant_velocity
from sparseoccvla.metrics.consistency import ConsistencyMetric, PlacedPlan
from sparseoccvla.metrics.ego_only import EgoOnlyPlanner
from sparseoccvla.metrics.planning import PlanningMetric, PlanningProtocol, PlanSample

WITHOUT_REASONING = "null token"
CONSTANT_VELOCITY = "constant velocity"
EGO_ONLY = "ego-only"
NEVER_MOVE = "never move"
EXPERT = "expert"
ALL, EVENTS = "all frames", "event frames"
DEFAULT = PlanningProtocol.EXACT

Metrics = dict[tuple[str, PlanningProtocol], PerScene[PlanningMetric]]  # by subset and protocol


@dataclass(frozen=True)
class PlanningScores:
    """Figures, and for each keyframe how far the model's plan was off at 3 s, for the worst moments."""

    figures: Figures
    errors_m: dict[int, float]  # by place in the split


def score_planning(
    cache: SampleCache,
    runs: list[Said],
    count: int,
    ego_only: EgoOnlyPlanner,
    anchors_m: NDArray[np.floating],
    events: NDArray[np.bool_],
    progress: Callable[[int], None],
) -> PlanningScores:
    """Figures of the first `count` keyframes.

    Args:
        cache: the split.
        runs: what was said; the first is the model as it is.
        count: keyframes.
        ego_only: trained on the training split.
        anchors_m: (3, 6, S, 2) of the planner.
        events: (count,) event frames; none where the data set does not tell.
        progress: called with 1 for each keyframe.
    """
    figures = Figures("planning", f"{DEFAULT} and named protocols")
    subsets = [ALL, EVENTS] if events.any() else [ALL]
    metrics: Metrics = {
        (subset, protocol): PerScene(_new_metric(protocol))
        for subset in subsets
        for protocol in PlanningProtocol
    }
    anchors = {subset: PerScene(AnchorMetric) for subset in subsets}
    by_hazard = PerScene(_new_metric(DEFAULT))  # rows "kind: row", event frames only
    consistency = PerScene(ConsistencyMetric)
    errors_m: dict[int, float] = {}
    model = runs[0].name
    for scene, indices, said in keyframes(cache, runs, count):
        for place, index in enumerate(indices):
            truth = cache.truth(index)
            member = [ALL, EVENTS] if events[index] else [ALL]
            try:
                plans = _plans(truth, {name: found[place] for name, found in said.items()}, model, ego_only)
                for row, plan in plans.items():
                    if row != EXPERT or truth.future_valid.all():
                        consistency.at(row, scene).update(_placed(cache, index, truth, plan))
                scored = _score(truth, plans, member, scene, metrics)
                for kind in truth.hazards if events[index] else ():
                    for row in (model, EGO_ONLY):
                        by_hazard.at(f"{kind}: {row}", scene).merge(scored[row])
                _score_anchors(truth, said[model][place], anchors_m, member, scene, anchors)
                errors_m[index] = float(
                    np.linalg.norm(plans[model].trajectory[-1, :2] - truth.future[-1, :2])
                )
                figures.n += 1
            except UnscorableError as error:
                figures.skip(truth.token, error)
            progress(1)
    figures.require_items()
    for subset in subsets:
        if metrics[subset, DEFAULT].rows:
            figures.rows[subset] = _rows(subset, metrics)
    figures.extra["n_event_frames"] = _samples(metrics, EVENTS, model) if EVENTS in subsets else 0
    figures.extra["by_hazard"] = {
        row: {
            name: value
            for name, value in by_hazard.pooled(row).result().items()
            if name in ("L2_avg", "L2_3s", "obj_box_col_avg", "obj_box_col_any_3s")
        }
        | {"n": int(by_hazard.pooled(row).samples)}
        for row in sorted(by_hazard.rows)
    }
    figures.extra["consistency"] = {row: consistency.pooled(row).result() for row in consistency.rows}
    figures.extra["anchors"] = {
        subset: {row: anchors[subset].pooled(row).result() for row in anchors[subset].rows}
        for subset in subsets
    }
    figures.differences = _differences(metrics, anchors, figures, model, [run.name for run in runs[1:]])
    return PlanningScores(figures, errors_m)


def _new_metric(protocol: PlanningProtocol) -> Callable[[], PlanningMetric]:
    return lambda: PlanningMetric(protocol)


def _plans(
    truth: Truth, said: Mapping[str, Prediction], model: str, ego_only: EgoOnlyPlanner
) -> dict[str, Plan]:
    """The plan of every row in base_link at t0; blind rows have no candidates but their one."""
    plans: dict[str, Plan] = {}
    for name, prediction in said.items():
        if prediction.failure or prediction.plan is None:
            raise UnscorableError(prediction.failure or "there is no prediction")
        plans[name] = prediction.plan
    without = said[model].plan_without_reasoning
    assert without is not None
    plans[WITHOUT_REASONING] = without
    for name, trajectory in (
        (CONSTANT_VELOCITY, constant_velocity(truth.ego)),
        (EGO_ONLY, ego_only.plan(truth.ego, truth.command)),
        (NEVER_MOVE, np.zeros((NUM_STEPS, 3))),
        (EXPERT, truth.future),
    ):
        plans[name] = Plan(trajectory[None].astype(np.float32), np.ones(1, np.float32), 0)
    return plans


def _score(
    truth: Truth, plans: Mapping[str, Plan], member: list[str], scene: str, metrics: Metrics
) -> dict[str, PlanningMetric]:
    """Add one keyframe to every protocol that takes it; the default's metric of each row comes back.

    Raises:
        UnscorableError: ours does not take it.
    """
    single: dict[tuple[str, PlanningProtocol], PlanningMetric] = {}
    samples = samples_of(truth)
    for protocol in sorted(PlanningProtocol, key=lambda protocol: protocol is not DEFAULT):
        sample, origin_m = samples[protocol], _origin_m(protocol)
        for row, plan in plans.items():
            metric = PlanningMetric(protocol)
            predicted = from_base_link(plan.trajectory, origin_m)[:, :2]
            try:
                metric.update(replace(sample, predicted_m=predicted))
            except UnscorableError:
                if protocol is DEFAULT:
                    raise
                continue
            single[row, protocol] = metric
    for (row, protocol), metric in single.items():
        for subset in member:
            metrics[subset, protocol].at(row, scene).merge(metric)
    return {row: metric for (row, protocol), metric in single.items() if protocol is DEFAULT}


def samples_of(truth: Truth) -> dict[PlanningProtocol, PlanSample]:
    """A keyframe as each protocol wants it, with a plan that stands still."""
    agents = truth.agents.futures()
    nothing = np.zeros((NUM_STEPS, 2))
    lidar = PlanSample(
        nothing,
        from_base_link(truth.future)[:, :2],
        truth.future_valid,
        raster=vad_raster(agents),
        agents=agents,
    )
    samples = dict.fromkeys(PlanningProtocol, lidar)
    people_left_out = np.where(agents.kinds == AgentKind.HUMAN, AgentKind.OTHER, agents.kinds)
    samples[PlanningProtocol.UNIAD] = replace(
        lidar, raster=vad_raster(replace(agents, kinds=people_left_out))
    )
    origin_m = _origin_m(PlanningProtocol.OMNIDRIVE)
    at_origin = replace(agents, centers_m=agents.centers_m + np.array([0, LIDAR_FORWARD_M - origin_m]))
    samples[PlanningProtocol.OMNIDRIVE] = replace(
        lidar,
        driven_m=from_base_link(truth.future, origin_m)[:, :2],
        fine_raster=omnidrive_raster(at_origin),
    )
    return samples


def _origin_m(protocol: PlanningProtocol) -> float:
    """How far ahead of the rear axle a protocol's origin lies: OmniDrive plans for the axle itself."""
    return 0.0 if protocol is PlanningProtocol.OMNIDRIVE else LIDAR_FORWARD_M


def _score_anchors(
    truth: Truth,
    prediction: Prediction,
    anchors_m: NDArray[np.floating],
    member: list[str],
    scene: str,
    metrics: dict[str, PerScene[AnchorMetric]],
) -> None:
    """Whether the chosen anchor is the one nearest to what was driven, with and without reasoning."""
    if not truth.future_valid.all():
        return
    row = truth.command.anchor_row
    distance = np.linalg.norm(anchors_m[row] - truth.future[:, :2], axis=-1).mean(axis=-1)
    for name, plan in (("model", prediction.plan), (WITHOUT_REASONING, prediction.plan_without_reasoning)):
        assert plan is not None
        group = slice(row * NUM_MODES, (row + 1) * NUM_MODES)
        for subset in member:
            metrics[subset].at(name, scene).update(plan.scores[group], plan.chosen - group.start, distance)


def _placed(cache: SampleCache, index: int, truth: Truth, plan: Plan) -> PlacedPlan:
    x, y, yaw = map(float, planar_pose(cache.odom_from_base(index)))
    anchor = plan.chosen if len(plan.candidates) == NUM_COMMANDS * NUM_MODES else -1
    return PlacedPlan(truth.t0_ns / NS_PER_S, (x, y, yaw), plan.trajectory, anchor)


def _rows(subset: str, metrics: Metrics) -> dict[str, Any]:
    """For each row the default's figures with intervals, and the short figures of every other protocol."""
    rows: dict[str, Any] = {}
    default = metrics[subset, DEFAULT]
    for row in default.rows:
        pooled = default.pooled(row)
        rows[row] = {"n": int(pooled.samples), **pooled.result()}
        rows[row]["intervals"] = default.intervals(row, _COMPARED)
        rows[row]["protocols"] = {}
        for protocol in PlanningProtocol:
            per_scene = metrics[subset, protocol]
            if row not in per_scene.rows:
                continue
            total = per_scene.pooled(row)
            rows[row]["protocols"][str(protocol)] = {
                "n": int(total.samples),
                **{
                    name: value
                    for name, value in total.result().items()
                    if name.startswith(("L2_", "obj_box_col_")) and not name.endswith("per_step")
                },
            }
    return rows


def _samples(metrics: Metrics, subset: str, row: str) -> int:
    per_scene = metrics[subset, DEFAULT]
    return int(per_scene.pooled(row).samples) if row in per_scene.rows else 0


def _figure(name: str) -> Callable[[PlanningMetric], float | None]:
    def figure(metric: PlanningMetric) -> float | None:
        value: float = metric.result()[name]
        return value if int(metric.samples) else None

    return figure


_COMPARED = {name: _figure(name) for name in ("L2_avg", "L2_3s", "obj_box_col_avg", "obj_box_col_any_3s")}


def _differences(
    metrics: Metrics,
    anchors: dict[str, PerScene[AnchorMetric]],
    figures: Figures,
    model: str,
    controls: list[str],
) -> dict[str, Any]:
    """Paired intervals: model less its blind rows, controls less the model, null token less reasoning."""
    found: dict[str, Any] = {}
    pairs = [(model, EGO_ONLY), (model, CONSTANT_VELOCITY), (WITHOUT_REASONING, model)]
    pairs += [(control, model) for control in controls]
    for subset in figures.rows:
        for row, base in pairs:
            found[f"{row} - {base}, {subset}"] = metrics[subset, DEFAULT].differences(row, base, _COMPARED)
        if anchors[subset].rows:
            found[f"anchors: {WITHOUT_REASONING} - model, {subset}"] = anchors[subset].differences(
                WITHOUT_REASONING, "model", {"accuracy": AnchorMetric.accuracy}
            )
    return found
