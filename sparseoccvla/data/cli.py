"""`sparseoccvla bag ...`: make bags and look into them; `sparseoccvla data ...`: ready data sets for use."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.errors import InputError

if TYPE_CHECKING:
    from sparseoccvla.world.effects import CameraEffects

app = typer.Typer(no_args_is_help=True, help="Make rosbag2 bags and look into them, without ROS.")

data_app = typer.Typer(no_args_is_help=True, help="Ready data sets, real or generated, for training.")

_TELL_EVERY_S = 30.0

OutOption = Annotated[Path, typer.Option("--out", help="Folder of the bag: new, or one written here before.")]


@app.command("from-nuscenes")
def from_nuscenes(
    dataroot: Annotated[Path, typer.Option(help="Data set in nuScenes format, real or generated.")],
    scene: Annotated[str, typer.Option(help="Name of the scene, e.g. scene-0061.")],
    out: OutOption,
    version: Annotated[str | None, typer.Option(help="Needed when the root has several.")] = None,
) -> None:
    """One scene with its original pictures, as ROS 2 topics."""
    from sparseoccvla.data.drive import write_drive
    from sparseoccvla.data.nuscenes_drive import scene_drive
    from sparseoccvla.data.tables import Tables

    began = time.perf_counter()
    made = scene_drive(Tables(dataroot, version), scene)
    with _progress("pictures", made.pictures) as advance:
        write_drive(made.drive, out, needed_bytes=made.bytes * 11 // 10, progress=lambda _: advance())
    _summary(
        bag=str(out),
        pictures=made.pictures,
        missing_sweeps=made.missing_sweeps,
        lidar_turns=made.clouds,
        seconds=round(time.perf_counter() - began, 2),
        **made.drive.notes,
    )


@app.command("demo")
def demo(
    out: OutOption,
    seconds: Annotated[float, typer.Option(min=1.0, help="Length of the drive.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Seed of scene and traffic.")] = 0,
    rate: Annotated[float, typer.Option(min=0.5, max=12.0, help="Camera sets per second.")] = 4.0,
    city: Annotated[str, typer.Option(help="rightville or leftville.")] = "rightville",
) -> None:
    """A synthetic drive of the same topics: six cameras, odometry, command, ground truth."""
    began = time.perf_counter()
    pictures = make_demo_bag(out, seconds, seed, rate, city)
    _summary(
        bag=str(out), pictures=pictures, seconds=round(time.perf_counter() - began, 2), seed=seed, city=city
    )


def make_demo_bag(
    out: Path,
    seconds: float,
    seed: int,
    rate_hz: float,
    city: str = "rightville",
    effects: CameraEffects | None = None,
) -> int:
    """Write the bag of `bag demo`; returns the number of pictures, lost ones among them."""
    from sparseoccvla.contracts import CAMERA_NAMES
    from sparseoccvla.data.drive import write_drive
    from sparseoccvla.data.world_drive import set_stamps_ns, world_drive

    pictures = len(set_stamps_ns(seconds, rate_hz)) * len(CAMERA_NAMES)
    with _progress("painting the drive", pictures) as advance:
        drive = world_drive(seed, city, seconds, rate_hz, effects)
        write_drive(drive, out, needed_bytes=pictures * 150_000, progress=lambda _: advance())
    return pictures


@app.command("info")
def info(
    bag: Annotated[Path, typer.Argument(help="Folder of a rosbag2 bag, or an .mcap file.")],
) -> None:
    """Topics, counts, span and complete camera sets of a bag."""
    from sparseoccvla.contracts import CAMERA_NAMES
    from sparseoccvla.data.bag import BagReader
    from sparseoccvla.data.camera_sets import count_camera_sets
    from sparseoccvla.data.messages import camera_topics

    with BagReader(bag) as reader:
        topics = {name: [topic.type, topic.count] for name, topic in sorted(reader.topics.items())}
        span_s = (reader.end_ns - reader.start_ns) / NS_PER_S
        notes, start_ns = reader.notes, reader.start_ns
    has_cameras = camera_topics(CAMERA_NAMES[0])[0] in topics
    _summary(
        bag=str(bag),
        start_ns=start_ns,
        seconds=round(span_s, 3),
        topics=topics,
        complete_camera_sets=len(count_camera_sets(bag).complete_t0_ns) if has_cameras else 0,
        notes=notes,
    )


@data_app.callback()
def data() -> None:
    """Ready data sets, real or generated, for training."""


@data_app.command("cache")
def cache(
    dataroot: Annotated[Path, typer.Option(help="Data set in nuScenes format, real or generated.")],
    split: Annotated[str, typer.Option(help="One of the root's own splits.json, or an official one.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder, or one made from the same: it is kept.")],
    version: Annotated[str | None, typer.Option(help="Needed when the root has several.")] = None,
    size: Annotated[str, typer.Option(help="Pictures of the network, width x height.")] = "352x128",
    sweeps: Annotated[bool, typer.Option(help="Also pictures between keyframes, as history.")] = False,
    pictures: Annotated[str, typer.Option(help="raw: stored decoded; files: decoded at access.")] = "raw",
) -> None:
    """Store the samples of a split as arrays to map, so that training starts at once."""
    from sparseoccvla.data.cache import CacheConfig
    from sparseoccvla.data.cache_build import open_cache
    from sparseoccvla.data.tables import Tables

    width_px, height_px = picture_size(size)
    began = time.perf_counter()
    with scene_bar() as bar:
        samples = open_cache(
            Tables(dataroot, version), split, CacheConfig(height_px, width_px, sweeps, pictures), out, bar
        )
    _summary(
        cache=str(out),
        samples=len(samples),
        scenes=len(samples.scenes),
        needs_sight=int(samples.needs_sight.sum()),
        missing=samples.missing,
        seconds=round(time.perf_counter() - began, 2),
    )


def picture_size(text: str) -> tuple[int, int]:
    """Width and height of an option such as "704x396".

    Raises:
        InputError: it is something else.
    """
    try:
        width, height = (int(side) for side in text.split("x"))
    except ValueError as error:
        raise InputError(f"--size is {text!r}, wanted width x height such as 704x396") from error
    return width, height


@contextmanager
def scene_bar() -> Iterator[Callable[[int, int], None]]:
    """Progress over scenes on stderr, for (done, in all): a bar in a terminal, else a line now and then."""
    console = Console(stderr=True)
    plain = not console.is_terminal
    began = told = time.monotonic()
    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=plain) as bar:
        task = bar.add_task("scenes", total=None)

        def update(done: int, total: int) -> None:
            nonlocal told
            bar.update(task, completed=done, total=total)
            now = time.monotonic()
            if plain and done and now - told > _TELL_EVERY_S:
                told = now
                left_s = (now - began) / done * (total - done)
                print(f"{done} of {total} scenes, {left_s / 60:.1f} minutes left", file=sys.stderr)

        yield update


def _summary(**values: object) -> None:
    print(json.dumps(values, indent=2))


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr; silent when that is no terminal."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
