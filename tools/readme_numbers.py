"""The table of measured figures in README.md, made from benchmarks/*.json.

python -m tools.readme_numbers      writes it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- numbers: python -m tools.readme_numbers -->", "<!-- end of numbers -->"


def load(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text())


def table() -> str:
    """The lines between the marks."""
    latency, bags, metrics = load("latency"), load("bags"), load("metrics")
    world = load("world")["generate"]
    whole = latency["camera_to_ms"]["trajectory"]
    speed = metrics["figures"]["speed"]
    rows = [
        (
            f"last camera of a set to guarded trajectory, `{latency['backend']}` backend, 4 processes, "
            f"{latency['pictures']}, n = {whole['n']}",
            f"median {whole['p50']:.1f} ms, p95 {whole['p95']:.1f} ms",
            "latency",
        ),
        (
            "bag write / read beside plain `rosbags` in the same run",
            f"{bags['ratio_to_plain_rosbags']['write']:.2f} / {bags['ratio_to_plain_rosbags']['read']:.2f} "
            "of its speed",
            "bags",
        ),
        (
            "scoring 200x200x16 grids: mIoU, RayIoU with 8 origins",
            f"{speed['miou_pairs_per_s']:.0f}/s, {speed['rayiou_8_origins_pairs_per_s']:.1f}/s",
            "metrics",
        ),
        ("CIDEr of 50,000 answers", f"{speed['cider_50000_answers_s']:.1f} s", "metrics"),
        (
            "world data set: keyframes of 352x128 / 704x396 with lidar, labels and language",
            f"{world['352x128']['keyframes_per_s']:.1f}/s, {world['704x396']['keyframes_per_s']:.1f}/s",
            "world",
        ),
    ]
    lines = ["| measured on 2 cores | value | command |", "|---|---|---|"]
    lines += [f"| {what} | {value} | `benchmarks/{name}.py` |" for what, value, name in rows]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """README text with the table of today."""
    head, rest = text.split(START)
    _, tail = rest.split(END)
    return f"{head}{START}\n{table()}\n{END}{tail}"


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    main()
