import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparseoccvla.metrics.results import (
    NO_MODEL,
    DataOrigin,
    Results,
    ResultsError,
    read_results,
    stale_results,
    write_results,
)

SHIPPED = "0123456789abcdef"
RESULTS = Results(
    kind="planning",
    protocol="exact",
    model_id=SHIPPED,
    data=DataOrigin("world", "v1.0-world", "val", (1000, 1001)),
    command="sparseoccvla eval planning --model tiny",
    n=300,
    skipped=0,
    figures={"model": {"L2_avg": 0.5}, "constant_velocity": {"L2_avg": 1.5}},
)


def test_a_results_file_says_model_data_command_and_versions(tmp_path: Path) -> None:
    write_results(tmp_path / "deep" / "planning.json", RESULTS)
    back = read_results(tmp_path / "deep" / "planning.json")
    assert replace(back, versions={}) == RESULTS
    assert {"python", "numpy"} <= set(back.versions)
    assert [p.name for p in tmp_path.glob("deep/*")] == ["planning.json"]  # nothing half written


def test_a_file_of_another_model_than_the_shipped_one_is_found(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("fresh.json", "stale.json", "plain.json")]
    for path, model_id in zip(paths, (SHIPPED, "fedcba9876543210", NO_MODEL), strict=True):
        write_results(path, replace(RESULTS, model_id=model_id))
    (line,) = stale_results(paths, SHIPPED)
    assert "stale.json is of model fedcba9876543210, shipped is 0123456789abcdef: run make results" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 0}, "not a results file of format 1"),
        ({"command": None}, "without command"),
        ({"n": 0}, "n = 0"),
        ({"model_id": "tiny"}, "wanted 16 hex digits"),
        ({"versions": {}}, "names no versions"),
        ({"extra": 1}, "should not have: extra"),
        ({"data": {"name": "world"}}, r"data\.seeds"),
    ],
)
def test_a_results_file_that_nobody_could_repeat_is_refused(tmp_path, change: dict, message: str) -> None:
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ResultsError, match=message):
        read_results(path)


@pytest.mark.parametrize("key", ["model_id", "data", "command", "versions", "protocol"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "results.json"
    write_results(path, RESULTS)
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(ResultsError, match=key):
        read_results(path)
    path.write_text("{")
    with pytest.raises(ResultsError, match="not a readable results file"):
        read_results(path)


def test_nan_never_gets_into_a_results_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "results.json", replace(RESULTS, figures={"model": float("nan")}))
    assert not (tmp_path / "results.json").exists()
