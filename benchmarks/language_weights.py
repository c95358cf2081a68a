"""What int8 and int4 weights of the language model do to the plan, against the weights as they are stored.

    python benchmarks/language_weights.py                          # pictures of noise
    python benchmarks/language_weights.py --cache CACHE            # keyframes of a cached split

All kinds see the same queries and the same diffusion noise. `apart_m` is between the chosen paths at 1, 2 and
3 s, `driven_m` the mean distance to what was driven, where a split says it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import command, machine, spread
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import Command, EgoState, EncoderInput, OccupancyQueries
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.runtime.base import Encoder
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner

KINDS = ("stored", "int8", "int4")
SECONDS = {"1 s": 1, "2 s": 3, "3 s": 5}  # trajectory step

Scene = tuple[OccupancyQueries, EgoState, Command, NDArray[np.floating] | None]  # last: (S, 2) driven


def scenes(encoder: Encoder, cache: Path | None, count: int) -> Iterator[Scene]:
    """Queries and what the planner wants besides; of keyframes spread over the split, or of noise."""
    frames = encoder.info.history_frames
    if cache is None:
        for seed in range(count):
            inputs = EncoderInput.fake(t0_ns=10**10 + seed, size=encoder.info.image_size_px, seed=seed)
            queries = encoder.decode([encoder.extract(inputs)] + [None] * (frames - 1)).queries
            yield queries, EgoState.fake(inputs.t0_ns), list(Command)[1 + seed % 3], None
        return
    split = SampleCache(cache)
    for index in np.linspace(0, len(split) - 1, min(count, len(split))).astype(int):
        truth = split.truth(index)
        history = [None if past is None else encoder.extract(past) for past in split.history(index, frames)]
        driven = truth.future[:, :2] if truth.future_valid.all() else None
        yield encoder.decode(history).queries, truth.ego, truth.command, driven


def measure(source: ModelSource, cache: Path | None, count: int) -> dict[str, object]:
    given = list(scenes(load_encoder(source), cache, count))
    planner = load_planner(source)
    report: dict[str, object] = {"trained_on": planner.info.trained_on or "nothing", "scenes": len(given)}
    tokens: dict[str, list[NDArray[np.floating]]] = {}
    paths: dict[str, list[NDArray[np.floating]]] = {}
    anchors: dict[str, list[int]] = {}
    for kind in KINDS:
        reasoner = load_reasoner(replace(source, language_weights=kind))
        tokens[kind], paths[kind], anchors[kind], took_ms = [], [], [], []
        for queries, ego, asked, _ in given:
            start = time.perf_counter()
            reasoning = reasoner.reason(queries).reasoning
            took_ms.append((time.perf_counter() - start) * 1e3)
            plan = planner.plan(queries, ego, asked, reasoning, 0.0)
            tokens[kind].append(reasoning.token)
            paths[kind].append(plan.candidates[plan.chosen, :, :2])
            anchors[kind].append(plan.chosen)
        apart_m = np.linalg.norm(np.array(paths[kind]) - np.array(paths["stored"]), axis=-1)  # (n, S)
        token, wanted = np.array(tokens[kind]), np.array(tokens["stored"])
        driven = [
            np.linalg.norm(path - true, axis=-1).mean()
            for path, (*_, true) in zip(paths[kind], given, strict=True)
            if true is not None
        ]
        report[kind] = {
            "weights": reasoner.info.extras.get("language weights", "stored"),
            "token_error": round(float(np.linalg.norm(token - wanted) / np.linalg.norm(wanted)), 5),
            "same_anchor": round(float(np.mean(np.equal(anchors[kind], anchors["stored"]))), 4),
            "apart_m": {
                name: {"mean": round(float(at.mean()), 4), "max": round(float(at.max()), 4)}
                for name, at in ((name, apart_m[:, step]) for name, step in SECONDS.items())
            },
            "driven_m": round(float(np.mean(driven)), 4) if driven else None,
            "reason_ms": spread(took_ms),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("language_weights.json"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--cache", type=Path, help="a split that `sparseoccvla data cache` wrote; else noise")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    source = ModelSource(model=args.model, precision=args.precision, threads=args.threads)
    try:
        result = measure(source, args.cache, args.scenes)
    except InputError as error:
        print(f"not measured: {error}")
        return
    report = {
        "what": "plans with rounded weights of the language model against plans with the stored ones",
        "command": command(),
        **machine(),
        **result,
    }
    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
