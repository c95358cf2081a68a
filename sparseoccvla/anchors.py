"""The 18 trajectories a plan starts from: 3 commands of 6 modes of 6 steps.

Layout (commands LEFT RIGHT STRAIGHT, modes, steps, 2): x forward, y left, meters, cumulative, in
base_link at t0; step i is the place at t0 + (i + 1) * STEP_S. Other projects store RIGHT first, or
x to the right: check with `validate_anchors` before trusting a foreign file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NUM_COMMANDS, NUM_MODES, NUM_STEPS, STEP_S
from sparseoccvla.errors import InputError

ANCHOR_SHAPE = (NUM_COMMANDS, NUM_MODES, NUM_STEPS, 2)

# A turn is gentle when fast: the product stays below 3 m/s^2 of lateral acceleration.
_TURN_SPEEDS_MPS = (2.0, 4.0, 6.0, 8.0, 10.0, 13.0)
_TURN_CURVATURES_PER_M = (0.14, 0.11, 0.075, 0.045, 0.028, 0.015)
_STRAIGHT_SPEEDS_MPS = (0.5, 3.0, 6.0, 9.5, 14.0, 22.0)


def analytic_anchors() -> NDArray[np.float32]:
    """Anchors (3, 6, 6, 2) from six speeds a command, turns on circles: no data needed."""
    speed = np.array([_TURN_SPEEDS_MPS, _TURN_SPEEDS_MPS, _STRAIGHT_SPEEDS_MPS])
    curvature = np.array([_TURN_CURVATURES_PER_M, _TURN_CURVATURES_PER_M, np.zeros(NUM_MODES)])
    curvature[1] *= -1
    length = speed[..., None] * STEP_S * np.arange(1, NUM_STEPS + 1)  # (3, 6, 6)
    turned = curvature[..., None] * length
    chord = length * np.sinc(turned / (2 * np.pi))  # chord of an arc, exact for a straight one
    return np.stack([chord * np.cos(turned / 2), chord * np.sin(turned / 2)], axis=-1).astype(np.float32)


def kmeans_anchors(
    paths_m: NDArray[np.floating], anchor_rows: NDArray[np.integer], seed: int
) -> NDArray[np.float32]:
    """Anchors (3, 6, 6, 2): six cluster centers of each command's paths, shortest first.

    Args:
        paths_m: (paths, steps, 2) cumulative x y of logged futures with all steps present.
        anchor_rows: (paths,) `Command.anchor_row` of each.
        seed: of the clustering; the same paths and seed give the same anchors.

    Raises:
        InputError: a command has fewer distinct paths than modes.
    """
    from sklearn.cluster import KMeans

    anchors = np.empty(ANCHOR_SHAPE, np.float32)
    for row in range(NUM_COMMANDS):
        group = paths_m[anchor_rows == row].reshape(-1, NUM_STEPS * 2)
        distinct = len(np.unique(group, axis=0))
        if distinct < NUM_MODES:
            raise InputError(
                f"anchor row {row} (LEFT RIGHT STRAIGHT) has {distinct} distinct paths of {len(group)}, "
                f"wanted at least {NUM_MODES}; use more scenes"
            )
        centers = KMeans(NUM_MODES, n_init=10, random_state=seed).fit(group).cluster_centers_
        centers = centers.reshape(NUM_MODES, NUM_STEPS, 2)
        anchors[row] = centers[np.argsort(np.linalg.norm(centers[:, -1], axis=-1))]
    return anchors


def validate_anchors(anchors_m: NDArray[np.floating], origin: str) -> NDArray[np.float32]:
    """The anchors as float32, or an error when their layout can't be ours.

    Raises:
        InputError: another shape, or LEFT anchors that end to the right, as a table in RIGHT LEFT
            order or with x to the right has.
    """
    if anchors_m.shape != ANCHOR_SHAPE or not np.isfinite(anchors_m).all():
        raise InputError(
            f"{origin} holds anchors of shape {anchors_m.shape}, wanted finite {ANCHOR_SHAPE}: "
            "commands LEFT RIGHT STRAIGHT, modes, steps, x y"
        )
    left, right = anchors_m[0, :, -1, 1].mean(), anchors_m[1, :, -1, 1].mean()
    if not left > right:
        raise InputError(
            f"{origin}: LEFT anchors end at y {left:.1f} m and RIGHT ones at {right:.1f} m on average, "
            "wanted LEFT more to the left (y is left); are the commands in RIGHT LEFT order, "
            "or is x to the right?"
        )
    return anchors_m.astype(np.float32)


def read_anchors(path: Path) -> NDArray[np.float32]:
    """Anchors (3, 6, 6, 2) of an anchors.json."""
    content = json.loads(path.read_text())
    return validate_anchors(np.array(content["anchors_m"], np.float64), str(path))


def write_anchors(path: Path, anchors_m: NDArray[np.floating], how: str) -> None:
    """Write anchors.json; `how` says what they were made from, for people."""
    rounded = np.round(anchors_m.astype(float), 4).tolist()
    path.write_text(json.dumps({"how": how, "anchors_m": rounded}, indent=1) + "\n")
