"""Scores of anyone's predictions from files, as `sparseoccvla score` prints them.

A report has `protocol`, `definition`, `n`, `items`, `pooled` and `skipped`. What cannot be scored is never
part of `pooled`: it stands in `skipped` with its name and the reason. A score of nothing is an error.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.contracts import NUM_STEPS
from sparseoccvla.errors import InputError
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.agents import AgentFutures
from sparseoccvla.metrics.definitions import LANGUAGE, OCCUPANCY, PLANNING, RAYS
from sparseoccvla.metrics.language import LanguageMetric, MeteorUnavailableError, Tokens
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.metrics.planning import PlanningMetric, PlanningProtocol, PlanSample
from sparseoccvla.metrics.rays import RayMetric


@dataclass
class Report:
    """Figures of what was scored and a list of what was not."""

    protocol: str
    definition: str
    items: list[dict[str, Any]] = field(default_factory=list)
    pooled: dict[str, Any] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)

    def skip(self, item: str, reason: object) -> None:
        self.skipped.append({"item": item, "reason": str(reason)})

    def require_items(self, kind: str) -> None:
        """Raise `InputError` if nothing could be scored."""
        if not self.items:
            reasons = Counter(entry["reason"] for entry in self.skipped)
            told = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
            raise InputError(f"nothing to score: no usable {kind}" + (f" ({told})" if told else ""))

    def as_json(self) -> str:
        """The report as one JSON object; never NaN."""
        return json.dumps(
            {
                "protocol": self.protocol,
                "definition": self.definition,
                "n": len(self.items),
                "pooled": self.pooled,
                "items": self.items,
                "skipped": self.skipped,
            },
            allow_nan=False,
        )


def score_language(path: Path, tokens: Tokens) -> tuple[Report, str]:
    """Score the pairs of a JSON file ``{"pairs": [{"prediction", "reference" or "references", "id"?}]}``.

    Returns:
        The report, and why METEOR is missing from it (empty if it is not).

    Raises:
        InputError: the file is not that, or holds no pair that can be scored.
    """
    pairs = _read_json(path).get("pairs")
    if not isinstance(pairs, list):
        raise InputError(f'{path} has no list "pairs"; wanted {{"pairs": [{{"prediction", "reference"}}]}}')
    report = Report(str(tokens), LANGUAGE[tokens])
    metric = LanguageMetric(tokens)
    seen: set[str] = set()
    for index, pair in enumerate(pairs):
        name = str(pair.get("id", index)) if isinstance(pair, dict) else str(index)
        try:
            if isinstance(pair, dict) and "id" in pair:
                if name in seen:
                    raise UnscorableError(f"a duplicate: another pair before it is called {name}")
                seen.add(name)
            metric.update(*_pair(pair))
        except UnscorableError as error:
            report.skip(name, error)
        else:
            report.items.append({"id": name})
    report.require_items("pair")
    corpus, scores = metric.scores()
    report.pooled |= corpus
    report.items = [item | figures for item, figures in zip(report.items, scores, strict=True)]
    try:
        meteor = metric.meteor()
    except MeteorUnavailableError as error:
        report.pooled |= {"METEOR": None}
        return report, str(error)
    report.pooled |= {"METEOR": float(meteor.mean())}
    for item, value in zip(report.items, meteor, strict=True):
        item["METEOR"] = float(value)
    return report, ""


def _pair(pair: Any) -> tuple[str, Sequence[str]]:
    if not isinstance(pair, dict):
        raise UnscorableError(f"a pair is a {type(pair).__name__}, wanted an object")
    if "prediction" not in pair:
        raise UnscorableError("there is no prediction")
    if "reference" not in pair and "references" not in pair:
        raise UnscorableError("there is no reference")
    if "reference" in pair and "references" in pair:
        raise UnscorableError('there are both "reference" and "references", wanted one of them')
    references = pair["references"] if "references" in pair else [pair["reference"]]
    if not isinstance(references, list):
        raise UnscorableError(f'"references" is a {type(references).__name__}, wanted a list of texts')
    return pair["prediction"], references


def score_occupancy(
    cases: Sequence[Path], mask: Mask, convention: Convention, origins: Path | None = None
) -> Report:
    """Score grids from .npz files with `pred`, `gt` and, packed or not, `mask_camera` or `mask_lidar`.

    Args:
        cases: one file for each sample.
        mask: which voxels count for mIoU and IoU.
        convention: what an absent class is worth.
        origins: a JSON file ``{"origins_ego_m": [[x, y, z], ...]}`` for all cases, or with one such list
            for each case; adds RayIoU.

    Raises:
        InputError: no case can be scored, or the origins are not that.
    """
    report = Report(
        f"{convention}/{mask}_mask" if mask is not Mask.NONE else f"{convention}/no_mask",
        OCCUPANCY[convention] + (f" {RAYS}" if origins else ""),
    )
    pooled, pooled_rays = OccupancyMetric(mask, convention), RayMetric()
    origins_m = _read_origins(origins, len(cases)) if origins else [None] * len(cases)
    seen: set[Path] = set()
    for path, ray_origins in zip(cases, origins_m, strict=True):
        single, rays = pooled.empty(), pooled_rays.empty()
        try:
            if path.resolve() in seen:
                raise UnscorableError("a duplicate: this file was given before")
            seen.add(path.resolve())
            arrays = _read_arrays(path)
            predicted, truth = _array(arrays, "pred"), _array(arrays, "gt")
            single.update(predicted, truth, _mask(arrays, mask, truth.shape))
            if ray_origins is not None:
                rays.update(predicted, truth, ray_origins)
        except UnscorableError as error:
            report.skip(str(path), error)
            continue
        pooled.merge(single)
        figures = {"case": str(path), **single.result()}
        if ray_origins is not None:
            pooled_rays.merge(rays)
            figures |= rays.result()
        report.items.append(figures)
    report.require_items("case")
    report.pooled = pooled.result() | (pooled_rays.result() if origins else {})
    return report


def _mask(arrays: Mapping[str, Any], mask: Mask, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    if mask is Mask.NONE:
        return None
    return _unpacked(_array(arrays, f"mask_{mask}"), shape, f"mask_{mask}")


def _read_origins(path: Path, cases: int) -> list[Any]:
    origins = _read_json(path).get("origins_ego_m")
    if not isinstance(origins, list) or not origins or not isinstance(origins[0], list) or not origins[0]:
        raise InputError(f'{path} has no "origins_ego_m": [[x, y, z], ...]')
    each_case = isinstance(origins[0][0], list)
    if each_case and len(origins) not in (1, cases):
        raise InputError(f"{path} has ray origins for {len(origins)} cases, {cases} were given")
    per_case = (
        origins * cases if each_case and len(origins) == 1 else origins if each_case else [origins] * cases
    )
    try:
        return [np.asarray(o, float) for o in per_case]
    except (TypeError, ValueError) as error:
        raise InputError(f'{path}: "origins_ego_m" holds something else than [x, y, z] ({error})') from error


def score_planning(path: Path, protocol: PlanningProtocol) -> Report:
    """Score plans from one .npz file: `pred_I` and `gt_I` (6, 2) meters, x right, y forward, and obstacles.

    Obstacles of case I: `occ_vad_I`, `omni_occ_I` (rasters, packed or not), or `agent_boxes_I` with
    `agent_feats_I`, as the protocol needs.

    Raises:
        InputError: the file cannot be read or holds no case that can be scored.
    """
    try:
        arrays = _read_arrays(path)
    except UnscorableError as error:
        raise InputError(f"{path}: {error}") from error
    report = Report(str(protocol), PLANNING[protocol])
    pooled = PlanningMetric(protocol)
    for name in _case_names(arrays):
        single = pooled.empty()
        try:
            single.update(_sample(arrays, name, protocol))
        except UnscorableError as error:
            report.skip(name, error)
            continue
        pooled.merge(single)
        report.items.append({"case": name, **single.result()})
    report.require_items("case")
    report.pooled = pooled.result()
    return report


def _case_names(arrays: Mapping[str, Any]) -> list[str]:
    """What follows `pred_` or `gt_` in the keys, numbers first and in order."""
    names = {match[1] for key in arrays if (match := re.fullmatch(r"(?:pred|gt)_(.+)", key))}
    return sorted(names, key=lambda n: (0, int(n), n) if n.isdecimal() else (1, 0, n))


def _sample(arrays: Mapping[str, Any], name: str, protocol: PlanningProtocol) -> PlanSample:
    raster = fine = agents = None
    match protocol.needs:
        case "raster":
            raster = _unpacked(_array(arrays, f"occ_vad_{name}"), (NUM_STEPS, 200, 200), f"occ_vad_{name}")
        case "fine_raster":
            key = f"omni_occ_{name}"
            fine = _unpacked(_array(arrays, key), (NUM_STEPS + 1, 1000, 1000), key)[1:]
        case _:
            agents = AgentFutures.from_vad(
                _array(arrays, f"agent_boxes_{name}"), _array(arrays, f"agent_feats_{name}")
            )
    return PlanSample(
        _path(arrays, f"pred_{name}"),
        _path(arrays, f"gt_{name}"),
        raster=raster,
        fine_raster=fine,
        agents=agents,
    )


def _path(arrays: Mapping[str, Any], key: str) -> NDArray[np.float64]:
    path = _array(arrays, key)
    if path.shape not in ((NUM_STEPS, 2), (NUM_STEPS, 3)) or path.dtype.kind not in "fiu":
        raise UnscorableError(f"{key} is {path.dtype} {path.shape}, wanted numbers ({NUM_STEPS}, 2)")
    if not np.isfinite(path).all():
        kind = "the prediction" if key.startswith("pred") else "no valid future: the driven path"
        raise UnscorableError(f"{kind} has {int((~np.isfinite(path)).sum())} values that are not finite")
    return path[:, :2].astype(float)


def _unpacked(array: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[np.bool_]:
    """A boolean array of a shape, from itself or from numpy's packbits of it."""
    count = int(np.prod(shape))
    if array.shape == shape and array.dtype.kind in "biu":
        return array.astype(bool)
    if array.shape == ((count + 7) // 8,) and array.dtype == np.uint8:
        return np.unpackbits(array, count=count).reshape(shape).astype(bool)
    raise UnscorableError(f"{name} is {array.dtype} {array.shape}, wanted {shape}, or its bits packed")


def _array(arrays: Mapping[str, Any], key: str) -> NDArray[Any]:
    if key not in arrays:
        raise UnscorableError(f"{key} is missing")
    try:
        return np.asarray(arrays[key])
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UnscorableError(f"{key} cannot be read: {error}") from error


def _read_arrays(path: Path) -> Mapping[str, Any]:
    """An .npz file; arrays are read when asked for, never unpickled."""
    if not path.is_file():
        raise UnscorableError("there is no such file")
    try:
        arrays = np.load(path, allow_pickle=False)
    except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
        raise UnscorableError(f"not a readable .npz file: {error}") from error
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UnscorableError("a single array, wanted an .npz file with named arrays")
    return arrays


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, wanted a JSON object")
    return content


def warnings_of(report: Report) -> Iterator[str]:
    """Lines for people about what was skipped."""
    for entry in report.skipped:
        yield f"skipped {entry['item']}: {entry['reason']}"
