"""TensorRT engines of the paper's size, built here for GPUs that are not: seconds, bytes and memory of each.

    make engines && python benchmarks/engines.py            # without TensorRT for RTX it says so and ends

ResNet-50, 8 frames, 600 queries, 6 layers, forecaster and planner as in `models/nuscenes_r50_vicuna7b`, and
a language model as wide as Vicuna-7B with two of its 32 layers; weights are random, which changes neither.
Each graph is exported, and each engine built, in a process of its own, whose peak it reports. None is run.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.measuring import machine
from sparseoccvla.engines.build import build
from sparseoccvla.engines.export import export
from sparseoccvla.runtime.engine_record import Precision
from sparseoccvla.runtime.exported import GRAPHS
from tools.make_untrained_models import PAPER, write_model

GIB = 2**30


def write_stand_in(folder: Path, layers: int) -> None:
    """The paper's model with a language model of `layers` layers built from its sizes."""
    language = replace(PAPER.reasoner.language, path="", layers=layers, dtype="float32", lora_rank=0)
    write_model(folder, replace(PAPER, reasoner=replace(PAPER.reasoner, language=language)), "a benchmark")


def exported(model: Path, out: Path, graph: str) -> dict[str, Any]:
    """Export one graph to a folder of its own."""
    export(str(model), out, graphs=(graph,))
    return {"onnx_bytes": sum(file.stat().st_size for file in out.glob("*.onnx*"))}


def built(onnx: Path, out: Path, graph: str, target: str, precision: Precision) -> dict[str, Any]:
    """Build one engine."""
    [record] = build(onnx, out, [target], precision, [graph])
    return {"library": record.library, "engine_bytes": record.engine_bytes}


def measured(work: Callable[..., dict[str, Any]], *args: object) -> dict[str, Any]:
    """What `work` returns, with its seconds and the peak of the process."""
    start = time.perf_counter()
    result = work(*args)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(peak / GIB, 2), **result}


def apart(work: Callable[..., dict[str, Any]], *args: object) -> dict[str, Any]:
    """`measured` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measured, work, *args).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("engines.json"))
    parser.add_argument("--targets", nargs="*", default=["sm86", "sm89", "sm120"])
    parser.add_argument("--graphs", nargs="*", choices=GRAPHS, default=list(GRAPHS))
    parser.add_argument("--precision", type=Precision, choices=Precision, default=Precision.MIXED)
    parser.add_argument("--language-layers", type=int, default=2)
    args = parser.parse_args()
    if find_spec("tensorrt_rtx") is None:
        print("TensorRT for RTX is not installed, so nothing is built: make engines")
        return
    report: dict[str, Any] = {
        "what": "engines of models/nuscenes_r50_vicuna7b, random weights; built, not run",
        "command": "python benchmarks/engines.py " + " ".join(sys.argv[1:]),
        **machine(),
        "precision": str(args.precision),
        "language_layers": args.language_layers,
        "graphs": {},
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_stand_in(folder / "model", args.language_layers)
        for graph in args.graphs:
            onnx = folder / graph
            row: dict[str, Any] = {"export": apart(exported, folder / "model", onnx, graph)}
            for target in args.targets:
                engines = folder / f"{graph}-{target}"
                row[target] = apart(built, onnx, engines, graph, target, args.precision)
            report["graphs"][graph] = row
            print(graph, json.dumps(row), flush=True)
            args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
