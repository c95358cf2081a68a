"""The torch backend as the nodes use it, on a CUDA GPU: against a CPU in fp32, and how long each call takes.

    python benchmarks/gpu_runtime.py --out benchmarks/gpu_runtime.json

Shipped weights and pictures of the driving world; no ROS. A call begins with pictures or queries in the
host's memory and ends with its answer there, so copies and conversions are in it. `--device cpu` runs the
same without a GPU. Gaps are the mean over a result, divided by the mean size of what the CPU says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import command, interleaved, machine, spread
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import EgoState, EncoderInput
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.world import World

SEEDS = range(4)  # worlds, each seen once


class Stack:
    """The three stages on one sight of a world."""

    def __init__(self, precision: str, compiled: bool) -> None:
        source = ModelSource(precision=precision, compiled=compiled)
        self.encoder, self.reasoner = load_encoder(source), load_reasoner(source)
        self.planner = load_planner(source)
        height, width = self.encoder.info.image_size_px
        self.size = (width, height)

    def look(self, sights: list[EncoderInput], ego: EgoState, command: Any) -> dict[str, np.ndarray]:
        """What the stages say of frames, newest first."""
        frames = [self.encoder.extract(sight) for sight in sights]
        encoded = self.encoder.decode(frames)
        reasoned = self.reasoner.reason(encoded.queries)
        plan = self.planner.plan(encoded.queries, ego, command, reasoned.reasoning, 0.1)
        self.works = {
            "extract": lambda: self.encoder.extract(sights[0]),
            "decode": lambda: self.encoder.decode(frames),
            "reason": lambda: self.reasoner.reason(encoded.queries),
            "plan": lambda: self.planner.plan(encoded.queries, ego, command, reasoned.reasoning, 0.1),
        }
        return {
            "features": encoded.queries.features,
            "points_m": encoded.queries.points_base_m,
            "scores": encoded.queries.point_scores,
            "reasoning": reasoned.reasoning.token,
            "candidates_m": plan.candidates,
            "anchor scores": plan.scores,
            "chosen": np.array(plan.chosen),
        }


def said(
    precision: str, rounds: int, compiled: bool = False
) -> tuple[list[dict[str, np.ndarray]], dict[str, Any]]:
    """Results of every world, and milliseconds of each call on the last."""
    stack = Stack(precision, compiled)
    results = []
    for seed in SEEDS:
        world = World(size=stack.size)
        before = world.reset(seed=seed)
        world.step_expert()
        now = world.observe()
        results.append(stack.look([now.inputs, before.inputs], now.ego, now.command.command))
    works = stack.works
    works["all four"] = lambda: [work() for name, work in stack.works.items() if name != "all four"]
    took = interleaved(works, rounds)
    return results, {name: spread(times) for name, times in took.items()}


def gap(result: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(result - wanted).mean() / max(np.abs(wanted).mean(), 1e-9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu_runtime.json"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--compiled", action="store_true", help="also compiled, which takes minutes")
    parser.add_argument("--wanted", type=Path, help="write what a CPU says there, for the other process")
    args = parser.parse_args()
    if args.wanted:
        wanted, _ = said("fp32", 1)
        np.savez(args.wanted, **{f"{n} {key}": v for n, one in enumerate(wanted) for key, v in one.items()})
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        print("benchmarks/gpu_runtime.py: no CUDA GPU here, nothing measured", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "wanted.npz"
        other = [sys.executable, __file__, "--wanted", str(file)]
        subprocess.run(other, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
        stored = dict(np.load(file))
    ways = {}
    wanted_ways = [("fp32", False), ("bf16", False)] + [("bf16", True)] * args.compiled
    for precision, compiled in wanted_ways:
        results, calls = said(precision, args.rounds, compiled)
        gaps = {
            key: [gap(one[key], stored[f"{number} {key}"]) for number, one in enumerate(results)]
            for key in results[0]
            if key != "chosen"
        }
        same = sum(int(one["chosen"] == stored[f"{number} chosen"]) for number, one in enumerate(results))
        ways[precision + ", compiled" * compiled] = {
            "calls_ms": calls,
            "largest_gap": {key: float(f"{max(each):.2g}") for key, each in gaps.items()},
            "same_anchor": f"{same} of {len(results)}",
        }
    report = {
        "what": "the torch backend on a GPU, from host memory to host memory, against the CPU in fp32",
        "command": command(),
        "gpu": torch.cuda.get_device_name() if args.device == "cuda" else "none",
        **machine(),
        "tiny": ways,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
