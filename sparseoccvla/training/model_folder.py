"""The model folder of a run: what `--model` takes, written anew after each stage."""

from __future__ import annotations

import platform
import subprocess
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sparseoccvla.anchors import write_anchors
from sparseoccvla.data.output import new_folder
from sparseoccvla.errors import InputError
from sparseoccvla.model import ModelConfig, write_config
from sparseoccvla.runtime.manifest import STAGES, Manifest, StageEntry, sha256_of, write_manifest
from sparseoccvla.weights import save_weights

_LARGEST_PART = 15_000_000  # bytes; what a repository can carry


@dataclass(frozen=True)
class ModelParts:
    """What goes into a folder; a stage that is None has no trained weights yet."""

    config: ModelConfig
    anchors_m: NDArray[np.floating]
    anchors_how: str
    tokenizer: str  # tokenizer.json, "" where the language model brings its own
    stages: dict[str, nn.Module | None]
    trained_on: str


def write_model(folder: Path, name: str, parts: ModelParts, card: dict[str, Any]) -> Manifest:
    """Write a folder; one that was written before is replaced whole.

    Raises:
        OutputError: something else lies there.
    """
    with new_folder(folder, lambda old: (old / "manifest.json").exists()) as work:
        write_config(work / "config.json", parts.config)
        write_anchors(work / "anchors.json", parts.anchors_m, parts.anchors_how)
        files = ["config.json", "anchors.json"]
        if parts.tokenizer:
            (work / "tokenizer.json").write_text(parts.tokenizer)
            files.append("tokenizer.json")
        entries: dict[str, StageEntry] = {}
        for stage in STAGES:
            net = parts.stages[stage]
            requires = entries["encoder"].stage_id if entries else ""
            if net is None:
                entries[stage] = StageEntry(f"{name}-{stage}-untrained", requires, "", "")
                continue
            weights = f"{stage}.safetensors"
            save_weights(net, work / weights)
            files.append(weights)
            identity = f"{name}-{stage}-{sha256_of(work / weights)[:12]}"
            entries[stage] = StageEntry(identity, requires, weights, parts.trained_on)
        manifest = write_manifest(work, name, files, entries, card)
        sizes = {file: (work / file).stat().st_size for file in files}
    if not parts.config.reasoner.language.path:
        for file, size in sizes.items():
            if size > _LARGEST_PART:
                warnings.warn(f"{folder / file} has {size / 1e6:.1f} MB, too much to ship", stacklevel=2)
    return manifest


def card_of(
    dataroot: Path, config: str, stages: dict[str, str], seconds: dict[str, int], figures: dict[str, Any]
) -> dict[str, Any]:
    """What a person wants to know of a trained model.

    Args:
        dataroot: of the data set; a generated one says its seeds.
        config: name of the settings.
        stages: length of each stage that was trained, as the command line says it.
        seconds: that each took.
        figures: of each on a few validation samples.
    """
    world = dataroot / "world.json"
    return {
        "license": "Apache-2.0",
        "usable_for": "research; it has seen nothing but the data set named here",
        "command": [
            f"sparseoccvla train --stage {stage} --config {config} --dataroot D --out R {length}"
            for stage, length in stages.items()
        ],
        "lengths": stages,
        "commit": _commit(),
        "data": _data_of(world) if world.exists() else dataroot.name,
        "training_seconds": seconds,
        "hardware": _hardware(),
        "figures": figures,
    }


def _data_of(world: Path) -> dict[str, Any]:
    import json

    content = json.loads(world.read_text())
    scenes = content["scenes"].values()
    seeds: dict[str, list[int]] = {}
    for scene in scenes:
        seeds.setdefault(f"{scene['split']} {scene['city']}", []).append(scene["world_seed"])
    ranges = {name: f"{min(of)} to {max(of)} ({len(of)} scenes)" for name, of in sorted(seeds.items())}
    return {"made_by": content["made_by"], "options": content["options"], "world_seeds": ranges}


def _commit() -> str:
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "not in a clone"


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.machine()


def check_matches(config: ModelConfig, other: ModelConfig, folder: Path) -> None:
    """Raise unless a trained encoder has the sizes that are wanted now."""
    from dataclasses import replace

    rule = config.encoder.voxel_rule
    if replace(other.encoder, voxel_rule=rule) != config.encoder:
        raise InputError(
            f"the encoder in {folder} has other sizes than the model this run is to train; train the encoder "
            "again, or name its config.json as `model`"
        )
