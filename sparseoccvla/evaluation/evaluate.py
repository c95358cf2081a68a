"""One evaluation from data set to report: predictions, blind rows, figures, plots.

OUT/predictions/<control>/    what the model said, one file for each scene
OUT/baselines/                blind rows, fitted on the training split
OUT/<kind>.json               figures, as `metrics.results` has them
OUT/report.md, OUT/*.png      for people
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import OccupancyQueries
from sparseoccvla.data.cache import CacheConfig, SampleCache
from sparseoccvla.data.cache_build import open_cache
from sparseoccvla.data.edits import FOLDER as EDITS
from sparseoccvla.data.edits import TABLE as EDITS_TABLE
from sparseoccvla.data.scene import load_scene
from sparseoccvla.data.splits import scenes_of_split
from sparseoccvla.data.tables import Tables
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.baselines import (
    BaselineConfig,
    Baselines,
    fit_baselines,
    majority_answer,
)
from sparseoccvla.evaluation.effects import chosen_edits, effect_figures, find_effects
from sparseoccvla.evaluation.figures import Figures, Said
from sparseoccvla.evaluation.forecast import score_forecast
from sparseoccvla.evaluation.language import MAJORITY, score_language
from sparseoccvla.evaluation.occupancy import score_occupancy
from sparseoccvla.evaluation.planning import PlanningScores, score_planning
from sparseoccvla.evaluation.plots import PLOTS, write_plots
from sparseoccvla.evaluation.predictions import Part, PredictionStore, Shuffle
from sparseoccvla.evaluation.questions import Question
from sparseoccvla.evaluation.report import write_report
from sparseoccvla.evaluation.runner import Models, RunConfig, answer
from sparseoccvla.evaluation.workers import Job, predict_in_processes
from sparseoccvla.evaluation.worst import WORST, write_worst
from sparseoccvla.geometry import planar_matrix
from sparseoccvla.metrics.agents import LIDAR_FORWARD_M
from sparseoccvla.metrics.language import Tokens
from sparseoccvla.metrics.results import DataOrigin, Results, write_results
from sparseoccvla.runtime.base import Reasoner
from sparseoccvla.runtime.load import load_reasoner

MODEL = "model"
TOKENS_OFF = "same LLM, occupancy tokens zeroed"
QUESTION_ONLY = "question-only LLM"
LIDAR_HEIGHT_M = 1.84  # of nuScenes, above the ground
# What a control can change; the other kinds of figures would be those of the model.
_AFFECTED = {
    Shuffle.PICTURES: tuple(Part),
    Shuffle.COMMAND: (Part.PLANNING,),
    Shuffle.REASONING: (Part.PLANNING,),
}

# What is done and how often: yields a function that takes how much of it was done since its last call.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated and how."""

    parts: tuple[Part, ...]
    source: ModelSource
    tables: Tables
    out: Path
    command: str  # as typed, for the results
    split: str = "val"
    train_split: str = "train"
    shuffles: tuple[Shuffle, ...] = ()
    run: RunConfig = field(default_factory=RunConfig)
    baselines: BaselineConfig = field(default_factory=BaselineConfig)
    tokens: Tokens = Tokens.RAW
    rays_every: int = 10
    edited: int = 300  # edits that take a hazard away, and irrelevant ones, drawn by the seed; 0: none
    question_only: str = ""  # a model whose language model was trained without occupancy tokens
    caches: Path | None = None  # where caches of samples lie or go; None: in `out`
    workers: int = 1  # processes that predict


