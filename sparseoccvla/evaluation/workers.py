"""A run of predictions shared by processes, scene by scene; they meet in the store's folder."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from sparseoccvla.config import ModelSource
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.predictions import Part, PredictionStore, Shuffle
from sparseoccvla.evaluation.runner import Models, Progress, RunConfig, Runner

_LOOK_S = 1.0


@dataclass(frozen=True)
class Job:
    """All that a process needs to know of a run."""

    source: ModelSource
    cache: Path
    parts: tuple[Part, ...]
    config: RunConfig
    shuffle: Shuffle

    def runner(self, models: Models) -> Runner:
        """The run with models that are there."""
        return Runner(models, SampleCache(self.cache), self.parts, self.config, self.shuffle)


def predict_in_processes(
    job: Job, runner: Runner, store: PredictionStore, workers: int, progress: Progress
) -> None:
    """Predict every scene that the store does not have; the result does not depend on `workers`.

    Args:
        job: what each process does its share of.
        runner: the same, here.
        store: of the run.
        workers: processes; they share the threads of `job.source`.
        progress: told when scenes are done.

    Raises:
        InputError: a process died.
    """
    missing = [scene for scene in runner.scenes if not store.has(scene)]
    progress(sum(len(indices) for scene, indices in runner.scenes.items() if scene not in missing))
    threads = max(1, job.source.threads // workers)
    share = replace(job, source=replace(job.source, threads=threads))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = [
            pool.submit(_predict_share, share, store.folder, missing[place::workers])
            for place in range(min(workers, len(missing)))
        ]
        while missing:
            running = wait(futures, _LOOK_S).not_done
            done = [scene for scene in missing if store.has(scene)]
            progress(sum(len(runner.scenes[scene]) for scene in done))
            missing = [scene for scene in missing if scene not in done]
            if not running:
                break
        try:
            for future in futures:
                future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"one of {workers} processes of {store.folder} died, perhaps for want of memory; the scenes "
                "that are done stay: run the same again, with fewer --workers"
            ) from error


def _predict_share(job: Job, folder: Path, scenes: list[str]) -> None:
    runner = job.runner(Models.load(job.source, job.parts))
    runner.run(PredictionStore(folder, runner.describe()), only=scenes)
