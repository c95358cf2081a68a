"""Public encoder checkpoints as models of ours: OPUS, and the encoder of SparseWorld.

A checkpoint is an mmcv file: a dict whose "state_dict" holds tensors. Names are mapped by one table;
sizes are inferred from shapes; every name is accounted for in the report. Nothing is executed from
the file (`weights_only`).

Numerical conventions of the networks: `encoder.py`; they were checked against outputs of the authors'
code in tests/parity/test_opus.py. The released files themselves were not at hand.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.contracts import NUM_CLASSES, OCC3D_GRID
from sparseoccvla.encoder import Encoder, EncoderConfig
from sparseoccvla.errors import InputError
from sparseoccvla.language import byte_tokenizer_json
from sparseoccvla.model import ModelConfig, read_config, write_config
from sparseoccvla.planner import PlannerConfig
from sparseoccvla.reasoner import ReasonerConfig
from sparseoccvla.runtime.manifest import Manifest, StageEntry, find_model, sha256_of, write_manifest
from sparseoccvla.voxels import VoxelRule

_HEAD = r"pts_bbox_head\."
_LAYER = _HEAD + r"transformer\.decoder\.decoder_layers\.(\d+)\."

# Theirs to ours, first match wins. "" drops an entry that carries no weight of the network.
KEY_TABLE: tuple[tuple[str, str], ...] = (
    (r"img_backbone\.(.+)", r"backbone.trunk.net.\1"),
    (r"img_neck\.lateral_convs\.(\d+)\.conv\.(.+)", r"backbone.lateral.\1.\2"),
    (r"img_neck\.fpn_convs\.(\d+)\.conv\.(.+)", r"backbone.smooth.\1.\2"),
    (_HEAD + r"init_points\.weight", r"initial_points"),
    (_LAYER + r"position_encoder\.(.+)", r"layers.\1.position.\2"),
    (_LAYER + r"sampling\.sampling_offset\.(.+)", r"layers.\1.sampling.offset.\2"),
    (_LAYER + r"sampling\.scale_weights\.(.+)", r"layers.\1.sampling.level_weight.\2"),
    (_LAYER + r"mixing\.parameter_generator\.(.+)", r"layers.\1.mixing.generate.\2"),
    (_LAYER + r"mixing\.out_proj\.(.+)", r"layers.\1.mixing.out.\2"),
    (_LAYER + r"self_attn\.attention\.attn\.in_proj_(.+)", r"layers.\1.attention.qkv.\2"),
    (_LAYER + r"self_attn\.attention\.attn\.out_proj\.(.+)", r"layers.\1.attention.out.\2"),
    (_LAYER + r"self_attn\.gen_tau\.(.+)", r"layers.\1.attention.rate.\2"),
    (_LAYER + r"ffn\.layers\.0\.0\.(.+)", r"layers.\1.ffn.0.\2"),
    (_LAYER + r"ffn\.layers\.1\.(.+)", r"layers.\1.ffn.3.\2"),
    (_LAYER + r"norm1\.(.+)", r"layers.\1.norm_mixing.\2"),
    (_LAYER + r"norm2\.(.+)", r"layers.\1.norm_attention.\2"),
    (_LAYER + r"norm3\.(.+)", r"layers.\1.norm_ffn.\2"),
    (_LAYER + r"cls_branch\.(.+)", r"layers.\1.classes.net.\2"),
    (_LAYER + r"reg_branch\.(.+)", r"layers.\1.offsets.\2"),
    (_HEAD + r"(pc_range|scene_size|voxel_size|voxel_num)", r""),
)

# Parts of SparseWorld that forecast and plan; ours have other forms, so they stay behind.
_SPARSEWORLD_UNUSED = re.compile(
    r"(plan_head|ego_cross_attn|position_encoder|reg_branch|vel_branch|cls_branch|points_scale_branch|"
    r"traj_head|semantic_loss)\..+"
)
_STAMPS = "pts_bbox_head.num_stamps_all"
# Queries of the present among all, by the published configurations.
_SPARSEWORLD_PRESENT = {1040: 720}
# Their ego-state network scales initial points by 0.8 to 1.5; ours has no ego input to the encoder.
_SPARSEWORLD_POINT_SCALE = 1.15

_ORIGINS = {
    "opus": "OPUS (Wang et al., NeurIPS 2024), github.com/jbwang1997/OPUS; code MIT, "
    "trained on nuScenes (CC BY-NC-SA 4.0)",
    "sparseworld": "SparseWorld (Dang et al., AAAI 2026), github.com/MSunDYY/SparseWorld; no license "
    "stated, trained on nuScenes (CC BY-NC-SA 4.0)",
}


@dataclass
class Report:
    """What became of every entry of a checkpoint."""

    used: dict[str, str] = field(default_factory=dict)  # theirs -> ours
    checked: list[str] = field(default_factory=list)  # compared with ours, not stored
    unused: list[str] = field(default_factory=list)  # known, not part of our encoder
    notes: list[str] = field(default_factory=list)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict of an mmcv checkpoint, without a leading `module.`.

    Raises:
        InputError: missing, not loadable without running code, or no state dict in it.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path} is not a checkpoint of plain tensors: {first}; fetch it again, and do not load it with "
            "weights_only=False: that would run code from the file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"{path} holds no state_dict of tensors; wanted a file that mmcv's save_checkpoint wrote"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def infer_config(state: Mapping[str, Tensor]) -> EncoderConfig:
    """The encoder's sizes from a checkpoint's shapes; groups 4, cameras 6, picture 256 x 704 are published.

    Raises:
        InputError: no decoder of OPUS's form in it.
    """
    layers = sorted({int(match[1]) for name in state if (match := re.match(_LAYER, name))})
    first = "pts_bbox_head.transformer.decoder.decoder_layers.{}."
    try:
        queries = len(state["pts_bbox_head.init_points.weight"])
        width = state[first.format(0) + "norm1.weight"].shape[0]
        groups = 4
        places = len(state[first.format(0) + "sampling.sampling_offset.bias"]) // (3 * groups)
        mixing_points = state[first.format(0) + "mixing.out_proj.weight"].shape[1] // width
        generated = len(state[first.format(0) + "mixing.parameter_generator.bias"]) // groups
        frames = (generated - (width // groups) ** 2) // (mixing_points * places)
        points = tuple(len(state[first.format(i) + "reg_branch.4.bias"]) // 3 for i in layers)
        classes = len(state[first.format(0) + "cls_branch.6.bias"]) // points[0]
        heads = len(state[first.format(0) + "self_attn.gen_tau.bias"])
        ffn_width = len(state[first.format(0) + "ffn.layers.0.0.bias"])
    except KeyError as error:
        raise InputError(
            f"the checkpoint has no {error}; wanted an OPUS decoder under pts_bbox_head."
        ) from error
    if classes != NUM_CLASSES:
        raise InputError(f"the checkpoint has {classes} classes, wanted {NUM_CLASSES} (Occ3D without free)")
    return EncoderConfig(
        backbone=BackboneConfig(pyramid_width=width),
        frames=frames,
        queries=queries,
        width=width,
        groups=groups,
        heads=heads,
        sampling_points=places,
        mixing_points=mixing_points,
        ffn_width=ffn_width,
        points=points,
        voxel_rule=VoxelRule(),
        opus_level_weights=True,
        sample_unseen=True,
        repeat_history=True,
    )


def map_state(
    state: Mapping[str, Tensor], kind: str, config: EncoderConfig
) -> tuple[EncoderConfig, dict[str, Tensor], Report]:
    """Our tensors by our names, the sizes they are for, and what became of every entry.

    Raises:
        InputError: an entry nobody knows, a missing or ill-shaped one, or another voxel grid.
    """
    report, ours, unknown = Report(), {}, []
    for name, tensor in state.items():
        target = _target(name)
        if target:
            ours[target] = tensor
            report.used[name] = target
        elif target == "":
            _check_buffer(name, tensor)
            report.checked.append(name)
        elif kind == "sparseworld" and (name == _STAMPS or _SPARSEWORLD_UNUSED.fullmatch(name)):
            report.unused.append(name)
        else:
            unknown.append(name)
    if unknown:
        raise InputError(
            f"the checkpoint has {len(unknown)} entries that an {kind} encoder does not have: {unknown[:5]}; "
            "is it of another model?"
        )
    if kind == "sparseworld":
        config, ours = _present_queries(state, config, ours, report)
    _check_complete(config, ours)
    return config, ours, report


def _target(name: str) -> str | None:
    """Our name of theirs, "" for a buffer that is only compared, None for an unknown name."""
    for pattern, replacement in KEY_TABLE:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(replacement)
    return None


def _check_buffer(name: str, tensor: Tensor) -> None:
    grid = OCC3D_GRID
    buffers: dict[str, list[float]] = {
        "pc_range": [*grid.min_m, *grid.max_m],
        "scene_size": np.subtract(grid.max_m, grid.min_m).tolist(),
        "voxel_size": [grid.voxel_size_m] * 3,
        "voxel_num": list(grid.shape),
    }
    wanted = buffers[name.rsplit(".", 1)[1]]
    if not np.allclose(tensor.double().numpy(), wanted, atol=1e-4):
        raise InputError(
            f"{name} is {tensor.tolist()}, wanted {wanted}: it was trained on another voxel grid"
        )


def _present_queries(
    state: Mapping[str, Tensor], config: EncoderConfig, ours: dict[str, Tensor], report: Report
) -> tuple[EncoderConfig, dict[str, Tensor]]:
    """Keep SparseWorld's queries of the present: those of the future may not be seen by them anyway."""
    stamps = state.get(_STAMPS)
    count = _SPARSEWORLD_PRESENT.get(config.queries)
    if stamps is None or count is None:
        raise InputError(
            f"a SparseWorld checkpoint has {_STAMPS} and {' or '.join(map(str, _SPARSEWORLD_PRESENT))} "
            f"queries, this one {'has no such entry' if stamps is None else f'has {config.queries} queries'}"
        )
    share = stamps[:, 0].double() / stamps.double().sum(dim=1).clamp(min=1)
    present = torch.argsort(share, descending=True, stable=True)[:count].sort().values
    points = ours["initial_points"][present] * _SPARSEWORLD_POINT_SCALE
    report.notes += [
        f"{count} of {config.queries} queries are of the present and were kept; future ones stay behind",
        f"initial points are scaled by {_SPARSEWORLD_POINT_SCALE}, the middle of what their ego-state "
        "network gives; that network was not carried over",
        "their post-processing has other thresholds; ours is OPUS's rule at 0.3",
    ]
    config = EncoderConfig(**{**vars(config), "queries": count, "voxel_rule": VoxelRule(threshold=0.3)})
    return config, {**ours, "initial_points": points}


