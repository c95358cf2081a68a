#!/usr/bin/env python3
"""Write the model folders that need no training: configuration, tokenizer, anchors, manifest.

    tools/make_untrained_models.py [--models models]

The result is a function of this file and the code; `sparseoccvla train` adds weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sparseoccvla.anchors import analytic_anchors, write_anchors
from sparseoccvla.language import LanguageConfig, byte_tokenizer_json
from sparseoccvla.model import ModelConfig, read_config, write_config
from sparseoccvla.reasoner import ReasonerConfig
from sparseoccvla.runtime.manifest import StageEntry, write_manifest

ROOT = Path(__file__).parents[1]
TINY = read_config(ROOT / "config" / "train" / "sizes" / "tiny.json")
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
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    models = parser.parse_args().models
    write_model(models / "tiny", TINY, "showing that the stack runs; not driving, not a figure")
    write_model(models / "nuscenes_r50_vicuna7b", PAPER, "training on nuScenes at the paper's size")


if __name__ == "__main__":
    main()
