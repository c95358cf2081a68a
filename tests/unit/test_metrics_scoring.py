"""The `score` verb, driven as a person drives it: files in, one JSON object out."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.cli import main
from sparseoccvla.metrics.agents import AgentFutures, omnidrive_raster, vad_raster
from sparseoccvla.metrics.planning import PlanningProtocol

FREE, CAR, ROAD = 17, 4, 11
ALONG = np.stack([np.zeros(6), 3.0 * np.arange(1, 7)], axis=1)


def run(monkeypatch, capsys, *arguments: object) -> tuple[int, dict, str]:
    """Exit code, the JSON on stdout (empty if none) and stderr of `sparseoccvla score ...`."""
    monkeypatch.setattr("sys.argv", ["sparseoccvla", "score", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    return int(stopped.value.code or 0), json.loads(out) if out.strip() else {}, err


@pytest.fixture
def score(monkeypatch, capsys):
    return lambda *arguments: run(monkeypatch, capsys, *arguments)


def pairs_file(folder: Path, pairs: object) -> Path:
    path = folder / "pairs.json"
    path.write_text(json.dumps({"pairs": pairs}))
    return path


def test_a_report_has_protocol_n_items_pooled_and_skipped(score, tmp_path) -> None:
    pairs = [
        {"prediction": "the car stops", "reference": "the car stops now"},
        {"prediction": "turn left", "references": ["turn right", "go left"]},
    ]
    code, report, err = score("language", "--pairs", pairs_file(tmp_path, pairs))
    assert code == 0
    assert (report["protocol"], report["n"], len(report["items"])) == ("raw", 2, 2)
    assert report["skipped"] == []
    assert {"Bleu_1", "Bleu_4", "ROUGE_L", "CIDEr", "METEOR"} <= set(report["pooled"])
    assert report["pooled"]["METEOR"] is not None or "nltk.downloader wordnet punkt_tab" in err


def test_every_bad_pair_is_listed_with_its_reason_and_counts_for_nothing(score, tmp_path) -> None:
    good = [
        {"id": "a", "prediction": "one two", "reference": "one two"},
        {"prediction": "x", "reference": "y"},
    ]
    bad = [
        ({"id": "a", "prediction": "again", "reference": "again"}, "duplicate"),
        ({"prediction": "", "reference": "y"}, "the prediction is empty"),
        ({"prediction": "x", "reference": " "}, "a reference is empty"),
        ({"reference": "y"}, "there is no prediction"),
        ({"prediction": "x"}, "there is no reference"),
        ({"prediction": "x", "reference": "y", "references": ["y"]}, "both"),
        ({"prediction": float("nan"), "reference": "y"}, "a float"),
        ({"prediction": "x", "references": "y"}, "a str, wanted a list"),
        ("x", "a str, wanted an object"),
    ]
    path = pairs_file(tmp_path, good + [pair for pair, _ in bad])
    code, report, err = score("language", "--pairs", path)
    assert (code, report["n"], len(report["skipped"])) == (0, 2, len(bad))
    for (_, reason), entry in zip(bad, report["skipped"], strict=True):
        assert reason in entry["reason"]
        assert entry["reason"] in err
    alone = score("language", "--pairs", pairs_file(tmp_path, good))[1]
    assert alone["pooled"] == report["pooled"]


@pytest.mark.parametrize("pairs", [[], [{"prediction": "", "reference": "x"}], {"a": 1}, None])
def test_a_score_of_nothing_is_an_error(score, tmp_path, pairs) -> None:
    code, report, err = score("language", "--pairs", pairs_file(tmp_path, pairs))
    assert (code, report) == (2, {})
    assert "nothing to score" in err or 'no list "pairs"' in err


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff"])
def test_a_file_that_is_not_the_wanted_json_is_an_error(score, tmp_path, content: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(content, encoding="latin-1")
    assert score("language", "--pairs", path)[0] == 2
    assert score("language", "--pairs", tmp_path / "absent.json")[0] == 2


def occupancy_case(folder: Path, name: str, packed: bool = True, **change) -> Path:
    truth = np.full((200, 200, 16), FREE, np.uint8)
    truth[:, :, 0], truth[150, 90:110, 1:6] = ROAD, CAR
    seen = np.zeros(truth.shape, bool)
    seen[100:] = True
    arrays = {"gt": truth, "pred": truth, "mask_camera": np.packbits(seen) if packed else seen} | change
    np.savez(folder / f"{name}.npz", **{k: v for k, v in arrays.items() if v is not None})
    return folder / f"{name}.npz"


def test_occupancy_is_scored_with_packed_and_unpacked_masks_alike(score, tmp_path) -> None:
    worse = np.full((200, 200, 16), FREE, np.uint8)
    worse[:, :, 0] = ROAD
    figures = []
    for packed in (True, False):
        case = occupancy_case(tmp_path, f"case{packed}", packed, pred=worse)
        code, report, _ = score("occupancy", "--case", case, "--mask", "camera", "--convention", "occ3d")
        assert (code, report["n"], report["protocol"]) == (0, 1, "occ3d/camera_mask")
        figures.append(report["pooled"])
    assert figures[0] == figures[1]
    assert figures[0]["mIoU"] == 0.5  # road right, car missed: a fraction, not percent


def test_rays_add_rayiou_to_items_and_pool(score, tmp_path) -> None:
    (tmp_path / "origins.json").write_text(json.dumps({"origins_ego_m": [[0.98, 0.0, 1.84]]}))
    cases = [arg for name in "ab" for arg in ("--case", occupancy_case(tmp_path, name))]
    rest = ("--mask", "none", "--convention", "sparseocc", "--rays", tmp_path / "origins.json")
    code, report, _ = score("occupancy", *cases, *rest)
    assert code == 0
    assert report["pooled"]["RayIoU"] == report["items"][1]["RayIoU"] == 1.0
    assert report["pooled"]["rays"] == 2 * report["items"][0]["rays"]


def test_every_bad_case_is_listed_and_counts_for_nothing(score, tmp_path) -> None:
    good = occupancy_case(tmp_path, "good")
    not_finite = np.full((200, 200, 16), np.nan)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(good.read_bytes()[:200])
    bad = [
        (good, "duplicate"),
        (tmp_path / "absent.npz", "no such file"),
        (broken, "readable .npz"),
        (occupancy_case(tmp_path, "shape", pred=np.zeros((3, 3, 3), np.uint8)), "shape"),
        (occupancy_case(tmp_path, "nan", pred=not_finite), "not finite"),
        (occupancy_case(tmp_path, "label", pred=np.full((200, 200, 16), 40, np.uint8)), "labels 40..40"),
        (occupancy_case(tmp_path, "unmasked", mask_camera=None), "mask_camera is missing"),
        (occupancy_case(tmp_path, "blind", pred=None), "pred is missing"),
        (occupancy_case(tmp_path, "pickle", pred=np.array([{}], object)), "cannot be read"),
    ]
    cases = [arg for path in (good, *(p for p, _ in bad)) for arg in ("--case", path)]
    code, report, _ = score("occupancy", *cases, "--mask", "camera", "--convention", "occ3d")
    assert (code, report["n"], report["pooled"]["mIoU"]) == (0, 1, 1.0)
    for (path, reason), entry in zip(bad, report["skipped"], strict=True):
        assert entry["item"] == str(path)
        assert reason in entry["reason"]
    code, report, err = score("occupancy", "--case", bad[3][0], "--mask", "none", "--convention", "occ3d")
    assert (code, report) == (2, {})
    assert "nothing to score" in err


@pytest.mark.parametrize("origins", [{}, {"origins_ego_m": []}, {"origins_ego_m": [["a", 1, 2]]}, []])
def test_ray_origins_that_are_none_are_an_error(score, tmp_path, origins) -> None:
    (tmp_path / "origins.json").write_text(json.dumps(origins))
    case = occupancy_case(tmp_path, "case")
    rest = ("--mask", "none", "--convention", "occ3d", "--rays", tmp_path / "origins.json")
    assert score("occupancy", "--case", case, *rest)[0] == 2


def planning_case(name: str, predicted=ALONG, driven=ALONG) -> dict[str, np.ndarray]:
    """A car stands 14 m ahead; the layout is VAD's."""
    boxes = np.array([[0.0, 14, 0, 1.9, 4.5, 1.6, -np.pi, 0, 0]])
    features = np.zeros((1, 34))
    features[0, 12:18], features[0, 27] = 1, 17
    agents = AgentFutures.from_vad(boxes, features)
    fine = omnidrive_raster(agents)
    return {
        f"pred_{name}": predicted,
        f"gt_{name}": driven,
        f"occ_vad_{name}": np.packbits(vad_raster(agents)),
        f"omni_occ_{name}": np.packbits(np.concatenate([fine[:1], fine])),
        f"agent_boxes_{name}": boxes,
        f"agent_feats_{name}": features,
    }


