"""A model on disk: a folder with `manifest.json` and the files it names, each with its sha256.

    models/tiny/manifest.json   who it is, which files, which stages, what each was trained on
    models/tiny/config.json     sizes of the networks (`sparseoccvla.model.ModelConfig`)
    models/tiny/anchors.json    and whatever else "files" lists

`model_id` is the first 16 hex digits of the manifest's own sha256; as the manifest holds the hash of
every file, it stands for the whole model. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseoccvla.contracts import StageInfo
from sparseoccvla.errors import InputError

FORMAT = 1
STAGES = ("encoder", "reasoner", "planner")


class ModelError(InputError):
    """A model folder is missing, damaged, or made of parts that don't belong together."""


@dataclass(frozen=True)
class StageEntry:
    """One stage of a manifest. `weights` is a file name, empty for a stage without trained weights."""

    stage_id: str
    requires_stage_id: str
    weights: str
    trained_on: str

    @property
    def trained(self) -> bool:
        return bool(self.weights)


@dataclass(frozen=True)
class Manifest:
    """A model folder whose manifest has been read and whose stages fit each other."""

    folder: Path
    name: str
    model_id: str
    sha256_by_file: dict[str, str]
    stages: dict[str, StageEntry]

    def file(self, name: str) -> Path:
        """Path of a listed file, after its hash has been compared.

        Raises:
            ModelError: not listed, not there, or not the file the manifest was written for.
        """
        if name not in self.sha256_by_file:
            raise ModelError(f"{self.folder / 'manifest.json'} lists no {name}; it was written without it")
        path, wanted = self.folder / name, self.sha256_by_file[name]
        if not path.is_file():
            raise ModelError(
                f"{path} is missing, wanted the file with sha256 {wanted[:16]}...; copy it there"
            )
        got = sha256_of(path)
        if got != wanted:
            raise ModelError(
                f"{path} has sha256 {got[:16]}..., the manifest wants {wanted[:16]}...; the file was changed "
                "or only half copied: fetch it again, or write a new manifest if you meant to change it"
            )
        return path

    def info(self, stage: str, backend: str, backend_reason: str, **rest: Any) -> StageInfo:
        """The `StageInfo` of one stage, run by `backend`."""
        entry = self.stages[stage]
        return StageInfo(
            stage=stage,
            model_id=self.model_id,
            stage_id=entry.stage_id,
            requires_stage_id=entry.requires_stage_id,
            trained=entry.trained,
            trained_on=entry.trained_on,
            backend=backend,
            backend_reason=backend_reason,
            **rest,
        )


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def models_roots() -> list[Path]:
    """Folders that hold models by name: the clone's, then the installed package's."""
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    shares = [prefix / "share" / "sparseoccvla" / "models" for prefix in [*prefixes, Path(sys.prefix)]]
    return [Path(__file__).parents[2] / "models", *shares]


def find_model(model: str) -> Path:
    """The folder of a model given as a folder or by name.

    Raises:
        ModelError: no such model; the text lists those there are.
    """
    if (Path(model) / "manifest.json").is_file():
        return Path(model)
    roots = models_roots()
    for root in roots:
        if (root / model / "manifest.json").is_file():
            return root / model
    known = sorted({path.parent.name for root in roots for path in root.glob("*/manifest.json")})
    raise ModelError(
        f"model {model!r} is neither a folder with a manifest.json nor one of {', '.join(known) or 'none'} "
        f"in {roots[0]}"
    )


def read_manifest(model: str) -> Manifest:
    """Read and check the manifest of a model folder or name; files are checked when asked for.

    Raises:
        ModelError: no such model, not a manifest of this format, or a stage that was trained behind
            another stage than the one beside it.
    """
    folder = find_model(model)
    path = folder / "manifest.json"
    raw = path.read_bytes()
    try:
        content = json.loads(raw)
        if content["format"] != FORMAT:
            raise ModelError(f"{path} has format {content['format']!r}, wanted {FORMAT}")
        stages = {name: StageEntry(**content["stages"][name]) for name in STAGES}
        files = {name: entry["sha256"] for name, entry in content["files"].items()}
        manifest = Manifest(folder, content["name"], hashlib.sha256(raw).hexdigest()[:16], files, stages)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} is not a manifest: {type(error).__name__} {error}; models/README.md shows one"
        ) from error
    check_chain(manifest)
    return manifest


def check_chain(manifest: Manifest) -> None:
    """Raise `ModelError` unless reasoner and planner were trained behind this manifest's encoder."""
    encoder = manifest.stages["encoder"].stage_id
    for name in STAGES[1:]:
        wanted = manifest.stages[name].requires_stage_id
        if wanted != encoder:
            raise ModelError(
                f"{manifest.folder}: {name} {manifest.stages[name].stage_id!r} was trained behind encoder "
                f"{wanted!r}, but this model's encoder is {encoder!r}; take both from one training run"
            )


def write_manifest(
    folder: Path, name: str, files: list[str], stages: dict[str, StageEntry], card: dict[str, Any]
) -> Manifest:
    """Write `folder/manifest.json` for files that lie there, and read it back.

    Args:
        folder: of the model.
        name: of the model.
        files: names inside `folder`, weights included.
        stages: an entry for each of `STAGES`.
        card: license, usable_for, command, commit, figures: what a person wants to know.
    """
    content = {
        "format": FORMAT,
        "name": name,
        "card": card,
        "files": {
            file: {"sha256": sha256_of(folder / file), "bytes": (folder / file).stat().st_size}
            for file in sorted(files)
        },
        "stages": {stage: vars(stages[stage]) for stage in STAGES},
    }
    (folder / "manifest.json").write_text(json.dumps(content, indent=1) + "\n")
    return read_manifest(str(folder))
