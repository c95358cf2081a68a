"""Samples of a generated root with edited pictures, written by `sparseoccvla world edit`."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import CAMERA_NAMES, EncoderInput
from sparseoccvla.data.cache import SampleCache, read_picture
from sparseoccvla.data.samples import Sample
from sparseoccvla.errors import InputError
from sparseoccvla.images import fit, size_px

# Not among the tables: they are replaced when scenes are added, and caches depend on their sizes.
FOLDER = "edits"
TABLE = "edits.json"


@dataclass(frozen=True)
class EditedKeyframe:
    """One keyframe with one thing changed."""

    sample_token: str
    edit: str  # its name, e.g. "remove-pedestrian-0"
    kind: str  # remove, calm, colors, weather or hour
    hazard: str  # what it takes away, "" where it changes nothing a driver acts on
    seen: bool  # whether any picture at t0 shows it: a hazard may be hidden for a while
    future: NDArray[np.float64]  # (S, 3) x_m, y_m, yaw_rad: what the expert then does, in base_link at t0


def edited_file(dataroot: Path, edit: str, file: Path) -> Path:
    """Where the edited picture of a root's file lies."""
    return dataroot / FOLDER / edit / file


def read_edits(dataroot: Path) -> list[EditedKeyframe]:
    """All edited keyframes of a root.

    Raises:
        InputError: there are none.
    """
    file = dataroot / FOLDER / TABLE
    try:
        rows = json.loads(file.read_bytes())
        return [
            EditedKeyframe(
                row["sample_token"],
                row["edit"],
                row["kind"],
                row["hazard"],
                row["seen"],
                np.array(row["future"]),
            )
            for row in rows
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{file} can't be read ({error}); make it with `sparseoccvla world edit --dataroot {dataroot}`"
        ) from error


def edited_sample(cache: SampleCache, dataroot: Path, edited: EditedKeyframe, frames: int = 1) -> Sample:
    """The sample of a keyframe with its edited pictures, in the history as far back as there are any.

    All else is as recorded: the future in its truth is the one that was driven.

    Raises:
        InputError: the cache has no such sample, or the picture of its present is not there.
    """
    if edited.sample_token not in cache.tokens:
        raise InputError(
            f"cache {cache.folder} has no sample {edited.sample_token}; is it of the same data set and split?"
        )
    index = cache.tokens.index(edited.sample_token)
    sample = cache.sample(index, frames)
    history = tuple(
        None if inputs is None or files is None else _edited(inputs, files, dataroot, edited, age)
        for age, (inputs, files) in enumerate(zip(sample.history, cache.files(index, frames), strict=True))
    )
    return replace(sample, history=history)


def _edited(
    inputs: EncoderInput, files: tuple[str, ...], dataroot: Path, edited: EditedKeyframe, age: int
) -> EncoderInput:
    images = inputs.images_rgb.copy()
    _, height, width, _ = images.shape
    for camera, name in enumerate(files):
        file = edited_file(dataroot, edited.edit, Path(name))
        if not name or (age > 0 and not file.exists()):
            continue
        picture = read_picture(file, CAMERA_NAMES[camera], inputs.t0_ns)
        images[camera] = fit(size_px(picture), (height, width)).load(picture)
    return replace(inputs, images_rgb=images)
