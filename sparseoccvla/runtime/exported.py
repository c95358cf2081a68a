"""A model as graphs on disk: a folder with `export.json`, ONNX files and what torch made of fixed inputs.

    O/export.json     model_id, seed, opset, and for each graph its files with sha256, inputs and outputs
    O/backbone.onnx   pictures of one camera set -> stacked feature maps
    O/decoder.onnx    maps of every frame, explicit -> queries, points, class scores
    O/reasoner.onnx   queries -> reasoning token and forecast, one prefill
    O/planner.onnx    queries, ego state, reasoning, noise -> candidates and scores
    O/GRAPH.npz       a sample of torch's outputs on `fixed_inputs`, to hold any runner against

No torch here: a machine that only runs the graphs does not need it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import NUM_CLASSES, OCC3D_GRID, EgoState, EncoderInput
from sparseoccvla.ego_state import ego_numbers
from sparseoccvla.runtime.manifest import Manifest, ModelError, sha256_of
from sparseoccvla.voxels import VoxelRule

FORMAT = 2
GRAPHS = ("backbone", "decoder", "reasoner", "planner")
GRAPHS_OF_STAGE = {"encoder": ("backbone", "decoder"), "reasoner": ("reasoner",), "planner": ("planner",)}
FIXED_SEED = 0
_SAMPLE = 4096  # values kept of each output
_LEAST_SIZE = {"scores": 1e-2}  # outputs between 0 and 1: of less, the last bits are no difference


class Graph(Protocol):
    """One graph, ready to run; made once, its buffers reused."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        """Outputs by name, on the host, the caller's own.

        Args:
            inputs: by name; arrays of the dtype and shape of the graph, or what `run_held` gave.

        Raises:
            ContractError: a name, dtype or shape that the graph does not have.
        """
        ...

    def run_held(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Outputs in the graph's order, left where they were computed, for another graph to read."""
        ...


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One graph: its files, the .onnx first, and what goes in and out."""

    name: str
    sha256_by_file: dict[str, str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Exported:
    """A folder that `sparseoccvla export` wrote."""

    folder: Path
    model_id: str
    seed: int  # of weights that are not trained
    opset: int
    image_size_px: tuple[int, int]
    history_frames: int
    repeat_history: bool
    voxel_rule: VoxelRule
    prompt: str
    graphs: dict[str, GraphSpec]

    def file(self, graph: str) -> Path:
        """Path of a graph's .onnx, after the hashes of all its files have been compared.

        Raises:
            ModelError: a file is missing or is not the one that was exported.
        """
        for name, wanted in self.graphs[graph].sha256_by_file.items():
            path = self.folder / name
            got = sha256_of(path) if path.is_file() else "(missing)"
            if got != wanted:
                raise ModelError(
                    f"{path} has sha256 {got[:16]}, export.json wants {wanted[:16]}: changed or only half "
                    f"copied. Export again: sparseoccvla export --model MODEL --out {self.folder}"
                )
        return self.folder / next(iter(self.graphs[graph].sha256_by_file))

    def onnx_sha256(self, graph: str) -> str:
        """What stands for a graph in the key of an engine: the hashes of all its files."""
        return "".join(self.graphs[graph].sha256_by_file.values())

    def expected(self, graph: str) -> dict[str, NDArray[np.float32]]:
        """`sample_of` torch's outputs on `fixed_inputs(graph, FIXED_SEED)`.

        Raises:
            ModelError: the file is missing, damaged, or of other outputs.
        """
        path = self.folder / f"{graph}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return {output.name: stored[output.name] for output in self.graphs[graph].outputs}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ModelError(
                f"{path} can't be read: {error}. Export again: "
                f"sparseoccvla export --model MODEL --out {self.folder}"
            ) from error

    def fixed_inputs(self, graph: str, seed: int = FIXED_SEED) -> dict[str, NDArray[Any]]:
        """`fixed_inputs` of one of these graphs."""
        return fixed_inputs(graph, self.graphs[graph].inputs, self.image_size_px, seed)


def fixed_inputs(
    graph: str, specs: Sequence[TensorSpec], image_size_px: tuple[int, int], seed: int = FIXED_SEED
) -> dict[str, NDArray[Any]]:
    """Inputs that look like real ones and are the same everywhere, by name in the order of `specs`."""
    rng = np.random.default_rng([seed, GRAPHS.index(graph)])
    image_from_base = EncoderInput.fake(size=image_size_px).image_from_odom  # (N, 4, 4)
    return {spec.name: _fixed(spec, rng, image_from_base).astype(spec.dtype) for spec in specs}


def _fixed(spec: TensorSpec, rng: np.random.Generator, image_from_base: NDArray[np.float64]) -> NDArray[Any]:
    match spec.name:
        case "images_rgb":
            return rng.integers(0, 256, spec.shape)
        case "image_from_base":
            moves = np.tile(np.eye(4), (spec.shape[0], 1, 1, 1))
            moves[:, 0, 0, 3] = np.arange(spec.shape[0])  # a meter between frames
            return image_from_base @ moves
        case "base_from_image":
            return np.linalg.inv(image_from_base)
        case "ego":  # numbers drawn apart would be a vehicle that no anchor fits, and every score 0
            return ego_numbers(EgoState.fake(speed_mps=rng.uniform(7.0, 9.0)))
        case "points_m":  # those of a query lie together
            center_m = rng.uniform(OCC3D_GRID.min_m, OCC3D_GRID.max_m, (*spec.shape[:-2], 1, 3))
            return center_m + rng.standard_normal(spec.shape)
        case "valid" | "has_reasoning" | "reasoning_age_s":
            return np.ones(spec.shape)
        case "point_labels":
            return rng.integers(0, NUM_CLASSES, spec.shape)
        case "point_scores":
            return rng.uniform(0.0, 1.0, spec.shape)
    return rng.standard_normal(spec.shape, np.float32)


def default_folder(model_id: str) -> Path:
    """Where an export or engines of a model are looked for when no folder is named."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "sparseoccvla" / "exports" / model_id


