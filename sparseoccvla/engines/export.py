"""A model to ONNX: one graph a stage, static shapes, standard operators, LoRA merged."""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseoccvla.anchors import read_anchors
from sparseoccvla.config import ModelSource
from sparseoccvla.data.output import new_folder
from sparseoccvla.engines.graphs import BackboneGraph, DecoderGraph, PlannerGraph, ReasonerGraph, StageGraph
from sparseoccvla.errors import InputError
from sparseoccvla.language import load_tokenizer, merge_lora
from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt
from sparseoccvla.runtime.exported import (
    FORMAT,
    GRAPHS,
    Exported,
    fixed_inputs,
    read_export,
    sample_of,
)
from sparseoccvla.runtime.manifest import sha256_of
from sparseoccvla.runtime.torch_backend import (
    encoder_network,
    open_model,
    planner_network,
    reasoner_network,
)

OPSET = 18
_ONE_FILE_BYTES = 1_500_000_000  # protobuf stops at 2 GiB: larger weights lie beside the graph


def export(model: str, out: Path, seed: int = 0, graphs: tuple[str, ...] = GRAPHS) -> Exported:
    """Export a model's stages to a new folder.

    Args:
        model: a folder with a manifest, or a name.
        out: new, or a folder that was exported before; it is replaced as a whole.
        seed: of weights that are not trained.
        graphs: which.

    Raises:
        InputError: no such model or graph, or a foreign folder at `out`.
    """
    unknown = sorted(set(graphs) - set(GRAPHS))
    if unknown:
        raise InputError(f"no graph {', '.join(unknown)}; there are {', '.join(GRAPHS)}")
    source = ModelSource(model=model, seed=seed)
    manifest, config = open_model(source)
    encoder = config.encoder
    text = prompt(config.reasoner.prompt_style, [Turn(PLANNING_QUESTION)])
    with new_folder(out, lambda folder: (folder / "export.json").is_file()) as work:
        content: dict[str, Any] = {
            "format": FORMAT,
            "model": manifest.name,
            "model_id": manifest.model_id,
            "seed": seed,
            "opset": OPSET,
            "torch": torch.__version__,
            "image_size_px": encoder.image_size_px,
            "history_frames": encoder.frames,
            "repeat_history": encoder.repeat_history,
            "voxel_rule": asdict(encoder.voxel_rule),
            "prompt": text,
            "graphs": {},
        }
        shape = (encoder.queries, encoder.points[-1])
        for name in graphs:
            graph: StageGraph
            match name:
                case "backbone":
                    graph = BackboneGraph(encoder_network(source, manifest, config))
                case "decoder":
                    graph = DecoderGraph(encoder_network(source, manifest, config))
                case "reasoner":
                    net = reasoner_network(source, manifest, config)
                    merge_lora(net.language)
                    language = config.reasoner.language
                    file = None if language.path else manifest.file("tokenizer.json")
                    ids = load_tokenizer(language, file)(text, return_tensors="pt").input_ids[0]
                    graph = ReasonerGraph(net, *shape, ids)
                case _:
                    anchors_m = read_anchors(manifest.file("anchors.json"))
                    graph = PlannerGraph(planner_network(source, manifest, config), *shape, anchors_m)
            content["graphs"][name] = _write(graph.eval().cpu(), name, work, encoder.image_size_px)
        (work / "export.json").write_text(json.dumps(content, indent=1) + "\n")
    return read_export(out)


def _write(graph: StageGraph, name: str, folder: Path, image_size_px: tuple[int, int]) -> dict[str, Any]:
    """Write one graph and what torch says of its fixed inputs; its entry in export.json."""
    fixed = fixed_inputs(name, graph.inputs, image_size_px)
    tensors = tuple(torch.from_numpy(array) for array in fixed.values())
    with torch.no_grad():
        results = graph(*tensors)
    arrays = {key: result.numpy() for key, result in zip(graph.outputs, results, strict=True)}
    np.savez_compressed(folder / f"{name}.npz", **sample_of(arrays))
    size = sum(t.nbytes for t in (*graph.parameters(), *graph.buffers()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            graph,
            tensors,
            str(folder / f"{name}.onnx"),
            input_names=list(fixed),
            output_names=list(graph.outputs),
            dynamo=True,
            opset_version=OPSET,
            external_data=size > _ONE_FILE_BYTES,
            verbose=False,
        )
    files = [f"{name}.onnx", f"{name}.onnx.data"]
    return {
        "files": {file: sha256_of(folder / file) for file in files if (folder / file).is_file()},
        "inputs": [asdict(spec) for spec in graph.inputs],
        "outputs": [
            {"name": key, "dtype": array.dtype.name, "shape": array.shape} for key, array in arrays.items()
        ],
    }
