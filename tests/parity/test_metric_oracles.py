"""Our figures against those of public evaluators, on cases that lie beside the real data."""

import json
from pathlib import Path

import numpy as np
import pytest

from sparseoccvla.metrics.agents import AgentFutures, omnidrive_raster, vad_raster
from sparseoccvla.metrics.language import LanguageMetric, Tokens
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.metrics.pdm import DrivingScene, Road, Track, score_plan
from sparseoccvla.metrics.pdm_comfort import PdmVersion, comfort_terms
from sparseoccvla.metrics.pdm_motion import interpolate_plan, simulate, start_state
from sparseoccvla.metrics.planning import PlanningMetric, PlanningProtocol, PlanSample, footprint
from sparseoccvla.metrics.ptb import ptb_tokens
from sparseoccvla.metrics.rays import RayMetric


@pytest.fixture(scope="module")
def oracles(real_data: Path) -> Path:
    folder = real_data.parent / "oracles"
    if not folder.is_dir():
        pytest.skip(f"no folder oracles beside {real_data.name}")
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.real_data
@pytest.mark.parametrize("pair", [0, 1])
@pytest.mark.parametrize("mask", list(Mask))
@pytest.mark.parametrize("convention", [Convention.OCC3D, Convention.SPARSEOCC, Convention.SPARSEWORLD])
def test_occupancy_equals_the_public_evaluators(oracles: Path, pair: int, mask: Mask, convention) -> None:
    name = {Convention.SPARSEOCC: "sparseocc_old"}.get(convention, str(convention))
    column = "no_mask" if mask is Mask.NONE else f"{mask}_mask"
    expected = read(oracles / "occupancy_expected.json")["pairs"][pair][f"{name}/{column}"]
    grids = np.load(oracles / f"occupancy_pair{pair}.npz")
    counted = None
    if mask is not Mask.NONE:
        counted = np.unpackbits(grids[f"mask_{mask}"]).reshape(grids["gt"].shape).astype(bool)
    metric = OccupancyMetric(mask, convention)
    metric.update(grids["pred"], grids["gt"], counted)
    result = metric.result()
    assert result["mIoU"] == pytest.approx(expected["mIoU_17"], abs=1e-9)
    for ours, theirs in zip(result["per_class_iou"], expected["per_class_iou"], strict=True):
        assert ours == (None if theirs is None else pytest.approx(theirs, abs=1e-9))
    if "IoU_occupied" in expected:
        assert result["IoU"] == pytest.approx(expected["IoU_occupied"], abs=1e-9)
        assert result["IoU_free"] == pytest.approx(expected["IoU_free"], abs=1e-9)


@pytest.mark.real_data
def test_occworld_counts_absent_classes_as_one(oracles: Path) -> None:
    grids = np.load(oracles / "occupancy_pair0.npz")
    metric = OccupancyMetric(Mask.NONE, Convention.OCCWORLD)
    metric.update(grids["pred"], grids["gt"], None)
    assert metric.result()["mIoU"] == pytest.approx(0.733, abs=5e-4)


@pytest.mark.real_data
def test_rayiou_equals_the_public_evaluator(oracles: Path) -> None:
    expected = read(oracles / "occupancy_expected.json")["rayiou"]
    for index, figures in enumerate(expected["pairs"]):
        grids = np.load(oracles / f"occupancy_pair{index}.npz")
        metric = RayMetric()
        metric.update(grids["pred"], grids["gt"], expected["origins_ego_m"][0])
        result = metric.result()
        assert result["rays"] == figures["valid_rays"][0]
        for key in ("RayIoU", "RayIoU@1", "RayIoU@2", "RayIoU@4"):
            assert result[key] == pytest.approx(figures[key], abs=1e-3)


def planning_samples(oracles: Path) -> list[tuple[dict, PlanSample]]:
    arrays = np.load(oracles / "planning_cases.npz")
    samples = []
    for case in read(oracles / "planning_expected.json")["cases"]:
        index = case["index"]
        sample = PlanSample(
            arrays[f"pred_{index}"],
            arrays[f"gt_{index}"],
            raster=np.unpackbits(arrays[f"occ_vad_{index}"]).reshape(6, 200, 200).astype(bool),
            fine_raster=np.unpackbits(arrays[f"omni_occ_{index}"]).reshape(7, 1000, 1000)[1:].astype(bool),
            agents=AgentFutures.from_vad(arrays[f"agent_boxes_{index}"], arrays[f"agent_feats_{index}"]),
        )
        samples.append((case, sample))
    return samples


# How each evaluator calls what we call L2_, obj_box_col_ and obj_col_; VAD's and SparseDrive's obj_col
# are something else.
KEYS = {
    "stp3": {"L2": "L2_{}", "obj_box_col": "obj_box_col_{}", "obj_col": "obj_col_{}"},
    "admlp": {"L2": "L2_{}", "obj_box_col": "obj_box_col_{}", "obj_col": "obj_col_{}"},
    "uniad": {
        "L2": "L2_{}_at_step",
        "obj_box_col": "obj_box_col_{}_at_step",
        "obj_col": "obj_col_{}_at_step",
    },
    "vad": {"L2": "plan_L2_{}", "obj_box_col": "plan_obj_box_col_{}"},
    "sparsedrive": {"L2": "L2_{}_mean_to_step", "obj_box_col": "obj_box_col_{}_mean_to_step"},
    "omnidrive": {"L2": "l2_{}", "obj_box_col": "box_col_any_{}"},
}


