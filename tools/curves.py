"""How figures grew while the models were trained: docs/results/curves.json and docs/pictures/curves.png.

    python -m tools.curves tiny=out/retrain paper=out/retrain_paper     from the runs' metrics.jsonl
    python -m tools.curves                                              the picture alone, from the JSON

Figures are those of the validations on the way, on a few keyframes: they show where a curve bends, not what
a model is worth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "results" / "curves.json"
PICTURE = ROOT / "docs" / "pictures" / "curves.png"
# Stages that have the figure, the figure, and what it is called.
PANELS = (
    (("encoder",), "object_mIoU", "encoder: mIoU of vehicles, people, buildings, vegetation"),
    (("planning", "planner"), "L2_3s_events", "planning, planner: L2 at 3 s on event frames, m"),
    (("planning", "planner"), "closed_accuracy", "planning: closed questions answered right"),
)


def curves_of(run: Path) -> dict[str, list[dict[str, float]]]:
    """Validations of each stage of a run: minutes since the stage began, and its figures."""
    stages: dict[str, list[dict[str, float]]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        found = {name[4:]: round(value, 4) for name, value in row.items() if name.startswith("val/")}
        if found:
            found = {"minutes": round(row["elapsed_s"] / 60, 1)} | found
            stages.setdefault(row["stage"], []).append(found)
    return stages


def plot(curves: dict[str, dict[str, list[dict[str, float]]]], path: Path) -> None:
    """A panel for each of `PANELS`, a line for each model; later stages go on behind earlier ones."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(15, 4))
    for axes, (stages, name, title) in zip(panels, PANELS, strict=True):
        for model, of in curves.items():
            minutes, values, before = [], [], 0.0
            for stage in stages:
                rows = of.get(stage, [])
                minutes += [before + row["minutes"] for row in rows]
                values += [row[name] for row in rows]
                before += rows[-1]["minutes"] if rows else 0.0
            axes.plot(minutes, values, marker="o", label=model)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("minutes on two cores")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", metavar="MODEL=RUN")
    arguments = parser.parse_args()
    if arguments.runs:
        runs = dict(run.split("=", 1) for run in arguments.runs)
        curves = {model: curves_of(Path(run)) for model, run in runs.items()}
        FIGURES.write_text(json.dumps(curves, indent=1) + "\n")
    plot(json.loads(FIGURES.read_text()), PICTURE)


if __name__ == "__main__":
    main()
