"""The trained tiny model in the launched graph, cameras at 12 Hz: plans a second and how old they are.

    make bench      or this one alone: python -m tools.ros_env python benchmarks/realtime.py --minutes 10

Ways to launch are tried for a short while each, one after the other; the first, as launched by default, for
`--minutes`. Cameras fire one after the other for 43 ms around t0, and age is counted from t0.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.latency import launched, measure
from benchmarks.measuring import command, machine
from sparseoccvla.engines.export import export

_BRIEF_MINUTES = 0.75
TWO_THREADS = "torch fp32, encoder on two threads"
WAYS = {
    "torch fp32": [],
    TWO_THREADS: [],
    "torch fp32, composed": ["composed:=true"],
    "torch bf16": ["precision:=bf16"],
    "torch bf16, composed": ["precision:=bf16", "composed:=true"],
    "onnxruntime": ["backend:=onnxruntime"],
    "without reasoner": ["reasoner:=off"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("realtime.json"))
    parser.add_argument("--minutes", type=float, default=_BRIEF_MINUTES, help="of the first way")
    parser.add_argument("--rate", type=float, default=12.0)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    args = parser.parse_args()
    report: dict[str, Any] = {
        "what": "models/tiny, six cameras of 704x396 JPEG, through DDS, reasoner in the loop",
        "command": command(),
        "rate_hz": args.rate,
        **machine(),
        "ways": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        exported = export("tiny", Path(folder) / "tiny")
        threads = Path(folder) / "threads.yaml"
        threads.write_text("/**/encoder_node: {ros__parameters: {threads: 2}}\n")
        for place, way in enumerate(args.only):
            extra = [f"engines:={exported.folder}"] if "onnxruntime" in way else []
            extra += [f"params_file:={threads}"] if way == TWO_THREADS else []
            minutes = args.minutes if place == 0 else min(args.minutes, _BRIEF_MINUTES)
            with launched([*WAYS[way], *extra]):
                result = measure(round(60 * minutes * args.rate), args.rate)
                report["ways"][way] = {"launch": " ".join(WAYS[way]), **result}
                print(way, json.dumps(result), flush=True)
                args.out.write_text(json.dumps(report, indent=2) + "\n")
            time.sleep(2.0)


if __name__ == "__main__":
    main()
