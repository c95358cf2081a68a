"""`sparseoccvla world ...`: data sets and pictures of the driving world."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.data.cli import picture_size, scene_bar
from sparseoccvla.world.look_cli import EffectOption, bag_command, edit_command, look_command

app = typer.Typer(no_args_is_help=True, help="The procedural driving world.")
app.command("look")(look_command)
app.command("bag")(bag_command)
app.command("edit")(edit_command)


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
    device: Annotated[str, typer.Option(help="cpu or cuda: what renders and labels.")] = "cpu",
    effect: EffectOption = None,
) -> None:
    """Write scenes in nuScenes format; the same command again completes what was interrupted.

    Several calls with other cities, splits and seeds fill one data set.
    """
    from sparseoccvla.world.generate import generate as generate_root
    from sparseoccvla.world.roots import Request, RootOptions

    width_px, height_px = picture_size(size)
    options = RootOptions(
        width_px, height_px, duration, sweeps, lidar, pixel_stride, device, ",".join(effect or ())
    )
    began = time.perf_counter()
    with scene_bar() as bar:
        summary = generate_root(out, options, Request(city, split, seed, scenes), workers, bar)
    print(
        json.dumps(
            {"dataroot": str(out), **vars(summary), "seconds": round(time.perf_counter() - began, 1)},
            indent=2,
        )
    )