def read_export(folder: Path) -> Exported:
    """Read `folder/export.json`; files are compared when asked for.

    Raises:
        ModelError: not there, or not an export of this format.
    """
    path = folder / "export.json"
    if not path.is_file():
        raise ModelError(
            f"{folder} holds no export.json; make it: sparseoccvla export --model MODEL --out {folder}"
        )
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ModelError(f"{path} has format {content['format']!r}, wanted {FORMAT}; export again")
        graphs = {
            name: GraphSpec(name, entry["files"], _specs(entry["inputs"]), _specs(entry["outputs"]))
            for name, entry in content["graphs"].items()
        }
        return Exported(
            folder,
            content["model_id"],
            content["seed"],
            content["opset"],
            tuple(content["image_size_px"]),
            content["history_frames"],
            content["repeat_history"],
            VoxelRule(**content["voxel_rule"]),
            content["prompt"],
            graphs,
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path} is no export: {type(error).__name__} {error}; export again: "
            f"sparseoccvla export --model MODEL --out {folder}"
        ) from error


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(e["name"], e["dtype"], tuple(e["shape"])) for e in entries)


def export_of(source: ModelSource, manifest: Manifest, stage: str) -> Exported:
    """The export that belongs to a model.

    Raises:
        ModelError: none, one of another model, or one whose untrained weights have another seed.
    """
    folder = Path(source.engines) if source.engines else default_folder(manifest.model_id)
    exported = read_export(folder)
    again = f"export again: sparseoccvla export --model {source.model} --out {folder}"
    if exported.model_id != manifest.model_id:
        raise ModelError(
            f"{folder} was exported from model {exported.model_id}, {source.model} is {manifest.model_id}; "
            f"name another folder with `engines`, or {again}"
        )
    if not manifest.stages[stage].trained and exported.seed != source.seed:
        raise ModelError(
            f"{folder} holds random weights of seed {exported.seed}, wanted those of seed {source.seed}; "
            f"{again} --seed {source.seed}"
        )
    missing = [name for name in GRAPHS_OF_STAGE[stage] if name not in exported.graphs]
    if missing:
        raise ModelError(f"{folder} holds no {', '.join(missing)}; {again}")
    return exported


def sample_of(outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """At most `_SAMPLE` values of each output, always at the same places."""
    sample = {}
    for name, output in outputs.items():
        places = np.random.default_rng(0).permutation(output.size)[:_SAMPLE]
        sample[name] = np.asarray(output, np.float32).ravel()[places]
    return sample


def relative_errors(
    outputs: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[np.float32]]
) -> dict[str, float]:
    """Mean absolute difference to `expected` of each output, as a share of the mean absolute value."""
    errors = {}
    for name, got in sample_of(outputs).items():
        wanted = expected[name]
        size = max(float(np.abs(wanted).mean()), _LEAST_SIZE.get(name, 1e-12))
        errors[name] = float(np.abs(got - wanted).mean()) / size
    return errors


def check_equal(what: str, graph: Graph, exported: Exported, name: str, tolerance: float) -> dict[str, float]:
    """Run a graph on the fixed inputs and hold it against torch; also its first, slow run.

    Returns:
        The relative error of each output.

    Raises:
        ModelError: an output differs by more than `tolerance`, is not finite, or does not depend on the
            inputs.
    """
    outputs = graph.run(exported.fixed_inputs(name))
    errors = relative_errors(outputs, exported.expected(name))
    bad = {output: error for output, error in errors.items() if not error <= tolerance}
    if bad:
        listed = ", ".join(f"{output} by {error:.2g}" for output, error in bad.items())
        raise ModelError(
            f"{what}: {name} differs from torch on the fixed inputs, {listed} of its size, wanted at most "
            f"{tolerance:g}; export again, and report it if it stays"
        )
    other = graph.run(exported.fixed_inputs(name, FIXED_SEED + 1))
    if all(np.array_equal(outputs[output], other[output]) for output in outputs):
        raise ModelError(
            f"{what}: {name} says the same of two different inputs, so it does not read them; rebuild it"
        )
    return errors