def _check_complete(config: EncoderConfig, ours: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        wanted = {name: tuple(tensor.shape) for name, tensor in Encoder(config).state_dict().items()}
    missing, extra = sorted(set(wanted) - set(ours)), sorted(set(ours) - set(wanted))
    shapes = [
        f"{name} {tuple(ours[name].shape)} for {wanted[name]}"
        for name in wanted
        if name in ours and tuple(ours[name].shape) != wanted[name]
    ]
    if missing or extra or shapes:
        raise InputError(
            f"the checkpoint does not make a whole encoder: {len(missing)} missing {missing[:3]}, "
            f"{len(extra)} too many {extra[:3]}, {len(shapes)} of another shape {shapes[:3]}"
        )


def import_encoder(kind: str, checkpoint: Path, folder: Path) -> tuple[Manifest, Report]:
    """Write a model folder whose encoder is a public checkpoint's; the stages behind it are untrained.

    Args:
        kind: "opus" or "sparseworld".
        checkpoint: an mmcv file.
        folder: new, or empty.

    Raises:
        InputError: a folder with something in it, or a checkpoint that does not fit.
    """
    if kind not in _ORIGINS:
        raise InputError(f"import knows {' and '.join(_ORIGINS)}, not {kind!r}")
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty, wanted a new folder for the model")
    state = read_checkpoint(checkpoint)
    config, weights, report = map_state(state, kind, infer_config(state))
    tiny = find_model("tiny")
    language = read_config(tiny / "config.json").reasoner.language
    folder.mkdir(parents=True, exist_ok=True)
    model = ModelConfig(
        encoder=config,
        # Untrained, so small ones do: occupancy is what this model is for.
        reasoner=ReasonerConfig(query_width=config.width, language=language, prompt_style="plain"),
        planner=PlannerConfig(query_width=config.width, token_width=language.width),
    )
    write_config(folder / "config.json", model)
    (folder / "tokenizer.json").write_text(byte_tokenizer_json())
    shutil.copyfile(tiny / "anchors.json", folder / "anchors.json")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "encoder.safetensors")
    encoder = f"{kind}-encoder-{sha256_of(folder / 'encoder.safetensors')[:12]}"
    stages = {
        "encoder": StageEntry(
            encoder, "", "encoder.safetensors", "nuScenes train (by its authors; not verified here)"
        ),
        "reasoner": StageEntry(f"{kind}-reasoner-untrained", encoder, "", ""),
        "planner": StageEntry(f"{kind}-planner-untrained", encoder, "", ""),
    }
    card = {
        "origin": _ORIGINS[kind],
        "checkpoint_sha256": sha256_of(checkpoint),
        "license": "that of the checkpoint; nuScenes data is for non-commercial use",
        "usable_for": "occupancy on nuScenes-like cameras; reasoner and planner are untrained",
        "notes": report.notes,
    }
    files = ["config.json", "tokenizer.json", "anchors.json", "encoder.safetensors"]
    return write_manifest(folder, folder.name, files, stages, card), report
