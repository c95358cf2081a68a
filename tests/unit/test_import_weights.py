"""The importer on a synthetic checkpoint with the published names, small where sizes are free."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from sparseoccvla.backbone import ResNet50
from sparseoccvla.cli import app
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import OCC3D_GRID, EncoderInput
from sparseoccvla.errors import InputError
from sparseoccvla.import_weights import import_encoder, infer_config, map_state, read_checkpoint
from sparseoccvla.runtime.load import load_encoder, load_planner
from sparseoccvla.runtime.manifest import find_model

torch.set_num_threads(1)
WIDTH, FFN, GROUPS, HEADS, MIXING, FRAMES, PLACES, LEVELS = 32, 64, 4, 8, 16, 2, 2, 4
POINTS = (1, 4)


def linear(name: str, out: int, inside: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inside), f"{name}.bias": (out,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def decoder_shapes(layer: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one decoder layer, as the authors' classes give them."""
    before, after = (1, *POINTS)[layer], POINTS[layer]
    channels = WIDTH // GROUPS
    shapes = (
        linear("position_encoder.0", WIDTH, 3 * before)
        | norm("position_encoder.1")
        | linear("position_encoder.3", WIDTH, WIDTH)
        | norm("position_encoder.4")
        | linear("sampling.sampling_offset", GROUPS * PLACES * 3, WIDTH)
        | linear("sampling.scale_weights", GROUPS * PLACES * LEVELS, WIDTH)
        | linear("mixing.parameter_generator", GROUPS * (channels**2 + MIXING * FRAMES * PLACES), WIDTH)
        | linear("mixing.out_proj", WIDTH, MIXING * WIDTH)
        | {"self_attn.attention.attn.in_proj_weight": (3 * WIDTH, WIDTH)}
        | {"self_attn.attention.attn.in_proj_bias": (3 * WIDTH,)}
        | linear("self_attn.attention.attn.out_proj", WIDTH, WIDTH)
        | linear("self_attn.gen_tau", HEADS, WIDTH)
        | linear("ffn.layers.0.0", FFN, WIDTH)
        | linear("ffn.layers.1", WIDTH, FFN)
        | norm("norm1")
        | norm("norm2")
        | norm("norm3")
        | linear("cls_branch.0", WIDTH, WIDTH)
        | norm("cls_branch.1")
        | linear("cls_branch.3", WIDTH, WIDTH)
        | norm("cls_branch.4")
        | linear("cls_branch.6", 17 * after, WIDTH)
        | linear("reg_branch.0", WIDTH, WIDTH)
        | linear("reg_branch.2", WIDTH, WIDTH)
        | linear("reg_branch.4", 3 * after, WIDTH)
    )
    prefix = f"pts_bbox_head.transformer.decoder.decoder_layers.{layer}."
    return {prefix + name: shape for name, shape in shapes.items()}


