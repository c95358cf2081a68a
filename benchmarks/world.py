"""Keyframes per second of `sparseoccvla world generate`, and samples per second of its loader.

    python benchmarks/world.py

Everything a keyframe has is made: six pictures, class and depth pictures, lidar, occupancy with masks, boxes,
language. "steady" leaves out what happens once in a call, the start of its workers and the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from sparseoccvla.data.augment import AugmentationConfig
from sparseoccvla.data.cache import CacheConfig
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables

SIZES = ("352x128", "704x396")
WORKERS = 2
DURATION_S = 10
STRIDE = 4


def generate(root: Path, size: str, scenes: int) -> dict[str, float]:
    """Time a call of its own, as a user gives it."""
    command = [sys.executable, "-m", "sparseoccvla", "world", "generate", "--out", str(root)]
    command += ["--scenes", str(scenes), "--seed", "0", "--city", "rightville", "--split", "train"]
    command += ["--size", size, "--workers", str(WORKERS), "--duration", str(DURATION_S)]
    command += ["--pixel-stride", str(STRIDE)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary = json.loads(done.stdout)
    parts = sorted(file.stat().st_mtime for file in (root / "parts").iterdir())
    per_scene = summary["keyframes"] / scenes
    # From the first finished round of the workers to the last.
    steady = per_scene * (len(parts) - WORKERS) / (parts[-1] - parts[WORKERS - 1])
    busy_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "scenes": scenes,
        "keyframes": summary["keyframes"],
        "keyframes_per_s": round(summary["keyframes"] / summary["seconds"], 2),
        "keyframes_per_s_steady": round(steady, 2),
        "core_seconds_per_keyframe": round(busy_s / summary["keyframes"], 3),
        "megabytes_of_largest_process": round(after.ru_maxrss / 1024),
    }


def load(root: Path, folder: Path, samples: int) -> dict[str, float]:
    """Build a cache, open it, and draw training samples of two frames in one process."""
    began = time.perf_counter()
    open_cache(Tables(root), "train", CacheConfig(), folder)
    built = time.perf_counter()
    cache = open_cache(Tables(root), "train", CacheConfig(), folder)
    opened = time.perf_counter()
    rng, augmentation = np.random.default_rng(0), AugmentationConfig()
    for number in range(samples):
        cache.sample(number % len(cache), 2, augmentation, rng)
    drawn = time.perf_counter()
    return {
        "built_samples_per_s": round(len(cache) / (built - began), 1),
        "open_s": round(opened - built, 3),
        "augmented_samples_per_s": round(samples / (drawn - opened), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("world.json"))
    arguments = parser.parse_args()
    if arguments.scenes <= WORKERS:
        parser.error(f"--scenes is {arguments.scenes}, wanted more than the {WORKERS} workers")
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        roots = {size: Path(folder) / size for size in SIZES}
        generated = {size: generate(root, size, arguments.scenes) for size, root in roots.items()}
        loaded = load(roots[SIZES[0]], Path(folder) / "cache", 200)
    result = {
        "command": f"python benchmarks/world.py --scenes {arguments.scenes}",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load_before": round(load_before, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "workers": WORKERS,
        "generate": generated,
        "load_352x128": loaded,
    }
    text = json.dumps(result, indent=2)
    print(text)
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
