"""What limits the forecast: where points are moved to, or what they are said to be.

    python -m tools.forecasting --dataroot D [--model tiny] [--keyframes 24]    docs/results/forecasting.json

The same forecast with its points left where they are now, with the classes of now, and with both, which is
the present that stays. A part that loses against what it replaces has learned something else than the future.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import FORECAST_HORIZONS_S, MOVABLE_CLASSES
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.tables import Tables
from sparseoccvla.language import load_tokenizer
from sparseoccvla.metrics.occupancy import Convention, Mask, OccupancyMetric
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.torch_backend import encoder_network, open_model, reasoner_network
from sparseoccvla.training.config import DrivingTraining
from sparseoccvla.training.driving import DrivingSampler
from sparseoccvla.training.driving_check import QueriesOfIndex, class_scores, forecast_scores, future_grid
from sparseoccvla.training.occupancy_check import spread
from sparseoccvla.training.packing import Texts
from sparseoccvla.training.tokens import QueriesOf
from sparseoccvla.voxels import VoxelRule

OUT = Path(__file__).resolve().parents[1] / "docs" / "results" / "forecasting.json"
_WAYS = {  # whether points move, whether classes change
    (True, True): "forecast",
    (False, True): "points stay",
    (True, False): "classes stay",
    (False, False): "present stays",
}


@torch.no_grad()
def rows(
    reasoner: Reasoner,
    queries: QueriesOfIndex,
    cache: SampleCache,
    sampler: DrivingSampler,
    texts: Texts,
    rule: VoxelRule,
    count: int,
) -> list[dict[str, Any]]:
    """Every way to make a forecast of the same keyframes, at each horizon, over all voxels."""
    tallies = {
        (way, horizon): OccupancyMetric(Mask.NONE, Convention.SPARSEWORLD)
        for way in _WAYS
        for horizon in FORECAST_HORIZONS_S
    }
    moved_m: dict[float, list[float]] = {horizon: [] for horizon in FORECAST_HORIZONS_S}
    keyframes = dict.fromkeys(FORECAST_HORIZONS_S, 0)
    planning = torch.tensor(texts.planning)
    for index in spread(len(cache), count):
        later = [sampler.later(index, horizon) for horizon in FORECAST_HORIZONS_S]
        if None in later:
            continue
        said = queries(index)
        tokens = reasoner.prefill(said.features, said.points_m, planning).occupancy
        now_m, now = said.points_m[0].numpy(), class_scores(said)
        can_move = np.isin(said.labels[0].numpy(), MOVABLE_CLASSES)
        for horizon, other, step in zip(
            FORECAST_HORIZONS_S, later, reasoner.forecast(said.features, said.present(), tokens), strict=True
        ):
            assert other is not None
            label = cache.occupancy(other)
            assert label is not None
            points_m, then = (
                step.points_m[0].numpy(),
                forecast_scores(step, reasoner.config.forecast_free_class),
            )
            moved_m[horizon].extend(np.linalg.norm(points_m - now_m, axis=-1)[can_move])
            keyframes[horizon] += 1
            label_from_base = sampler.label_from_base(index, other)
            for moves, changes in _WAYS:
                made = future_grid(
                    points_m if moves else now_m, then if changes else now, label_from_base, rule
                )
                tallies[(moves, changes), horizon].update(made, label.semantics, None)
    found = []
    for (way, horizon), tally in tallies.items():
        result = tally.result()
        figures = {name: round(result[name] or 0.0, 4) for name in ("mIoU", "mIoU_movable", "IoU")}
        row = {"what": _WAYS[way], "horizon_s": horizon, "keyframes": keyframes[horizon], **figures}
        if way == (True, True) and moved_m[horizon]:
            row["moved_m"] = round(float(np.mean(moved_m[horizon])), 2)  # of points of movable classes
        found.append(row)
        print(json.dumps(row), file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dataroot", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument(
        "--keyframes", type=int, default=24, help="of split val; those near a scene's end are left out"
    )
    parser.add_argument("--cache", type=Path, help="of samples; default: cache/ in the data set")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    source = ModelSource(model=arguments.model)
    manifest, config = open_model(source)
    height, width = config.encoder.image_size_px
    folder = arguments.cache or arguments.dataroot / "cache"
    cache = open_cache(Tables(arguments.dataroot, None), "val", CacheConfig(height, width), folder / "val")
    language = config.reasoner.language
    tokenizer = load_tokenizer(language, None if language.path else manifest.file("tokenizer.json"))
    texts = Texts(tokenizer, config.reasoner.prompt_style)
    said = {
        "command": f"python -m tools.forecasting --dataroot D --model M --keyframes {arguments.keyframes}",
        "model_id": manifest.model_id,
        "rows": rows(
            reasoner_network(source, manifest, config).eval(),
            QueriesOf(cache, encoder_network(source, manifest, config).eval(), torch.float32),
            cache,
            DrivingSampler(cache, texts, DrivingTraining(), 0),
            texts,
            config.encoder.voxel_rule,
            arguments.keyframes,
        ),
    }
    arguments.out.write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
