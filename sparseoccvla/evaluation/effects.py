"""Cause and effect: does the plan change when its reason is taken away, and only then?

`sparseoccvla world edit` paints keyframes of a generated root again: event frames without the hazard that
the driver is about to react to, others with another sky or other paint. Motion, ego state and command stay
the same, so that two plans differ by what the model saw alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import EncoderInput
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.edits import EditedKeyframe, edited_sample, read_edits
from sparseoccvla.data.samples import Truth
from sparseoccvla.evaluation.runner import Models

CHANGED_M = 1.0  # a plan with a waypoint farther off than this has changed
THRESHOLDS_M = (0.5, CHANGED_M, 2.0)

Waypoints = list[list[float]]  # (S, 3) x_m, y_m, yaw_rad, as JSON has it


@dataclass(frozen=True)
class Effect:
    """The plans for one keyframe with its own pictures and with edited ones."""

    token: str
    edit: str
    kind: str  # of the hazard that was taken away, or of the irrelevant edit
    removes: bool
    seen: bool  # whether any picture at t0 shows the edit
    base: Waypoints
    edited: Waypoints
    expert: Waypoints  # what the driver does where the edit is true
    driven: Waypoints  # what the driver does where it is not

    @property
    def change_m(self) -> float:
        """How far the farthest waypoint of the plan moves."""
        return _farthest_m(self.base, self.edited)

    @property
    def expert_change_m(self) -> float:
        """How far the farthest waypoint of the driver's path moves."""
        return _farthest_m(self.driven, self.expert)

    def off_m(self, plan: Waypoints) -> float:
        """Mean distance of a plan to what the driver does where the edit is true."""
        return float(np.linalg.norm(np.subtract(plan, self.expert)[:, :2], axis=1).mean())


def _farthest_m(one: Waypoints, other: Waypoints) -> float:
    return float(np.linalg.norm(np.subtract(one, other)[:, :2], axis=1).max())


def chosen_edits(
    cache: SampleCache, dataroot: Path, count: int, most: int, seed: int
) -> list[EditedKeyframe]:
    """At most `most` edits that remove a hazard and as many irrelevant ones, drawn by `seed`.

    Raises:
        InputError: the root has no edited pictures.
    """
    known = set(cache.tokens[:count])
    edits = [edit for edit in read_edits(dataroot) if edit.sample_token in known]
    rng = np.random.default_rng(seed)
    chosen: list[EditedKeyframe] = []
    for removes in (True, False):
        sort = [edit for edit in edits if bool(edit.hazard) == removes]
        order = rng.permutation(len(sort))[:most]
        chosen += [sort[place] for place in sorted(order)]
    return chosen


def find_effects(
    models: Models,
    cache: SampleCache,
    dataroot: Path,
    edits: Sequence[EditedKeyframe],
    file: Path,
    progress: Callable[[int], None],
) -> list[Effect]:
    """Plan for each keyframe with and without its edit; what `file` has already is not planned again."""
    known: dict[tuple[str, str], Effect] = {}
    if file.exists():
        effects = [Effect(**json.loads(line)) for line in file.read_text().splitlines()]
        known = {(effect.token, effect.edit): effect for effect in effects}
    file.parent.mkdir(parents=True, exist_ok=True)
    place = {token: index for index, token in enumerate(cache.tokens)}
    frames = models.encoder.info.history_frames
    with file.open("a") as lines:
        for edit in edits:
            key = (edit.sample_token, edit.edit)
            if key not in known:
                index = place[edit.sample_token]
                truth = cache.truth(index)
                edited = edited_sample(cache, dataroot, edit, frames)
                known[key] = Effect(
                    *key,
                    edit.hazard.rpartition("-")[0] or edit.kind,
                    bool(edit.hazard),
                    edit.seen,
                    _plan(models, truth, cache.history(index, frames)),
                    _plan(models, truth, edited.history),
                    edit.future.tolist(),
                    truth.future.astype(float).tolist(),
                )
                lines.write(json.dumps(asdict(known[key])) + "\n")
                lines.flush()
            progress(1)
    return [known[edit.sample_token, edit.edit] for edit in edits]


def effect_figures(effects: Sequence[Effect]) -> dict[str, Any]:
    """Shares of plans that change, by threshold and kind; a hazard that is hidden at t0 is left out.

    A driver who would brake anyway, for a bend or a light, changes nothing either: `expert_changes` is the
    driver's own share, and shares are also given of the edits where the driver's path changes. `off_m` is how
    far plans are from what the driver would do without the hazard, before and after.
    """
    removed = [effect for effect in effects if effect.removes and effect.seen]
    irrelevant = [effect for effect in effects if not effect.removes]
    acted_on = [effect for effect in removed if effect.expert_change_m > CHANGED_M]
    return {
        "n": len(removed) + len(irrelevant),
        "hidden": sum(effect.removes and not effect.seen for effect in effects),
        "changed_m": CHANGED_M,
        "hazard_removed": _shares(removed),
        "expert_changes": len(acted_on) / len(removed) if removed else None,
        "hazard_removed_expert_changes": _shares(acted_on),
        "irrelevant": _shares(irrelevant),
        "off_m_with_hazard": _mean([effect.off_m(effect.base) for effect in removed]),
        "off_m_without": _mean([effect.off_m(effect.edited) for effect in removed]),
    }


def _shares(effects: Sequence[Effect]) -> dict[str, Any]:
    change_m = np.array([effect.change_m for effect in effects])
    kinds = np.array([effect.kind for effect in effects])
    return {
        "n": len(effects),
        "changed": {f"{t:g}m": _mean(change_m > t) for t in THRESHOLDS_M},
        "by_kind": {
            str(kind): {
                "n": int((kinds == kind).sum()),
                "changed": _mean(change_m[kinds == kind] > CHANGED_M),
            }
            for kind in np.unique(kinds)
        },
    }


def _mean(values: Sequence[float] | NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _plan(models: Models, truth: Truth, history: Sequence[EncoderInput | None]) -> Waypoints:
    """The chosen trajectory for a keyframe with these pictures, its own reasoning included."""
    assert models.reasoner is not None
    assert models.planner is not None
    frames = [None if inputs is None else models.encoder.extract(inputs) for inputs in history]
    seen = models.encoder.decode(frames)
    token = models.reasoner.reason(seen.queries).reasoning
    proposal = models.planner.plan(seen.queries, truth.ego, truth.command, token, 0.0).validate()
    plan: Waypoints = proposal.trajectory.astype(float).tolist()
    return plan