@pytest.mark.real_data
@pytest.mark.parametrize("protocol", list(KEYS))
def test_planning_equals_the_public_evaluators(oracles: Path, protocol: str) -> None:
    for case, sample in planning_samples(oracles):
        metric = PlanningMetric(PlanningProtocol(protocol))
        metric.update(sample)
        result = metric.result()
        for name, theirs in KEYS[protocol].items():
            for horizon in ("1s", "2s", "3s"):
                tolerance = 1e-4 if name == "L2" else 1e-6  # theirs are single precision
                wanted = case[protocol][theirs.format(horizon)]
                assert result[f"{name}_{horizon}"] == pytest.approx(wanted, abs=tolerance), case["name"]


@pytest.mark.real_data
def test_rasters_equal_those_of_vad_and_omnidrive_in_every_cell(oracles: Path) -> None:
    for _, sample in planning_samples(oracles):
        assert (vad_raster(sample.agents) == sample.raster).all()
        assert (omnidrive_raster(sample.agents) == sample.fine_raster).all()


@pytest.mark.real_data
def test_the_footprint_has_the_public_cells(oracles: Path) -> None:
    assert footprint(0.5, 0.5).tolist() == read(oracles / "ego_footprint_0p5m.json")["cells"]


def scored(pairs: list[tuple[str, list[str]]], tokens: Tokens) -> tuple[dict, list[dict]]:
    metric = LanguageMetric(tokens)
    for prediction, references in pairs:
        metric.update(prediction, references)
    return metric.scores()


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["subset_first5_raw", "single_pair_1_raw", "multi_reference_raw", "ptb"])
def test_language_equals_pycocoevalcap(oracles: Path, name: str) -> None:
    content = read(oracles / "language_pairs.json")
    expected = content["results"]["multi_reference_ptb" if name == "ptb" else name]
    if "ids" in expected:
        by_id = {pair["id"]: (pair["prediction"], [pair["reference"]]) for pair in content["pairs"]}
        pairs = [by_id[i] for i in expected["ids"]]
    else:
        source = content["results"]["multi_reference_raw"]
        pairs = [(source["predictions"][k], source["references"][k]) for k in source["predictions"]]
    corpus, items = scored(pairs, Tokens.PTB if name == "ptb" else Tokens.RAW)
    for key, value in expected["corpus"].items():
        assert corpus[key] == pytest.approx(value, abs=1e-6)
        assert [item[key] for item in items] == pytest.approx(expected["per_pair"][key], abs=1e-6)


@pytest.mark.real_data
def test_tokens_equal_stanfords_on_the_open_pairs(oracles: Path) -> None:
    for pair in read(oracles / "language_pairs.json")["pairs"]:
        assert " ".join(ptb_tokens(pair["reference"])) == pair["ref_tokens_ptb"]
        assert " ".join(ptb_tokens(pair["prediction"])) == pair["pred_tokens_ptb"]


@pytest.mark.parametrize(
    ("text", "tokens"), read(Path(__file__).with_name("ptb_cases.json"))["cases"].items()
)
def test_tokens_equal_stanfords(text: str, tokens: list[str]) -> None:
    assert ptb_tokens(text) == tokens


def rectangle(bounds: list[float]) -> np.ndarray:
    x0, y0, x1, y1 = bounds
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def driving_scene(content: dict, case: dict) -> DrivingScene:
    areas = content["map"]
    road = Road(
        tuple(rectangle(b) for b in (*areas["roadblocks"].values(), *areas["intersections"].values())),
        {name: rectangle(b) for name, b in (areas["lanes"] | areas["lane_connectors"]).items()},
        frozenset(areas["route_lane_ids"]),
        tuple(rectangle(b) for b in areas["intersections"].values()),
        np.stack([np.arange(-20.0, 121), np.zeros(141)], axis=1),
    )
    tracks = tuple(
        Track.moving(
            (a["x"], a["y"], a["yaw"]),
            (a["l"], a["w"]),
            (a["vx"], a["vy"]),
            a["type"] in ("vehicle", "pedestrian", "bicycle"),
        )
        for a in case["agents"]
    )
    ego = case["ego0"]
    return DrivingScene(start_state(ego["v"], (ego["x"], ego["y"], ego["heading"])), road, tracks)


@pytest.mark.real_data
def test_pdm_scores_equal_navsims(oracles: Path) -> None:
    content = read(oracles / "pdm_score_v2.json")
    for case in content["cases"]:
        scene = driving_scene(content, case)
        plan, reference = (np.array(case[k]) for k in ("waypoints_2hz", "reference_waypoints_2hz"))
        for poses, column in ((plan, "simulated_10hz"), (reference, "simulated_reference_10hz")):
            states = simulate(interpolate_plan(poses, scene.start), scene.start)
            np.testing.assert_allclose(states, case[column], atol=1e-3, err_msg=case["name"])
        assert comfort_terms(np.array(case["simulated_10hz"]), PdmVersion.V2) == case["comfort_terms"]
        ours, theirs = score_plan(scene, plan, reference, PdmVersion.V2).as_dict(), case["scores"]
        assert ours["score"] == pytest.approx(theirs["pdm_score"], abs=1e-6), case["name"]
        assert ours["raw_progress_m"] == pytest.approx(theirs["raw_progress_m"][1], abs=1e-6)
        for name in set(ours) & set(theirs) - {"raw_progress_m"}:
            wanted = None if theirs[name] is None else pytest.approx(theirs[name], abs=1e-6)
            assert ours[name] == wanted, (case["name"], name)
    for batch in content["comfort_batch"]:
        assert comfort_terms(np.array(batch["states"]), PdmVersion.V2) == batch["terms"]
