"""Known ways in which training fails, recognized in validation figures and named in words.

Sources: SparseOccVLA (a language model that starts high behind raw distillation, language that stays flat,
plans without ego state); OPUS-like decoders on flat worlds (points that collapse onto the ground).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_ENOUGH = 3  # validations before anything is said
_FLAT = 0.02  # a relative change that is none
_RISE = 0.1  # a relative change that is one
_HIGH = 1.15  # times the loss of guessing, where random weights of a sound scale begin
_LEAST_ABOVE_GROUND = 0.08  # a quarter of all occupied voxels stands


def failure_signs(figures: Sequence[dict[str, float]]) -> list[str]:
    """What the figures of all validations so far look like, if that is bad; empty if they don't."""
    if len(figures) < _ENOUGH:
        return []
    first, last = figures[0], figures[-1]
    signs = []
    if _change(first, last, "mIoU") > _RISE and abs(_change(first, last, "CIDEr")) < _FLAT:
        signs.append(
            "mIoU rises and CIDEr stays where it was: language does not follow sight. Is the connector "
            "trained, and text_weight above 0?"
        )
    if _change(first, last, "L2_3s") > _RISE and _change(first, last, "L2_1s") < _FLAT:
        signs.append(
            "L2 at 3 s rises while that at 1 s does not: plans run away. Does the ego state reach the "
            "planner (motion_valid, past_valid)?"
        )
    if last.get("points_above_ground", 1.0) < _LEAST_ABOVE_GROUND:
        signs.append(
            f"{last['points_above_ground']:.1%} of the points are above the ground: they collapse onto the "
            "ground. Raise losses.standing_share, or the number of points"
        )
    return signs


def first_signs(losses: Mapping[str, float], guessing: Mapping[str, float]) -> list[str]:
    """What the losses of the first step look like, if that is bad.

    Args:
        losses: by name.
        guessing: what a term is where every answer is equally likely, ln of the vocabulary for texts.
    """
    return [
        f"{name} begins at {losses[name]:.3g}, above the {guess:.3g} of blind guessing: what comes from the "
        "encoder has a scale that the language model does not know. Was it distilled raw "
        "(encoder.distillation)? normalized keeps the teacher's scale out"
        for name, guess in guessing.items()
        if losses.get(name, 0.0) > _HIGH * guess
    ]


def _change(first: dict[str, float], last: dict[str, float], name: str) -> float:
    """Relative change of a figure, NaN (never above or below anything) where there is none."""
    if name not in first or name not in last or not first[name]:
        return float("nan")
    return last[name] / first[name] - 1
