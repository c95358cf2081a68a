"""OmniDrive-nuScenes language: what is said about a keyframe.

Files are `<dataroot>/<kind>/<train or val>/<sample token>.json`: desc {"description", "action"}, conv
and vqa lists of {"question", "answer"}, keywords a bare string. Generated roots add to a question its
"type", if one short answer is right, and "held_out", if training never asks in these words.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparseoccvla.data.tables import DataSetError

KINDS = ("desc", "conv", "vqa", "keywords")
_FOLDERS = ("train", "val")


@dataclass(frozen=True)
class QuestionAnswer:
    kind: str  # "conv" or "vqa"
    question: str
    answer: str
    type: str = ""  # of a closed question; "" for an open one
    held_out: bool = False  # in words that training never sees


@dataclass(frozen=True)
class Language:
    """Everything said about one keyframe; empty where the data set says nothing."""

    description: str = ""
    action: str = ""
    keywords: str = ""
    questions: tuple[QuestionAnswer, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.description or self.action or self.keywords or self.questions)


def read_language(dataroot: Path, sample_token: str) -> Language:
    """All files of a keyframe; kinds that are not there stay empty.

    Raises:
        DataSetError: a file is there but is not what it should be.
    """
    description = _read(dataroot, "desc", sample_token, _description) or {}
    return Language(
        description.get("description", ""),
        description.get("action", ""),
        _read(dataroot, "keywords", sample_token, _text) or "",
        tuple(
            QuestionAnswer(kind, *entry)
            for kind in ("conv", "vqa")
            for entry in _read(dataroot, kind, sample_token, _pairs) or ()
        ),
    )


def _read[T](dataroot: Path, kind: str, token: str, parse: Callable[[Any], T]) -> T | None:
    for folder in _FOLDERS:
        file = dataroot / kind / folder / f"{token}.json"
        if file.exists():
            try:
                return parse(json.loads(file.read_bytes()))
            except (ValueError, TypeError, KeyError) as error:
                raise DataSetError(
                    f"{file} is damaged ({error}); wanted the {kind} layout of OmniDrive-nuScenes"
                ) from error
    return None


def _description(value: Any) -> dict[str, str]:
    return {"description": _text(value["description"]), "action": _text(value["action"])}


def _pairs(value: Any) -> list[tuple[str, str, str, bool]]:
    return [
        (
            _text(pair["question"]),
            _text(pair["answer"]),
            _text(pair.get("type", "")),
            bool(pair.get("held_out", False)),
        )
        for pair in value
    ]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a {type(value).__name__} where text was expected")
    return value
