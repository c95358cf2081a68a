"""Plots of results files: nothing here asks a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from sparseoccvla.contracts import CLASS_NAMES, NUM_STEPS, STEP_S
from sparseoccvla.evaluation.planning import NEVER_MOVE
from sparseoccvla.metrics.results import Results

mpl.use("Agg")
from matplotlib import pyplot as plt

PLOTS = (CONFUSION, HORIZON, RELIABILITY) = ("confusion.png", "horizon.png", "reliability.png")
_DPI = 90


def write_plots(out: Path, results: Sequence[Results]) -> None:
    """Write `PLOTS`, of those kinds of figures that there are."""
    for result in results:
        match result.kind:
            case "occupancy":
                plot_confusion(out / CONFUSION, next(iter(result.figures["rows"].values())))
            case "planning":
                plot_horizon(out / HORIZON, result.figures["rows"])
                plot_reliability(out / RELIABILITY, result.figures["anchors"])


def plot_confusion(path: Path, row: dict[str, Any]) -> None:
    """Of all voxels of a true class, how many got which label."""
    counts = np.asarray(row["confusion"], float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = [name.replace("_", " ") for name in (*CLASS_NAMES, "free")]
    figure, axes = plt.subplots(figsize=(8, 7.5))
    image = axes.imshow(share, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true, in the camera mask")
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    _save(figure, path)


def plot_horizon(path: Path, rows_of_subset: dict[str, Any]) -> None:
    """L2 at each step, one line for each row but the one that never moves: it would hide the others."""
    times_s = STEP_S * np.arange(1, NUM_STEPS + 1)
    figure, panels = plt.subplots(
        1, len(rows_of_subset), figsize=(5.5 * len(rows_of_subset), 4), squeeze=False, sharey=True
    )
    for axes, (subset, rows) in zip(panels[0], rows_of_subset.items(), strict=True):
        for name, row in rows.items():
            if name == NEVER_MOVE:
                continue
            axes.plot(times_s, row["L2_per_step"], marker="o", markersize=3, label=name)
        axes.set_title(f"{subset}, n = {next(iter(rows.values()))['n']}")
        axes.set_xlabel("time ahead [s]")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("distance to the driven path [m]")
    panels[0][-1].legend(fontsize=8)
    _save(figure, path)


def plot_reliability(path: Path, rows_of_subset: dict[str, Any]) -> None:
    """How often an anchor of a score is the right one."""
    figure, axes = plt.subplots(figsize=(4.5, 4.5))
    axes.plot([0, 1], [0, 1], color="gray", linestyle=":", label="a score that means what it says")
    for subset, rows in rows_of_subset.items():
        for name, row in rows.items():
            bins = row["reliability"]
            used = np.asarray(bins["n"]) > 0
            axes.plot(
                np.asarray(bins["score"])[used],
                np.asarray(bins["frequency"])[used],
                marker="o",
                markersize=4,
                label=f"{name}, {subset}",
            )
    axes.set_xlabel("score of an anchor")
    axes.set_ylabel("share that is the nearest to the driven path")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    # Without metadata, so that equal figures are equal files.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    plt.close(figure)