@pytest.mark.parametrize("protocol", list(PlanningProtocol))
def test_planning_cases_are_numbered_by_their_keys(score, tmp_path, protocol) -> None:
    stops = np.minimum(ALONG, [0, 7.0])
    path = tmp_path / "cases.npz"
    np.savez(path, **planning_case("10", ALONG, stops), **planning_case("2", stops, stops))
    code, report, _ = score("planning", "--cases", path, "--protocol", protocol)
    assert (code, report["n"], report["protocol"]) == (0, 2, protocol)
    assert [item["case"] for item in report["items"]] == ["2", "10"]
    first, second = report["items"]
    assert (first["L2_3s"], first["obj_box_col_2s"]) == (0.0, 0.0)
    assert second["obj_box_col_2s"] > 0
    assert report["pooled"]["L2_3s"] == pytest.approx(second["L2_3s"] / 2)


@pytest.mark.parametrize("protocol", list(PlanningProtocol))
def test_plans_without_a_valid_future_are_listed(score, tmp_path, protocol) -> None:
    unknown = ALONG.copy()
    unknown[4:] = np.nan
    arrays = (
        planning_case("0")
        | planning_case("1", driven=unknown)
        | planning_case("2", predicted=unknown)
        | planning_case("3", predicted=ALONG[:5])
        | planning_case("4")
        | planning_case("5")
    )
    del arrays["pred_4"], arrays["gt_5"]
    path = tmp_path / "cases.npz"
    np.savez(path, **arrays)
    code, report, err = score("planning", "--cases", path, "--protocol", protocol)
    assert (code, report["n"], report["pooled"]["L2_3s"]) == (0, 1, 0.0)
    wanted = ["no valid future", "prediction has 4 values", "(5, 2)", "pred_4 is missing", "gt_5 is missing"]
    for number, (reason, entry) in enumerate(zip(wanted, report["skipped"], strict=True), 1):
        assert entry["item"] == str(number)
        assert reason in entry["reason"]
        assert f"skipped {number}: " in err


def test_planning_without_cases_or_obstacles_is_an_error(score, tmp_path) -> None:
    path = tmp_path / "cases.npz"
    np.savez(path, other=np.zeros(3))
    assert score("planning", "--cases", path, "--protocol", "vad")[0] == 2
    np.savez(path, pred_0=ALONG, gt_0=ALONG)
    code, _, err = score("planning", "--cases", path, "--protocol", "vad")
    assert code == 2
    assert "occ_vad_0 is missing" in err
    assert score("planning", "--cases", tmp_path / "absent.npz", "--protocol", "vad")[0] == 2


def test_an_unknown_protocol_is_an_error(score, tmp_path) -> None:
    assert score("planning", "--cases", tmp_path, "--protocol", "stp4")[0] == 2
    assert score("occupancy", "--case", tmp_path, "--mask", "radar", "--convention", "occ3d")[0] == 2
