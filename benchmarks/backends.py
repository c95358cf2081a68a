"""The tiny model's stages on this CPU: torch fp32, eager bf16, its own bf16, compiled; ONNX Runtime.

    python benchmarks/backends.py --out benchmarks/backends.json

Every round runs every stage in every way, so that what else the machine does falls on all of them alike:
read the ratios. `cpu_ms` counts the processor time of the whole process, `wall_ms` the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import command, interleaved, machine, spread
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import Command, EgoState, EncoderInput
from sparseoccvla.engines.export import export
from sparseoccvla.runtime.base import Encoder, Planner, Reasoner
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner

STAGES = ("backbone", "decoder", "reasoner", "planner")
EAGER = "torch eager bf16"  # what the others are held against


class Stages:
    """The three stages of one backend with inputs that lie ready."""

    def __init__(self, source: ModelSource, eager_half: bool) -> None:
        self.encoder: Encoder = load_encoder(source)
        self.reasoner: Reasoner = load_reasoner(source)
        self.planner: Planner = load_planner(source)
        self._eager_half = eager_half
        size = self.encoder.info.image_size_px
        self._inputs = EncoderInput.fake(size=size)
        self._frames = [self.encoder.extract(EncoderInput.fake(size=size, seed=seed)) for seed in (0, 1)]
        self._encoded = self.encoder.decode(self._frames)
        self._reasoned = self.reasoner.reason(self._encoded.queries)

    def run(self, stage: str) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._eager_half):
            match stage:
                case "backbone":
                    return self.encoder.extract(self._inputs)
                case "decoder":
                    return self.encoder.decode(self._frames)
                case "reasoner":
                    return self.reasoner.reason(self._encoded.queries)
            return self._plan()

    def results(self) -> dict[str, np.ndarray]:
        """What the error of a way is taken from."""
        plan = self._plan()
        return {
            "features": self._encoded.queries.features,
            "reasoning": self._reasoned.reasoning.token,
            "candidates": plan.candidates,
            "chosen": np.array(plan.chosen),
        }

    def _plan(self):
        return self.planner.plan(
            self._encoded.queries, EgoState.fake(), Command.LEFT, self._reasoned.reasoning, 0.1
        )


def measure(threads: int, rounds: int, folder: Path) -> dict[str, object]:
    exported = export("tiny", folder / "tiny")
    torch_fp32 = ModelSource(threads=threads)
    ways = {
        "torch fp32": Stages(torch_fp32, eager_half=False),
        EAGER: Stages(torch_fp32, eager_half=True),
        "torch bf16": Stages(ModelSource(threads=threads, precision="bf16"), eager_half=False),
        "torch fp32, compiled": Stages(ModelSource(threads=threads, compiled=True), eager_half=False),
        "torch bf16, compiled": Stages(
            ModelSource(threads=threads, precision="bf16", compiled=True), eager_half=False
        ),
        "onnxruntime fp32": Stages(
            ModelSource(backend="onnxruntime", engines=str(exported.folder), threads=threads), False
        ),
    }
    torch.set_num_threads(threads)

    def works() -> dict[str, Callable[[], object]]:
        return {
            f"{way}: {stage}": lambda stages=stages, stage=stage: stages.run(stage)
            for way, stages in ways.items()
            for stage in STAGES
        }

    wall = interleaved(works(), rounds)
    cpu = interleaved(works(), rounds, time.process_time)
    wanted = ways["torch fp32"].results()
    report: dict[str, object] = {}
    for way, stages in ways.items():
        got = stages.results()
        report[way] = {
            "wall_ms": {stage: spread(wall[f"{way}: {stage}"]) for stage in STAGES},
            "cpu_ms": {stage: spread(cpu[f"{way}: {stage}"]) for stage in STAGES},
            "mean_error": {
                name: round(float(np.abs(got[name] - wanted[name]).mean() / np.abs(wanted[name]).mean()), 6)
                for name in ("features", "reasoning", "candidates")
            },
            "same_anchor": bool(got["chosen"] == wanted["chosen"]),
        }
    medians = {
        way: {stage: float(np.median(cpu[f"{way}: {stage}"])) for stage in STAGES} for way in ways
    }  # fmt: skip
    encoder = {way: row["backbone"] + row["decoder"] for way, row in medians.items()}
    everything = {way: sum(row.values()) for way, row in medians.items()}
    return {
        "ways": report,
        "encoder_times_faster_than_eager_bf16": {
            w: round(encoder[EAGER] / ms, 2) for w, ms in encoder.items()
        },
        "all_stages_times_faster_than_eager_bf16": {
            way: round(everything[EAGER] / ms, 2) for way, ms in everything.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("backends.json"))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args.threads, args.rounds, Path(folder))
    report = {
        "what": "each stage of models/tiny on noise, history cached; ratios are of medians of cpu_ms",
        "command": command(),
        **machine(),
        "threads": args.threads,
        **result,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
