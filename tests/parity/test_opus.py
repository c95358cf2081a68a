"""Our encoder against recorded outputs of the authors' OPUS code, and the importer against its files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparseoccvla.contracts import OCC3D_GRID
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.import_weights import infer_config, map_state, read_checkpoint
from sparseoccvla.sampling import stack_views
from sparseoccvla.voxels import VoxelRule, drop_strays, voxelize

LOGITS, POINTS = 5e-4, 2e-5
EXTENT = np.subtract(OCC3D_GRID.max_m, OCC3D_GRID.min_m).astype(np.float32)
LOW = np.array(OCC3D_GRID.min_m, np.float32)

torch.set_num_threads(1)


class Case:
    """A decoder case: config, network with its weights, and what goes in."""

    def __init__(self, path: Path, **changes: object) -> None:
        self.arrays = dict(np.load(path))
        meta = json.loads(bytes(self.arrays["meta"]))
        state = {
            key.removeprefix("w/"): torch.from_numpy(value)
            for key, value in self.arrays.items()
            if key.startswith("w/")
        }
        config = replace(infer_config(state), image_size_px=(meta["img_h"], meta["img_w"]), dropout=0.0)
        self.net = Encoder(replace(config, **changes)).eval()
        loaded = self.net.load_state_dict(decoder_state(state), strict=False)
        assert not loaded.unexpected_keys
        assert all(key.startswith("backbone.") for key in loaded.missing_keys)
        self.config = self.net.config

    def run(self):
        frames, cameras = self.config.frames, self.config.cameras
        matrices = torch.from_numpy(self.arrays["in/occ2img"]).unflatten(1, (frames, cameras))
        levels = []
        for i in range(4):
            maps = torch.from_numpy(self.arrays[f"in/feat{i}"])  # (B, T*N, C, H, W)
            stacked = stack_views(maps.unflatten(1, (frames, cameras)).flatten(0, 1))
            levels.append(stacked.unflatten(0, (-1, frames)))
        valid = torch.ones(matrices.shape[:3])
        with torch.no_grad():
            return self.net.decode(levels, matrices, torch.linalg.pinv(matrices[:, 0]), valid)


def decoder_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from sparseoccvla.import_weights import _target

    return {ours: tensor for name, tensor in state.items() if (ours := _target(name))}


@pytest.fixture(scope="session")
def oracles(real_data: Path) -> Path:
    folder = real_data.parent / "oracles"
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs beside the real data ({folder})")
    return folder


@pytest.fixture(scope="module")
def small_b(oracles: Path) -> Path:
    return oracles / "opus" / "small_b.npz"


def worst(case: Case) -> dict[str, float]:
    """Largest difference of each output, by name, layer by layer."""
    recorded: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module, inputs, output) -> None:
            recorded[name] = output

        return hook

    for i, layer in enumerate(case.net.layers):
        layer.position.register_forward_hook(keep(f"layer{i}/pos_enc"))
        layer.sampling.register_forward_hook(keep(f"layer{i}/sampled_feat"))
        layer.norm_mixing.register_forward_pre_hook(
            lambda module, inputs, i=i: recorded.__setitem__(f"layer{i}/mixing_out_before_norm1", inputs[0])
        )
        layer.norm_attention.register_forward_pre_hook(
            lambda module, inputs, i=i: recorded.__setitem__(f"layer{i}/attn_out_before_norm2", inputs[0])
        )
        layer.norm_ffn.register_forward_hook(keep(f"layer{i}/query_feat"))
    decoded = case.run()
    for i, (logits, points_m) in enumerate(zip(decoded.logits, decoded.points_m, strict=True)):
        recorded[f"layer{i}/cls_logits"] = logits
        recorded[f"layer{i}/points_norm"] = (points_m - LOW) / EXTENT
    return {
        name: float(np.abs(value.numpy() - case.arrays[f"out/{name}"]).max())
        for name, value in recorded.items()
    }


def test_every_layer_equals_the_recorded_one(small_b: Path) -> None:
    differences = worst(Case(small_b))
    assert len(differences) == 2 * 7
    for name, difference in differences.items():
        assert difference < (POINTS if name.endswith("points_norm") else LOGITS), name


@pytest.mark.parametrize("quirk", ["opus_level_weights", "sample_unseen"])
def test_without_a_quirk_the_imported_weights_are_wrong(small_b: Path, quirk: str) -> None:
    assert max(worst(Case(small_b, **{quirk: False})).values()) > 0.1


def test_the_voxels_of_a_whole_run_are_exact(small_b: Path) -> None:
    case = Case(small_b)
    decoded = case.run()
    points_m = decoded.points_m[-1][0].numpy()
    scores = case.net.scores(decoded.logits[-1])[0].numpy()
    rule = case.config.voxel_rule
    voxels = voxelize(drop_strays(points_m, scores, rule.max_spread_m), rule)
    assert_same_voxels(
        voxels.indices, voxels.labels, case.arrays["out/occ_loc_b0"], case.arrays["out/sem_pred_b0"]
    )


def assert_same_voxels(indices, labels, wanted_indices, wanted_labels) -> None:
    order = np.lexsort(wanted_indices.T[::-1])
    assert np.array_equal(indices, wanted_indices[order])
    assert np.array_equal(labels, wanted_labels[order])


def get_occ(oracles: Path, name: str, **changes: object):
    arrays = np.load(oracles / "opus" / "get_occ.npz")
    points_m = arrays[f"{name}/points_norm"][0] * EXTENT + LOW
    scores = 1 / (1 + np.exp(-arrays[f"{name}/cls_logits"][0]))
    threshold, padding = arrays[f"{name}/cfg"]
    rule = replace(VoxelRule(threshold=float(threshold), closing=bool(padding)), **changes)
    voxels = voxelize(drop_strays(points_m, scores, rule.max_spread_m), rule)
    return voxels, arrays[f"{name}/occ_loc"], arrays[f"{name}/sem_pred"]


@pytest.mark.parametrize("name", ["plain", "nopad", "crowded", "thr03"])
def test_post_processing_is_exact(oracles: Path, name: str) -> None:
    voxels, indices, labels = get_occ(oracles, name)
    assert_same_voxels(voxels.indices, voxels.labels, indices, labels)


def test_the_cap_on_points_of_a_voxel_matters(oracles: Path) -> None:
    voxels, indices, _ = get_occ(oracles, "crowded", max_points_per_voxel=1000)
    assert len(voxels.indices) != len(indices)


def test_a_file_of_mmcv_loads_without_running_code(oracles: Path, small_b: Path) -> None:
    state = read_checkpoint(oracles / "opus" / "ckpt_small_b.pth")
    arrays = np.load(small_b)
    assert set(state) == {key.removeprefix("w/") for key in arrays.files if key.startswith("w/")}
    for name, tensor in state.items():
        assert np.array_equal(tensor.numpy(), arrays[f"w/{name}"]), name
    config = infer_config(state)
    assert (config.queries, config.width, config.frames, config.points) == (20, 32, 3, (2, 8))


def test_the_published_names_and_shapes_make_opus_t(oracles: Path) -> None:
    kinds = {"float32": torch.float32, "int64": torch.int64}
    state = {}
    for line in (oracles / "opus" / "opus_t_state_dict_keys.tsv").read_text().splitlines():
        name, shape, dtype = line.split("\t")
        state[name] = torch.zeros(json.loads(shape), dtype=kinds[dtype])
    grid = {"pc_range": [*OCC3D_GRID.min_m, *OCC3D_GRID.max_m], "scene_size": EXTENT.tolist()}
    grid |= {"voxel_size": [0.4] * 3, "voxel_num": [200, 200, 16]}
    for name, value in grid.items():
        key = f"pts_bbox_head.{name}"
        state[key] = torch.tensor(value, dtype=state[key].dtype)
    config, ours, report = map_state(state, "opus", infer_config(state))
    published = EncoderConfig(opus_level_weights=True, sample_unseen=True, repeat_history=True)
    assert config == published, "the defaults are OPUS-T's sizes"
    assert len(state) == 627
    assert len(report.used) + len(report.checked) == 627
    assert len(report.checked) == 4
    decoder = sum(t.numel() for name, t in ours.items() if not name.startswith("backbone."))
    assert decoder == pytest.approx(50.85e6, rel=0.001)
