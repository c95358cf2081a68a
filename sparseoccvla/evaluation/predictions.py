"""What a model said about each keyframe, on disk: figures are made of it again and again without the model.

One file for each scene, written whole or not at all, so that a run that was stopped goes on where it
was. `run.json` beside them says what was asked of whom; another run never continues it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import FREE_CLASS, OCC3D_GRID
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.questions import Question

FORMAT = 1
RUN = "run.json"


class Part(StrEnum):
    """What can be asked of a model."""

    OCCUPANCY = "occupancy"
    FORECAST = "forecast"
    PLANNING = "planning"
    LANGUAGE = "language"


class Shuffle(StrEnum):
    """A control: the model gets something of another keyframe, all else stays."""

    NONE = "none"
    PICTURES = "pictures"  # and so the whole perception of another keyframe, at this one's poses
    COMMAND = "command"  # another command than the keyframe's own
    REASONING = "reasoning"  # the planner gets the reasoning token of another keyframe


class PredictionsError(InputError):
    """Stored predictions can't be used; the text says why and what to do."""


@dataclass(frozen=True)
class SparseLabels:
    """A grid of labels without its free voxels."""

    index: NDArray[np.uint32]  # (M,) flat x y z index into OCC3D_GRID
    label: NDArray[np.uint8]  # (M,) 0..16

    def dense(self) -> NDArray[np.uint8]:
        """(200, 200, 16) with FREE_CLASS where nothing is."""
        grid = np.full(OCC3D_GRID.shape, FREE_CLASS, np.uint8)
        grid.ravel()[self.index] = self.label
        return grid


@dataclass(frozen=True)
class Plan:
    """18 refined candidates in base_link at t0 and which one was chosen."""

    candidates: NDArray[np.float32]  # (A, S, 3) x_m, y_m, yaw_rad
    scores: NDArray[np.float32]  # (A,)
    chosen: int

    @property
    def trajectory(self) -> NDArray[np.float32]:
        return self.candidates[self.chosen]


@dataclass(frozen=True)
class Answer:
    """A question and what the model said."""

    question: Question
    said: str


@dataclass(frozen=True)
class Prediction:
    """All a model said about one keyframe. What was not asked for is None or empty."""

    token: str
    occupancy: SparseLabels | None = None  # in base_link at the label's time
    forecast: tuple[SparseLabels, ...] = ()  # in base_link at t0, one for each horizon
    plan: Plan | None = None
    plan_without_reasoning: Plan | None = None  # with the learned null token
    answers: tuple[Answer, ...] = ()
    failure: str = ""  # why there is no prediction, in words


class PredictionStore:
    """Predictions of one run in a folder.

    Args:
        folder: made if it is not there.
        run: all that must be equal for the run to go on; JSON values.

    Raises:
        PredictionsError: the folder holds another run's predictions, or something else.
    """

    def __init__(self, folder: Path, run: dict[str, Any]) -> None:
        self.folder = folder
        wanted = {"format": FORMAT, **json.loads(json.dumps(run))}
        file = folder / RUN
        if file.exists():
            found = _read_run(file)
            different = sorted(
                name for name in {*wanted, *found} if found.get(name, "") != wanted.get(name, "")
            )
            if different:
                told = "; ".join(
                    f"{name} {found.get(name)} instead of {wanted.get(name)}" for name in different
                )
                raise PredictionsError(
                    f"{folder} holds predictions of another run ({told}); choose another --out, or delete it"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise PredictionsError(
                f"{folder} holds something that is no run of this command; choose another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, json.dumps(wanted, indent=1).encode())

    def has(self, scene: str) -> bool:
        return self._file(scene).exists()

    def write(self, scene: str, predictions: Sequence[Prediction]) -> None:
        """Store all predictions of a scene."""
        arrays: dict[str, NDArray[Any]] = {}
        rows = []
        for number, prediction in enumerate(predictions):
            for name, array in _arrays(prediction):
                arrays[f"{number}.{name}"] = array
            rows.append(
                {
                    "token": prediction.token,
                    "forecast": len(prediction.forecast),
                    "failure": prediction.failure,
                    "answers": [asdict(answer) for answer in prediction.answers],
                }
            )
        arrays["rows"] = np.frombuffer(json.dumps(rows).encode(), np.uint8)
        beside = self._file(scene).with_suffix(".partial.npz")
        np.savez_compressed(beside, **arrays)
        os.replace(beside, self._file(scene))

    def read(self, scene: str) -> list[Prediction]:
        """All predictions of a scene, in the order they were made.

        Raises:
            PredictionsError: missing or damaged.
        """
        file = self._file(scene)
        try:
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            rows = json.loads(arrays.pop("rows").tobytes())
            return [_prediction(row, number, arrays) for number, row in enumerate(rows)]
        except (OSError, ValueError, LookupError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise PredictionsError(
                f"predictions {file} are missing or damaged ({error}); delete the file and run again"
            ) from error

    def _file(self, scene: str) -> Path:
        return self.folder / f"{scene}.npz"


def _arrays(prediction: Prediction) -> Iterator[tuple[str, NDArray[Any]]]:
    grids = {f"forecast{step}": grid for step, grid in enumerate(prediction.forecast)}
    if prediction.occupancy is not None:
        grids["occupancy"] = prediction.occupancy
    for name, grid in grids.items():
        yield f"{name}.index", grid.index
        yield f"{name}.label", grid.label
    for name, plan in (("plan", prediction.plan), ("null", prediction.plan_without_reasoning)):
        if plan is not None:
            yield f"{name}.candidates", plan.candidates
            yield f"{name}.scores", plan.scores
            yield f"{name}.chosen", np.array(plan.chosen)


def _prediction(row: dict[str, Any], number: int, arrays: dict[str, NDArray[Any]]) -> Prediction:
    def grid(name: str) -> SparseLabels:
        return SparseLabels(arrays[f"{number}.{name}.index"], arrays[f"{number}.{name}.label"])

    def plan(name: str) -> Plan | None:
        key = f"{number}.{name}"
        if f"{key}.chosen" not in arrays:
            return None
        return Plan(arrays[f"{key}.candidates"], arrays[f"{key}.scores"], int(arrays[f"{key}.chosen"]))

    return Prediction(
        row["token"],
        grid("occupancy") if f"{number}.occupancy.index" in arrays else None,
        tuple(grid(f"forecast{step}") for step in range(row["forecast"])),
        plan("plan"),
        plan("null"),
        tuple(Answer(Question(**entry["question"]), entry["said"]) for entry in row["answers"]),
        row["failure"],
    )


def _read_run(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise PredictionsError(f"{file} is damaged ({error}); delete {file.parent}") from error


def _write(file: Path, data: bytes) -> None:
    beside = file.with_suffix(".partial")
    beside.write_bytes(data)
    os.replace(beside, file)