def checkpoint(queries: int = 12) -> dict[str, Tensor]:
    """A whole OPUS state dict with small random numbers; views of one number where size matters."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"pts_bbox_head.init_points.weight": (queries, 3)}
    for layer in range(len(POINTS)):
        shapes |= decoder_shapes(layer)
    for i, width in enumerate((256, 512, 1024, 2048)):
        shapes |= {f"img_neck.lateral_convs.{i}.conv.weight": (WIDTH, width, 1, 1)}
        shapes |= {f"img_neck.fpn_convs.{i}.conv.weight": (WIDTH, WIDTH, 3, 3)}
        shapes |= {f"img_neck.{part}.{i}.conv.bias": (WIDTH,) for part in ("lateral_convs", "fpn_convs")}
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    with torch.device("meta"):
        trunk = ResNet50().net.state_dict()
    for name, tensor in trunk.items():
        state[f"img_backbone.{name}"] = torch.full((), 0.01, dtype=tensor.dtype).expand(tensor.shape)
    low, high = OCC3D_GRID.min_m, OCC3D_GRID.max_m
    state["pts_bbox_head.pc_range"] = torch.tensor([*low, *high])
    state["pts_bbox_head.scene_size"] = torch.tensor(np.subtract(high, low))
    state["pts_bbox_head.voxel_size"] = torch.full((3,), 0.4)
    state["pts_bbox_head.voxel_num"] = torch.tensor([200, 200, 16])
    return state


def mapped(state: dict[str, Tensor], kind: str = "opus"):
    return map_state(state, kind, infer_config(state))


def test_sizes_come_from_shapes() -> None:
    config = infer_config(checkpoint())
    assert (config.queries, config.width, config.frames, config.sampling_points) == (
        12,
        WIDTH,
        FRAMES,
        PLACES,
    )
    assert (config.points, config.heads, config.ffn_width, config.mixing_points) == (
        POINTS,
        HEADS,
        FFN,
        MIXING,
    )
    assert config.opus_level_weights
    assert config.sample_unseen


def test_every_entry_is_accounted_for() -> None:
    state = checkpoint()
    _, ours, report = mapped(state)
    assert len(report.used) == len(ours) == len(state) - 4
    assert sorted(report.checked) == [
        f"pts_bbox_head.{name}" for name in ("pc_range", "scene_size", "voxel_num", "voxel_size")
    ]


def test_an_unknown_entry_is_refused() -> None:
    state = checkpoint() | {"pts_bbox_head.extra.weight": torch.zeros(1)}
    with pytest.raises(InputError, match=r"1 entries that an opus encoder does not have.*extra\.weight"):
        mapped(state)


def test_a_missing_entry_is_refused() -> None:
    state = checkpoint()
    del state["pts_bbox_head.transformer.decoder.decoder_layers.1.norm2.bias"]
    with pytest.raises(InputError, match=r"1 missing \['layers.1.norm_attention.bias'\]"):
        mapped(state)


def test_a_shape_of_another_backbone_is_refused() -> None:
    state = checkpoint()
    state["img_neck.lateral_convs.0.conv.weight"] = torch.zeros(WIDTH, 128, 1, 1)
    with pytest.raises(
        InputError, match=r"1 of another shape \['backbone.lateral.0.weight \(32, 128, 1, 1\)"
    ):
        mapped(state)


def test_another_grid_is_refused() -> None:
    state = checkpoint()
    state["pts_bbox_head.pc_range"][0] = -50.0
    with pytest.raises(InputError, match=r"pc_range is .* it was trained on another voxel grid"):
        mapped(state)


def test_another_model_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"has no 'pts_bbox_head.init_points.weight'; wanted an OPUS decoder"
    ):
        infer_config({"fc.weight": torch.zeros(2, 2)})


def sparseworld() -> tuple[dict[str, Tensor], Tensor]:
    """A SparseWorld state dict, and which of its queries are of the present."""
    state = checkpoint(queries=1040)
    present = torch.randperm(1040, generator=torch.Generator().manual_seed(1))[:720].sort().values
    stamps = torch.randint(0, 5, (1040, 7), generator=torch.Generator().manual_seed(2))
    stamps[present, 0] = 1000
    state["pts_bbox_head.num_stamps_all"] = stamps
    for name in ("plan_head.0.weight", "traj_head.2.bias", "cls_branch.4.weight", "position_encoder.0.bias"):
        state[name] = torch.zeros(3)
    return state, present


def test_sparseworld_keeps_the_queries_of_the_present() -> None:
    state, present = sparseworld()
    config, ours, report = mapped(state, "sparseworld")
    assert config.queries == 720
    wanted = state["pts_bbox_head.init_points.weight"][present] * 1.15
    assert torch.allclose(ours["initial_points"], wanted)
    assert len(report.unused) == 5
    assert any("720 of 1040 queries" in note for note in report.notes)


def test_sparseworld_heads_are_not_taken_for_the_decoders() -> None:
    state, _ = sparseworld()
    _, _, report = mapped(state, "sparseworld")
    assert "cls_branch.4.weight" in report.unused
    with pytest.raises(InputError, match="entries that an opus encoder does not have"):
        mapped(state, "opus")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil()}, path)
    with pytest.raises(InputError, match="is not a checkpoint of plain tensors"):
        read_checkpoint(path)


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"broken.pth is not a checkpoint of plain tensors"):
        read_checkpoint(path)
    with pytest.raises(InputError, match=r"none.pth does not exist"):
        read_checkpoint(tmp_path / "none.pth")


@pytest.mark.slow
def test_an_imported_model_runs_through_the_seam(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.clone() for name, tensor in checkpoint().items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": {}}, tmp_path / "opus.pth")
    out = tmp_path / "model"
    result = CliRunner().invoke(app, ["import", "opus", str(tmp_path / "opus.pth"), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["used"] == len(state) - 4
    source = ModelSource(model=str(out))
    encoder = load_encoder(source)
    assert encoder.info.trained
    assert "by its authors" in encoder.info.trained_on
    frame = encoder.extract(EncoderInput.fake(size=(256, 704)))
    output = encoder.decode([frame, None])
    output.points.validate()
    repeated = encoder.decode([frame, frame])
    assert np.array_equal(output.queries.features, repeated.queries.features), (
        "history is repeated, not masked"
    )
    planner = load_planner(source)
    assert not planner.info.trained
    assert planner.info.requires_stage_id == encoder.info.stage_id


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty, wanted a new folder"):
        import_encoder("opus", tmp_path / "opus.pth", find_model("tiny"))
    with pytest.raises(InputError, match="import knows opus and sparseworld, not 'bevformer'"):
        import_encoder("bevformer", tmp_path / "x.pth", tmp_path)