def evaluate(evaluation: Evaluation, progress: Progress) -> list[Path]:
    """Run it; returns the results files.

    Raises:
        InputError: the model or the data set can't be read, `out` holds something else, or nothing can
            be scored.
    """
    _check_out(evaluation.out)
    models = Models.load(evaluation.source, evaluation.parts)
    cache = _cache(evaluation, evaluation.split, models.encoder.info.image_size_px, progress)
    train = _cache(evaluation, evaluation.train_split, models.encoder.info.image_size_px, progress)
    runs, count = _predict(evaluation, models, cache, progress)
    with progress("blind rows", min(len(train), evaluation.baselines.prior_frames)) as advance:
        blind = fit_baselines(train, evaluation.out / "baselines", evaluation.baselines, advance)
    results: list[Results] = []
    planned: PlanningScores | None = None
    for part in evaluation.parts:
        said = [Said(MODEL, runs[Shuffle.NONE])] + [
            Said(f"{shuffle} shuffled", runs[shuffle])
            for shuffle in evaluation.shuffles
            if part in _AFFECTED[shuffle]
        ]
        with progress(f"{part} figures", count) as advance:
            figures: Figures
            match part:
                case Part.OCCUPANCY:
                    lidar = _lidar(evaluation)
                    figures = score_occupancy(
                        cache, said, count, blind.prior, lidar, evaluation.rays_every, advance
                    )
                case Part.FORECAST:
                    figures = score_forecast(cache, said, count, blind.prior, advance)
                case Part.PLANNING:
                    assert models.planner is not None
                    planned = score_planning(
                        cache,
                        said,
                        count,
                        blind.ego_only,
                        models.planner.anchors_m,
                        cache.needs_sight[:count],
                        advance,
                    )
                    figures = planned.figures
                    _add_effects(evaluation, models, cache, count, figures, progress)
                    figures.extra["ego_only_training"] = blind.report["ego_only"]
                    figures.extra["command_sources"] = _command_sources(cache, count)
                case Part.LANGUAGE:
                    replies = _blind_replies(evaluation, models, cache, blind)
                    figures = score_language(cache, said, count, replies, evaluation.tokens, advance)
        results.append(_results(evaluation, models, figures))
        write_results(evaluation.out / f"{part}.json", results[-1])
    write_report(evaluation.out / "report.md", results)
    write_plots(evaluation.out, results)
    if planned is not None:
        write_worst(evaluation.out, cache, runs[Shuffle.NONE], planned.errors_m, count)
    return [evaluation.out / f"{part}.json" for part in evaluation.parts]


def _check_out(out: Path) -> None:
    """Raise `InputError` if a folder holds something that this command does not make."""
    folders = {"predictions", "baselines", "effects", "cache"}
    ours = folders | {f"{part}.json" for part in Part} | {"report.md", WORST, *PLOTS}
    foreign = sorted({item.name for item in out.iterdir()} - ours) if out.is_dir() else []
    if foreign or (out.exists() and not out.is_dir()):
        what = f"holds {foreign[0]}, which" if foreign else "is no folder:"
        raise InputError(f"{out} {what} this command did not make; choose another --out")


def _cache(evaluation: Evaluation, split: str, size_px: tuple[int, int], progress: Progress) -> SampleCache:
    """Samples of a split; pictures stay files, as each is decoded once."""
    config = CacheConfig(height_px=size_px[0], width_px=size_px[1], pictures="files")
    folder = (evaluation.caches or evaluation.out / "cache") / f"{split}-{size_px[0]}x{size_px[1]}"
    with progress(f"samples of {split}", len(scenes_of_split(evaluation.tables, split))) as advance:
        done = 0

        def report(scenes: int, _: int) -> None:
            nonlocal done
            advance(scenes - done)
            done = scenes

        return open_cache(evaluation.tables, split, config, folder, report)


def _predict(
    evaluation: Evaluation, models: Models, cache: SampleCache, progress: Progress
) -> tuple[dict[Shuffle, PredictionStore], int]:
    """Ask the model, and each control; how many keyframes that is."""
    stores = {}
    count = 0
    for shuffle in (Shuffle.NONE, *evaluation.shuffles):
        affected = _AFFECTED.get(shuffle, evaluation.parts)
        parts = [part for part in evaluation.parts if part in affected]
        if not parts:
            raise InputError(
                f"--shuffle {shuffle} changes nothing of {', '.join(evaluation.parts)}; it is a control of "
                f"{', '.join(affected)}"
            )
        job = Job(evaluation.source, cache.folder, tuple(parts), evaluation.run, shuffle)
        runner = job.runner(models)
        count = runner.count
        store = PredictionStore(evaluation.out / "predictions" / shuffle, runner.describe())
        what = "predictions" if shuffle is Shuffle.NONE else f"predictions, {shuffle} shuffled"
        with progress(what, count) as advance:
            if evaluation.workers > 1:
                predict_in_processes(job, runner, store, evaluation.workers, advance)
            else:
                runner.run(store, advance)
        stores[shuffle] = store
    return stores, count


