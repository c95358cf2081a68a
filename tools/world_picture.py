"""The picture of the driving world in README.md: six moments in both cities.

python -m tools.world_picture      writes docs/pictures/world.jpg
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.dashboard import font
from sparseoccvla.world import CameraRig, Renderer, Scene, rollout

ROOT = Path(__file__).resolve().parents[1]
TILE_PX = (448, 252)
GAP_PX = 6
_FINER = 2  # painted so much larger, then scaled down
_QUALITY = 84


@dataclass(frozen=True)
class Moment:
    """What cam_front sees of a scene at some second."""

    seed: int
    city: str
    weather: str
    hour: str
    seconds: float
    words: str

    def picture(self) -> Image.Image:
        scene = Scene.make(self.seed, self.city, weather=self.weather, hour=self.hour)
        drive = rollout(scene, self.seconds + 0.5)
        stamp_ns = int(drive.stamps_ns[0]) + round(self.seconds * NS_PER_S)
        camera = CameraRig.nuscenes_like()["cam_front"]
        size = (TILE_PX[0] * _FINER, TILE_PX[1] * _FINER)
        rgb = Renderer(scene).render(drive, camera, stamp_ns, size).rgb
        tile = Image.fromarray(np.ascontiguousarray(rgb)).resize(TILE_PX, Image.Resampling.LANCZOS)
        words = f"{self.city}, {self.weather} {self.hour}: {self.words}"
        ImageDraw.Draw(tile).text(
            (10, TILE_PX[1] - 24),
            words,
            (255, 255, 255),
            font(13, True),
            stroke_width=2,
            stroke_fill=(0, 0, 0),
        )
        return tile


MOMENTS = (
    Moment(1, "rightville", "clear", "evening", 11.7, "a pedestrian steps out"),
    Moment(12, "rightville", "clear", "morning", 4.6, "crossing traffic"),
    Moment(8, "rightville", "fog", "morning", 8.6, "a turn to the right"),
    Moment(15, "leftville", "clear", "noon", 6.0, "a stopped truck"),
    Moment(13, "leftville", "cloudy", "morning", 12.6, "construction"),
    Moment(13, "leftville", "rain", "noon", 3.4, "a cut-in"),
)


def main() -> None:
    torch.set_num_threads(1)  # as everywhere in the world: threads that wait for each other spin
    width = 3 * TILE_PX[0] + 2 * GAP_PX
    canvas = Image.new("RGB", (width, 2 * TILE_PX[1] + GAP_PX), (255, 255, 255))
    for i, moment in enumerate(MOMENTS):
        place = (i % 3 * (TILE_PX[0] + GAP_PX), i // 3 * (TILE_PX[1] + GAP_PX))
        canvas.paste(moment.picture(), place)
    canvas.save(ROOT / "docs/pictures/world.jpg", quality=_QUALITY, optimize=True, progressive=True)


if __name__ == "__main__":
    main()
