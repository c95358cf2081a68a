"""What the benchmarks share: how times are spread, and what they were taken on. Runs nothing itself."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np


def spread(milliseconds: list[float]) -> dict[str, float | int]:
    """p50, p95 and count."""
    p50, p95 = np.percentile(milliseconds, (50, 95)).round(3)
    return {"p50": float(p50), "p95": float(p95), "n": len(milliseconds)}


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: int = 2,
) -> dict[str, list[float]]:
    """Milliseconds of each work; all of them in every round, so that what else runs falls on all."""
    took_ms: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(warm_up + rounds):
        for name, work in works.items():
            start = clock()
            work()
            if round_number >= warm_up:
                took_ms[name].append((clock() - start) * 1e3)
    return took_ms


def machine() -> dict[str, object]:
    """CPU, load and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    packages = ("torch", "numpy", "onnxruntime", "transformers")
    return {
        "cpu": f"{name}, {os.cpu_count()} cores",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
    }


def command() -> str:
    """What repeats this run, wherever it is to be written."""
    arguments = sys.argv[1:]
    if "--out" in arguments:
        at = arguments.index("--out")
        del arguments[at : at + 2]
    return " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])


def age_ms(t0_s: Mapping[int, float], came_s: Mapping[int, float], every_s: float = 0.01) -> list[float]:
    """How old the followed trajectory was, again and again from the first that came to the last set's t0.

    Args:
        t0_s: when each set's t0 was.
        came_s: when the trajectory of a set came, by the same key and clock; some never do.
        every_s: how often one looks.
    """
    arrivals = sorted((when, t0_s[key]) for key, when in came_s.items() if key in t0_s)
    looks = np.arange(arrivals[0][0], max(t0_s.values()), every_s)
    # A late answer to an older set does not replace a newer one.
    newest = np.maximum.accumulate([t0 for _, t0 in arrivals])
    followed = np.searchsorted([when for when, _ in arrivals], looks, side="right") - 1
    return list((looks - newest[followed]) * 1e3)
