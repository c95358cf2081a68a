"""Speed of the metrics: grid pairs a second for mIoU and RayIoU, seconds for CIDEr of 50,000 answers.

    python benchmarks/metrics.py --out benchmarks/metrics.json

The grids are made: a road, walls, hedges and cars, with a prediction that moves and drops some voxels.
RayIoU is measured with the eight origins the convention allows at most, and with one.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID
from sparseoccvla.metrics.cider import cider
from sparseoccvla.metrics.language import LanguageMetric, Tokens
from sparseoccvla.metrics.occupancy import Mask, OccupancyMetric
from sparseoccvla.metrics.rays import RayMetric
from sparseoccvla.metrics.results import NO_MODEL, DataOrigin, Results, write_results

SEED = 0
ANSWERS = 50_000
WORDS = 40  # of an answer; OmniDrive's are shorter


def street(rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth and prediction of a made street, about as full as a real label."""
    truth = np.full(OCC3D_GRID.shape, FREE_CLASS, np.uint8)
    truth[:, :, 2] = 14
    truth[:, 80:120, 2] = 11
    truth[:, 40:42, 3:14] = 15
    truth[:, 150:153, 3:9] = 16
    for _ in range(20):
        x, y = rng.integers(0, 188), rng.integers(60, 140)
        truth[x : x + 11, y : y + 5, 3:7] = rng.choice([3, 4, 10])
    predicted = np.roll(truth, 1, axis=0)
    predicted[rng.random(truth.shape) < 0.1] = FREE_CLASS
    return predicted, truth


def per_second(work: Callable[[], None], seconds: float = 3.0) -> float:
    """How often `work` runs in a second, after one run that warms up."""
    work()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        work()
        done += 1
    return done / elapsed


def answers(rng: np.random.Generator) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Predictions and references with word frequencies of natural text."""
    share = 1 / np.arange(1, 3001)
    words = np.array([f"word{i}" for i in range(3000)])
    drawn = words[rng.choice(3000, (2, ANSWERS, WORDS), p=share / share.sum())].tolist()
    return drawn[0], [[reference] for reference in drawn[1]]


def measure() -> dict[str, float]:
    rng = np.random.default_rng(SEED)
    predicted, truth = street(rng)
    seen = rng.random(truth.shape) < 0.07
    origins = np.stack([np.linspace(-30, 30, 8), np.zeros(8), np.full(8, 1.84)], axis=1)
    whole, camera, rays = OccupancyMetric(Mask.NONE), OccupancyMetric(Mask.CAMERA), RayMetric()
    figures = {
        "miou_pairs_per_s": per_second(lambda: whole.update(predicted, truth, None)),
        "miou_camera_mask_pairs_per_s": per_second(lambda: camera.update(predicted, truth, seen)),
        "rayiou_8_origins_pairs_per_s": per_second(lambda: rays.update(predicted, truth, origins)),
        "rayiou_1_origin_pairs_per_s": per_second(lambda: rays.update(predicted, truth, origins[4:5])),
    }
    guesses, truths = answers(rng)
    start = time.perf_counter()
    cider(guesses, truths)
    figures["cider_50000_answers_s"] = time.perf_counter() - start
    language = LanguageMetric(Tokens.PTB)
    for guess, references in zip(guesses[:2000], truths[:2000], strict=True):
        language.update(" ".join(guess), [" ".join(reference) for reference in references])
    start = time.perf_counter()
    language.result()
    figures["all_language_scores_2000_answers_ptb_s"] = time.perf_counter() - start
    return {name: round(value, 2) for name, value in figures.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/metrics.json"))
    out = parser.parse_args().out
    load = os.getloadavg()[0]
    figures = measure()
    write_results(
        out,
        Results(
            kind="benchmark",
            protocol="200x200x16 grids, made street; answers of 40 words",
            model_id=NO_MODEL,
            data=DataOrigin("made", "benchmarks/metrics.py", "none", (SEED,)),
            command="python benchmarks/metrics.py",
            n=1,
            skipped=0,
            figures={"speed": figures, "load_average_before": round(load, 2)},
            hardware=f"{platform.machine()}, {os.cpu_count()} cores, shared with other work",
        ),
    )
    for name, value in figures.items():
        print(f"{name:42} {value}")


if __name__ == "__main__":
    main()
