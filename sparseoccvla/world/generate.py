"""Generate a data set of the driving world, scene by scene, in several processes.

A scene is finished when its part file is there, which is written last. A call that is killed leaves finished
scenes and files that the next call writes again, to the same bytes; only then are the tables joined.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, TextIO

import torch

from sparseoccvla.data.output import NO_ROOM, OutputError, exclusive, new_folder
from sparseoccvla.errors import InputError
from sparseoccvla.world.roots import (
    SPLITS,
    VERSION,
    Ledger,
    Request,
    RootOptions,
    SceneSpec,
    write_atomically,
)
from sparseoccvla.world.writer import write_scene
from sparseoccvla.world.writer_tables import EXTRA_TABLES, TABLES, shared_rows

Progress = Callable[[int, int], None]  # scenes done, scenes in all

# Measured on 146 scenes of 352x128, on a disk of 4 kB blocks.
_BYTES_PER_PIXEL = 0.43  # of a JPEG
_BYTES_PER_LABEL_PIXEL = 3.4  # class and depth
_BYTES_PER_KEYFRAME = 140_000  # label, rows, language
_BYTES_PER_TURN = 670_000  # of the lidar
_BYTES_PER_SCENE = 320_000  # map, CAN bus


@dataclass(frozen=True)
class Summary:
    """What a call did."""

    scenes: int  # asked for
    written: int  # now; the others were there
    keyframes: int  # in the whole root


def generate(
    root: Path,
    options: RootOptions,
    request: Request,
    workers: int = 1,
    progress: Progress = lambda _done, _all: None,
) -> Summary:
    """Write the scenes of a request into a root that is new or was made with the same options.

    Raises:
        InputError: a request that can't be met.
        OutputError: a foreign folder, other options, no room, another process at work.
    """
    request.check()
    if workers < 1:
        raise InputError(f"workers is {workers}, wanted 1 or more")
    options.check_possible()
    _, pending = Ledger.open(root, options).plan(request)
    _check_room(root, options, len(pending))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make {root}: {error.strerror}; choose another --out") from error
    with exclusive(root, root):
        ledger = Ledger.open(root, options)  # once more, now that nobody else writes it
        specs, pending = ledger.plan(request)
        try:
            ledger.save()
            _write_all(root, pending, options, workers, lambda done: progress(done, len(pending)))
            keyframes = _join(ledger)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OutputError(
                f"no room for {root}: {error.strerror}; {len(ledger.finished())} scenes are finished. Make "
                "room and give the same command again: it goes on from there"
            ) from error
    return Summary(len(specs), len(pending), keyframes)


def _write_all(
    root: Path,
    pending: list[SceneSpec],
    options: RootOptions,
    workers: int,
    progress: Callable[[int], None],
) -> None:
    progress(0)
    if not pending:
        return
    pool = ProcessPoolExecutor(min(workers, len(pending)), get_context("spawn"), _start_worker)
    try:
        jobs = {pool.submit(_write_one, root, spec, options): spec for spec in pending}
        for done, job in enumerate(as_completed(jobs), start=1):
            error = job.exception()
            if error is not None:
                error.add_note(f"while {jobs[job].name} was written (world seed {jobs[job].world_seed})")
                raise error
            progress(done)
    except BrokenProcessPool as error:
        raise InputError(
            "a worker was killed, perhaps for want of memory: give fewer --workers; finished scenes are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)  # threads that wait for each other spin
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _write_one(root: Path, spec: SceneSpec, options: RootOptions) -> None:
    part = write_scene(root, spec, options)
    write_atomically(Ledger(root, options, {}).part(spec.name), part.as_json())


def _check_room(root: Path, options: RootOptions, scenes: int) -> None:
    """Refuse before any work what the disk has no room for."""
    there = root
    while not there.exists():
        there = there.parent
    pixels = options.width_px * options.height_px * 6
    per_keyframe = pixels * _BYTES_PER_PIXEL * (6 if options.sweeps else 1) + _BYTES_PER_KEYFRAME
    per_keyframe += _BYTES_PER_TURN * options.lidar
    if options.pixel_stride:
        per_keyframe += pixels * _BYTES_PER_LABEL_PIXEL / options.pixel_stride**2
    needed = scenes * (per_keyframe * options.duration_s * 2 + _BYTES_PER_SCENE)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise OutputError(
            f"{there} has {free / 1e6:.0f} MB free, about {needed / 1e6:.0f} MB are needed for {scenes} "
            "scenes; make room, ask for fewer or choose another --out"
        )


def _join(ledger: Ledger) -> int:
    """Write the tables from all finished parts; returns the number of keyframes."""
    root, names, keyframes = ledger.root, ledger.finished(), 0
    with new_folder(root / VERSION, lambda _: True) as work, ExitStack() as stack:
        tables = {
            name: _List(stack.enter_context((work / f"{name}.json").open("w")))
            for name in (*TABLES, *EXTRA_TABLES)
        }
        for name, rows in shared_rows().items():
            tables[name].extend(rows)
        scene_infos = {}
        for name in names:
            part = json.loads(ledger.part(name).read_bytes())
            for table, rows in part["tables"].items():
                tables[table].extend(rows)
            scene_infos[name] = part["occ3d"]
            keyframes += len(part["tables"]["sample"])
        for table in tables.values():
            table.close()
        splits = {split: [n for n in names if ledger.scenes[n]["split"] == split] for split in SPLITS}
        # The devkit takes "train" and "val" for nuScenes' own, so it gets them by other names, too.
        splits |= {f"world_{split}": splits[split] for split in SPLITS}
        (work / "splits.json").write_text(json.dumps(splits, indent=1))
    occ3d = {
        "train_split": splits["train"],
        "val_split": splits["val"],
        "scene_infos": scene_infos,
    }
    write_atomically(root / "annotations.json", json.dumps(occ3d, separators=(",", ":")).encode())
    return keyframes


class _List:
    """A JSON list that is written row by row."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._before = file, "["

    def extend(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._file.write(f"{self._before}\n{json.dumps(row, separators=(',', ':'))}")
            self._before = ","

    def close(self) -> None:
        self._file.write("\n]\n" if self._before == "," else "[]\n")
