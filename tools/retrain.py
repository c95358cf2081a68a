"""Make the shipped tiny model again: data, then one training stage after the other: `make retrain`.

    python -m tools.retrain                          all of it, in out/retrain; killed, it goes on
    python -m tools.retrain --paper                  in out/retrain_paper: the paper's network at this size
    python -m tools.retrain --minutes 5 2 1 2        shorter stages, to try it

The data are those that `make results` measures on, so that models without eyes learn from the same frames.
The model is left in OUT/model, for `--model`; put out/retrain/model into models/tiny to ship it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from tools.results import DATAROOT, generate, run


class Retraining(NamedTuple):
    """Where a model is made, and how long each stage takes on two cores."""

    config: Path
    out: Path
    minutes: dict[str, float]


# With the data, about 20 minutes, that leaves time for a run of 150 in all.
TINY = Retraining(
    Path("config/train/tiny.json"),
    Path("out/retrain"),
    {"encoder": 60.0, "planning": 40.0, "planner": 10.0, "joint": 15.0},
)
# Without what helps a small network learn fast: what that is worth.
PAPER = Retraining(
    Path("config/train/tiny_paper.json"),
    Path("out/retrain_paper"),
    {"teacher": 10.0, "encoder": 60.0, "planning": 50.0},
)
EDITED = 480  # keyframes painted again without their hazard, and as many in another look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the network without what the paper has not")
    parser.add_argument("--minutes", type=float, nargs="+", help="of each stage")
    arguments = parser.parse_args()
    made = PAPER if arguments.paper else TINY
    minutes = arguments.minutes or list(made.minutes.values())
    if len(minutes) != len(made.minutes):
        parser.error(f"--minutes has {len(minutes)} values, wanted one for each of {', '.join(made.minutes)}")
    generate()
    if made is TINY:
        run("world", "edit", "--dataroot", DATAROOT, "--split", "train", "--limit", str(EDITED))
    place: list[str | Path] = ["--config", made.config, "--dataroot", DATAROOT, "--out", made.out]
    for stage, length in zip(made.minutes, minutes, strict=True):
        run("train", "--stage", stage, *place, "--minutes", f"{length:g}")


if __name__ == "__main__":
    main()
