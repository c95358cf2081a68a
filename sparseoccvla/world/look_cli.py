"""`sparseoccvla world look` and `world bag`: one scene, as a picture or as a bag."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.errors import InputError

SeedOption = Annotated[int, typer.Option(help="Of the scene and everything in it.")]
CityOption = Annotated[str, typer.Option(help="rightville or leftville.")]
EffectOption = Annotated[
    list[str] | None, typer.Option(help="NAME=VALUE of a camera effect, e.g. noise=4; may come again.")
]


def look_command(
    seed: SeedOption,
    city: CityOption = "rightville",
    out: Annotated[Path, typer.Option("--out", help="The PNG to write.")] = Path("out/look.png"),
    at: Annotated[
        float | None, typer.Option(help="Seconds into the drive; by default something is about to happen.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=5.0, max=60.0, help="Length of the drive.")] = 20.0,
    edit: Annotated[
        str, typer.Option(help="Draw the drive with one thing changed, e.g. remove=pedestrian-0.")
    ] = "",
    effect: EffectOption = None,
) -> None:
    """Draw a contact sheet: cameras, classes, depth, the map with boxes and route, the drive over time."""
    from PIL import Image

    from sparseoccvla.world.edits import Edit, apply
    from sparseoccvla.world.effects import CameraEffects, Cameras
    from sparseoccvla.world.look import contact_sheet, telling_stamp
    from sparseoccvla.world.render import Renderer
    from sparseoccvla.world.rollout import rollout
    from sparseoccvla.world.scene import Scene

    effects = CameraEffects.parse(effect or ())
    change = Edit.parse(edit) if edit else None
    scene = Scene.make(seed, city)
    drive = rollout(scene, seconds)
    now_ns = telling_stamp(drive) if at is None else int(drive.stamps_ns[0]) + round(at * NS_PER_S)
    if not drive.stamps_ns[0] <= now_ns <= drive.stamps_ns[-1]:
        raise InputError(
            f"--at is {at}, wanted 0 to {drive.duration_s:g}, the length of the drive in seconds"
        )
    if change:
        scene, drive = apply(scene, drive, change)
    sheet = Image.fromarray(contact_sheet(scene, drive, Cameras(Renderer(scene), effects), now_ns))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, "PNG")
    typer.echo(
        json.dumps(
            {
                "picture": str(out),
                "seed": seed,
                "city": city,
                "weather": scene.sky.weather,
                "hour": scene.sky.hour,
                "at_s": (now_ns - int(drive.stamps_ns[0])) / NS_PER_S,
                "hazards": [hazard.name for hazard in scene.hazards],
                "possible_hazards": list(scene.possible_hazards),
            },
            indent=2,
        )
    )


def bag_command(
    seed: SeedOption,
    out: Annotated[Path, typer.Option("--out", help="Folder of the bag: new, or one written here before.")],
    city: CityOption = "rightville",
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of the drive.")] = 20.0,
    rate: Annotated[float, typer.Option(min=0.5, max=12.0, help="Camera sets per second.")] = 4.0,
    effect: EffectOption = None,
) -> None:
    """Record a scene as a rosbag2 bag: six cameras, odometry, command of the route, ground truth."""
    from sparseoccvla.data.cli import make_demo_bag
    from sparseoccvla.world.effects import CameraEffects

    began = time.perf_counter()
    pictures = make_demo_bag(out, seconds, seed, rate, city, CameraEffects.parse(effect or ()))
    took_s = round(time.perf_counter() - began, 2)
    typer.echo(
        json.dumps(
            {"bag": str(out), "pictures": pictures, "seconds": took_s, "seed": seed, "city": city}, indent=2
        )
    )


def edit_command(
    dataroot: Annotated[Path, typer.Option(help="Data set made by `world generate`.")],
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    limit: Annotated[
        int | None, typer.Option(min=1, help="How many keyframes that need sight; by default all.")
    ] = None,
) -> None:
    """Add edited pictures to a data set: event frames without their hazard, others in another look."""
    from sparseoccvla.data.cli import scene_bar
    from sparseoccvla.data.tables import Tables
    from sparseoccvla.world.edited import write_edits

    began = time.perf_counter()
    with scene_bar() as bar:
        count = write_edits(Tables(dataroot), split, limit, bar)
    took_s = round(time.perf_counter() - began, 2)
    typer.echo(
        json.dumps({"dataroot": str(dataroot), "edited_keyframes": count, "seconds": took_s}, indent=2)
    )
