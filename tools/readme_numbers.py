"""The tables of measured figures in README.md, made from benchmarks/*.json and docs/results/tiny/*.json.

python -m tools.readme_numbers      writes it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- numbers: python -m tools.readme_numbers -->", "<!-- end of numbers -->"
LEARNED = "tiny"


KINDS = ("occupancy", "planning", "language")


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
        *real_time(),
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


def real_time() -> list[tuple[str, str, str]]:
    """What the trained model reaches in the launched graph, by the way it is launched."""
    rows = []
    # The long run is of the default way alone; the others are compared within one shorter run.
    for measured in (load("realtime_long"), load("realtime")):
        for way, result in measured["ways"].items():
            age = result["age_of_followed_ms"]
            rows.append(
                (
                    f"`tiny`, {way}, cameras at {measured['rate_hz']:g} Hz, {result['sets']:,} sets: plans a "
                    "second; age of the followed one",
                    f"{result['plans_per_s']:.1f}; median {age['p50']:.0f} ms, p99 {age['p99']:.0f} ms",
                    "realtime",
                )
            )
    return rows


def learned() -> str:
    """What the shipped model has learned, beside rows that need no eyes; "" before it has."""
    folder = ROOT / "docs" / "results" / LEARNED
    if not folder.exists():
        return ""
    of = {kind: json.loads((folder / f"{kind}.json").read_text()) for kind in KINDS}
    occupancy, language = of["occupancy"]["figures"]["rows"], of["language"]["figures"]["rows"]
    planning = of["planning"]["figures"]
    everywhere, events = planning["rows"]["all frames"], planning["rows"]["event frames"]
    edits = planning["cause_and_effect"]
    # Results of before the expert's own changes were counted do not have them.
    expert = f", the expert {edits['expert_changes']:.0%}" if "expert_changes" in edits else ""
    rows = []
    for key, what in (
        ("mIoU", "occupancy, mIoU in view of the cameras"),
        ("mIoU_objects", "of vehicles, pedestrians, buildings, vegetation"),
    ):
        prior, shuffled = occupancy["static prior"][key], occupancy["pictures shuffled"][key]
        blind = f"static prior {prior:.3f}, pictures shuffled {shuffled:.3f}"
        rows.append((what, f"{occupancy['model'][key]:.3f}", blind))
    for where, what in (
        (everywhere, "path, mean distance over 1, 2, 3 s"),
        (
            events,
            f"on {planning['n_event_frames']} frames between a hazard's appearing and the expert's reacting",
        ),
    ):
        blind = ", ".join(f"{row} {where[row]['L2_avg']:.2f} m" for row in ("ego-only", "constant velocity"))
        rows.append((what, f"{where['model']['L2_avg']:.2f} m", blind))
    rows.append(
        (
            "plans that change by 1 m when the hazard is taken away",
            f"{edits['hazard_removed']['changed']['1m']:.0%}",
            f"something irrelevant {edits['irrelevant']['changed']['1m']:.0%}" + expert,
        )
    )
    closed = {row: figures["closed"]["accuracy_mean_of_types"] for row, figures in language.items()}
    rows.append(
        (
            "closed questions, mean of types",
            f"{closed['model']:.0%}",
            ", ".join(f"{row} {closed[row]:.0%}" for row in ("majority answer", "pictures shuffled")),
        )
    )
    n = of["occupancy"]["n"]
    lines = [
        f"| `tiny` on {n:,} unseen keyframes of both cities (`make results`) | model | without eyes |",
        "|---|---|---|",
    ]
    lines += [f"| {what} | {value} | {blind} |" for what, value, blind in rows]
    return "\n".join(lines)


def with_table(text: str) -> str:
    """README text with the table of today."""
    head, rest = text.split(START)
    _, tail = rest.split(END)
    tables = "\n\n".join(part for part in (learned(), table()) if part)
    return f"{head}{START}\n{tables}\n{END}{tail}"


def main() -> None:
    path = ROOT / "README.md"
    path.write_text(with_table(path.read_text()))


if __name__ == "__main__":
    main()
