#!/usr/bin/env python3
"""Write the model folders that need no training: configuration, tokenizer, anchors, manifest.

    tools/make_untrained_models.py [--models models]

The result is a function of this file and the code; `sparseoccvla train` adds weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparseoccvla.anchors import analytic_anchors, write_anchors
from sparseoccvla.backbone import BackboneConfig
from sparseoccvla.encoder import EncoderConfig
from sparseoccvla.language import LanguageConfig, byte_tokenizer_json
from sparseoccvla.model import ModelConfig, write_config
from sparseoccvla.planner import PlannerConfig
from sparseoccvla.reasoner import ReasonerConfig
from sparseoccvla.runtime.manifest import StageEntry, write_manifest
from sparseoccvla.voxels import VoxelRule

TINY_WIDTH, TINY_TOKEN = 128, 256

TINY = ModelConfig(
    encoder=EncoderConfig(
        image_size_px=(128, 352),
        frames=2,
        backbone=BackboneConfig("small", 24, (32, 64, 128), (1, 1, 1), TINY_WIDTH),
        queries=160,
        width=TINY_WIDTH,
        sampling_points=8,
        ffn_width=256,
        points=(32, 512),
        offset_scale=2.0,
        dropout=0.0,
        voxel_rule=VoxelRule(threshold=0.16, max_spread_m=30.0, closing=False, flat_spread=0.5),
        free_class=True,
        least_spread_m=(2.0, 0.5),
        auxiliary_width=64,
        seeded_queries=96,
        square=(8, 4),
        lifted_points=True,
        lifted_spread=0.15,
        lifted_scale_m=0.3,
        point_class_width=64,
        surface_cue=True,
    ),
    reasoner=ReasonerConfig(
        query_width=TINY_WIDTH,
        language=LanguageConfig(
            width=TINY_TOKEN,
            layers=6,
            heads=4,
            ffn_width=688,
            vocabulary=258,  # 256 bytes and two marks
            tied=True,
            dtype="float32",
            lora_rank=0,
        ),
        prompt_style="plain",
        forecast_point_width=64,
        forecast_free_class=True,
        forecast_from_present=True,
    ),
    planner=PlannerConfig(
        query_width=TINY_WIDTH,
        token_width=TINY_TOKEN,
        width=TINY_WIDTH,
        ffn_width=256,
        score_with_ego=True,
        look_along_path=True,
        keep_on_cue=True,
    ),
)

# The paper's sizes are the defaults of the configurations; only the language model is named here.
PAPER = ModelConfig(
    reasoner=ReasonerConfig(language=LanguageConfig(path="lmsys/vicuna-7b-v1.5")),
)


def write_model(folder: Path, config: ModelConfig, usable_for: str) -> None:
    """Write one folder whose stages have no weights; one that has some is left alone."""
    if any(folder.glob("*.safetensors")):
        print(f"{folder}: has trained weights, left as it is")
        return
    folder.mkdir(parents=True, exist_ok=True)
    files = ["config.json", "anchors.json"]
    write_config(folder / "config.json", config)
    write_anchors(
        folder / "anchors.json",
        analytic_anchors(),
        "analytic: six speeds a command, turns on circles (sparseoccvla.anchors.analytic_anchors)",
    )
    if not config.reasoner.language.path:
        (folder / "tokenizer.json").write_text(byte_tokenizer_json())
        files.append("tokenizer.json")
    encoder = f"{folder.name}-encoder-untrained"
    stages = {
        "encoder": StageEntry(encoder, "", "", ""),
        "reasoner": StageEntry(f"{folder.name}-reasoner-untrained", encoder, "", ""),
        "planner": StageEntry(f"{folder.name}-planner-untrained", encoder, "", ""),
    }
    card = {"license": "Apache-2.0", "usable_for": usable_for, "command": "tools/make_untrained_models.py"}
    manifest = write_manifest(folder, folder.name, files, stages, card)
    print(f"{folder}: model_id {manifest.model_id}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(__file__).parents[1] / "models")
    models = parser.parse_args().models
    write_model(models / "tiny", TINY, "showing that the stack runs; not driving, not a figure")
    write_model(models / "nuscenes_r50_vicuna7b", PAPER, "training on nuScenes at the paper's size")


if __name__ == "__main__":
    main()