def _add_effects(
    evaluation: Evaluation,
    models: Models,
    cache: SampleCache,
    count: int,
    figures: Figures,
    progress: Progress,
) -> None:
    """Plans with edited pictures, where the data set is one of the driving world."""
    dataroot = evaluation.tables.dataroot
    if not evaluation.edited or not (dataroot / EDITS / EDITS_TABLE).exists():
        why = "no edited pictures; make them with `sparseoccvla world edit`"
        figures.extra["cause_and_effect"] = {"n": 0, "skipped": why if evaluation.edited else "not asked for"}
        return
    edits = chosen_edits(cache, dataroot, count, evaluation.edited, evaluation.run.seed)
    file = evaluation.out / "effects" / f"{models.encoder.info.model_id}.jsonl"
    with progress("edited pictures", len(edits)) as advance:
        effects = find_effects(models, cache, dataroot, edits, file, advance)
    figures.extra["cause_and_effect"] = effect_figures(effects)


def _lidar(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """`base_from_lidar` of each scene; where nobody wrote lidar turns, that of nuScenes."""
    usual = planar_matrix(LIDAR_FORWARD_M, 0.0, 0.0)
    usual[2, 3] = LIDAR_HEIGHT_M
    found = {}
    for name in scenes_of_split(evaluation.tables, evaluation.split):
        base_from_lidar = load_scene(evaluation.tables, name).base_from_lidar
        found[name] = usual if base_from_lidar is None else base_from_lidar
    return found


def _command_sources(cache: SampleCache, count: int) -> list[str]:
    return sorted({cache.truth(index).command_source for index in range(count)})


def _blind_replies(
    evaluation: Evaluation, models: Models, cache: SampleCache, blind: Baselines
) -> dict[str, Callable[[Question], str]]:
    """By row, whoever answers without seeing."""
    assert models.reasoner is not None
    [inputs] = cache.history(0)
    assert inputs is not None
    features = models.encoder.extract(inputs)
    seen = models.encoder.decode([features, *[None] * (models.encoder.info.history_frames - 1)]).queries
    blank = (seen.features, seen.points_base_m, seen.point_labels, seen.point_scores)
    nothing = OccupancyQueries(0, *(np.zeros_like(array) for array in blank))
    replies: dict[str, Callable[[Question], str]] = {
        MAJORITY: lambda question: majority_answer(blind.majority, question),
        TOKENS_OFF: _remembered(models.reasoner, nothing, evaluation.run.max_tokens),
    }
    if evaluation.question_only:
        source = replace(evaluation.source, model=evaluation.question_only)
        replies[QUESTION_ONLY] = _remembered(load_reasoner(source), nothing, evaluation.run.max_tokens)
    return replies


def _remembered(reasoner: Reasoner, nothing: OccupancyQueries, max_tokens: int) -> Callable[[Question], str]:
    """A blind answer depends on the question alone, so each is asked once."""
    known: dict[str, str] = {}

    def reply(question: Question) -> str:
        if question.text not in known:
            known[question.text] = answer(reasoner, nothing, question.text, max_tokens)
        return known[question.text]

    return reply


def _results(evaluation: Evaluation, models: Models, figures: Figures) -> Results:
    info = models.encoder.info
    return Results(
        kind=figures.kind,
        protocol=figures.protocol,
        model_id=info.model_id,
        data=_origin(evaluation),
        command=evaluation.command,
        n=figures.n,
        skipped=len(figures.skipped),
        figures={"trained": _trained(models), **figures.as_dict()},
        hardware=f"{info.backend}: {info.backend_reason}; {os.cpu_count()} CPU cores",
    )


def _trained(models: Models) -> dict[str, str]:
    """What each stage was trained on; "" is a stage of random weights."""
    stages = (models.encoder, models.reasoner, models.planner)
    return {stage.info.stage: stage.info.trained_on for stage in stages if stage is not None}


def _origin(evaluation: Evaluation) -> DataOrigin:
    """A generated root says its seeds itself."""
    tables = evaluation.tables
    ledger = tables.dataroot / "world.json"
    seeds: set[int] = set()
    if ledger.exists():
        stored: dict[str, Any] = json.loads(ledger.read_bytes())["scenes"]
        seeds = {int(row["seed"]) for row in stored.values() if row["split"] == evaluation.split}
    name = "world" if ledger.exists() else "nuscenes"
    seeds.add(evaluation.run.seed)
    return DataOrigin(name, tables.version, evaluation.split, tuple(sorted(seeds)))
