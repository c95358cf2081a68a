"""`sparseoccvla world ...`: data sets and pictures of the driving world."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparseoccvla.errors import InputError

app = typer.Typer(no_args_is_help=True, help="The procedural driving world.")

_REPORT_EVERY_S = 30.0


@app.command("generate")
def generate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set: new, or one made here before.")],
    scenes: Annotated[int, typer.Option(help="How many scenes of this seed, city and split.")],
    seed: Annotated[int, typer.Option(help="Other seeds give other scenes.")],
    city: Annotated[str, typer.Option(help="rightville or leftville.")],
    split: Annotated[str, typer.Option(help="train or val.")],
    workers: Annotated[int, typer.Option(help="Processes; the result does not depend on them.")] = 1,
    size: Annotated[
        str, typer.Option(help="Pictures, width x height; less height has less sky.")
    ] = "704x396",
    duration: Annotated[float, typer.Option(help="Seconds of each scene.")] = 10.0,
    sweeps: Annotated[bool, typer.Option(help="Camera pictures between keyframes, too: 12 Hz.")] = False,
    lidar: Annotated[bool, typer.Option(help="Write lidar turns.")] = True,
    pixel_stride: Annotated[
        int, typer.Option(help="Class and depth pictures of every n-th pixel; 0 for none.")
    ] = 1,
) -> None:
    """Write scenes in nuScenes format; the same command again completes what was interrupted.

    Several calls with other cities, splits and seeds fill one data set.
    """
    from sparseoccvla.world.generate import generate as generate_root
    from sparseoccvla.world.roots import Request, RootOptions

    width_px, height_px = _size(size)
    options = RootOptions(width_px, height_px, duration, sweeps, lidar, pixel_stride)
    began = time.perf_counter()
    with _Bar() as bar:
        summary = generate_root(out, options, Request(city, split, seed, scenes), workers, bar.update)
    print(
        json.dumps(
            {"dataroot": str(out), **vars(summary), "seconds": round(time.perf_counter() - began, 1)},
            indent=2,
        )
    )


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise InputError(f"--size is {text!r}, wanted width x height such as 704x396") from error
    return width, height


class _Bar:
    """Progress on stderr: a bar in a terminal, elsewhere a line now and then."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._plain = not console.is_terminal
        self._bar = Progress(*columns, console=console, disable=self._plain)
        self._task = self._bar.add_task("scenes", total=None)
        self._began = self._told = time.monotonic()

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)
        now = time.monotonic()
        if self._plain and done and now - self._told > _REPORT_EVERY_S:
            self._told = now
            left_s = (now - self._began) / done * (total - done)
            print(f"{done} of {total} scenes, {left_s / 60:.1f} minutes left", file=sys.stderr)
