"""Make the shipped tiny model again: data, then one training stage after the other: `make retrain`.

    python -m tools.retrain                          all of it, in out/retrain; killed, it goes on
    python -m tools.retrain --minutes 5 2 1 2         shorter stages, to try it

The data are those that `make results` measures on, so that models without eyes learn from the same frames.
The model is left in out/retrain/model, for `--model`; put it into models/tiny to ship it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.results import DATAROOT, generate, run

OUT = Path("out/retrain")
CONFIG = Path("config/train/tiny.json")
# Minutes on two cores. With the data, about 20, that leaves time for a run of 150 in all.
STAGES = {"encoder": 60.0, "planning": 40.0, "planner": 10.0, "joint": 15.0}
EDITED = 480  # keyframes painted again without their hazard, and as many in another look


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--minutes", type=float, nargs=len(STAGES), default=list(STAGES.values()), metavar=tuple(STAGES)
    )
    minutes = parser.parse_args().minutes
    generate()
    run("world", "edit", "--dataroot", DATAROOT, "--split", "train", "--limit", str(EDITED))
    place: list[str | Path] = ["--config", CONFIG, "--dataroot", DATAROOT, "--out", OUT]
    for stage, length in zip(STAGES, minutes, strict=True):
        run("train", "--stage", stage, *place, "--minutes", f"{length:g}")


if __name__ == "__main__":
    main()
