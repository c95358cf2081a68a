"""The GPU benchmark runs without a GPU, so that it runs where one is."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_every_stage_is_timed_in_every_way(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [
        sys.executable,
        str(SCRIPT),
        "--device",
        "cpu",
        "--small",
        "--compiled",
        "--rounds",
        "2",
        "--out",
        str(out),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    report = json.loads(out.read_text())
    [model] = report["models"].values()
    stages = {name.split(",")[0] for name in model["stages_ms"]}
    assert stages == {"backbone", "decoder", "reasoner", "planner", "all four"}
    for way in ("eager bf16", "replayed bf16", "compiled bf16, replayed"):
        assert {name.split(",")[0] for name in model["stages_ms"] if name.endswith(way)} == stages
        assert model["ways"][way]["all_four_ms"] > 0
    assert all(row["n"] == 2 and row["p50"] > 0 for row in model["stages_ms"].values())
    assert model["prefill_bound_ms"] > 0
    assert report["roofline"]["bandwidth_gb_per_s"] > 0
