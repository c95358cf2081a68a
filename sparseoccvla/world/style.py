"""How a scene looks: the two cities, weather and time of day. Nothing here moves anything."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.shapes import Color

CITIES = ("rightville", "leftville")
WEATHERS = ("clear", "cloudy", "overcast", "rain", "fog")
HOURS = ("morning", "noon", "evening", "night")


@dataclass(frozen=True)
class City:
    """What makes a city look like itself. Colors are sRGB."""

    name: str
    side: int  # -1 drives on the right, +1 on the left
    hilly: float  # root mean square slope of the ground
    yellow_center: bool
    asphalt: Color
    walk: Color
    grass: Color
    paving: Color
    walls: tuple[Color, ...]
    roofs: tuple[Color, ...]
    leaves: tuple[Color, ...]
    gabled: float  # share of houses with saddle roofs
    conifers: float
    setback_m: tuple[float, float]
    height_m: tuple[float, float]
    speed_limit_mps: tuple[float, float]


_CITIES = {
    "rightville": City(
        "rightville",
        -1,
        0.020,
        True,
        asphalt=(0.36, 0.36, 0.38),
        walk=(0.70, 0.69, 0.66),
        grass=(0.40, 0.53, 0.24),
        paving=(0.62, 0.47, 0.40),
        walls=(
            (0.63, 0.33, 0.26),
            (0.72, 0.56, 0.42),
            (0.60, 0.63, 0.66),
            (0.80, 0.76, 0.68),
            (0.45, 0.38, 0.36),
        ),
        roofs=((0.42, 0.42, 0.44), (0.52, 0.50, 0.47)),
        leaves=((0.27, 0.47, 0.17), (0.36, 0.52, 0.18), (0.20, 0.40, 0.18), (0.62, 0.52, 0.16)),
        gabled=0.12,
        conifers=0.10,
        setback_m=(0.4, 5.0),
        height_m=(6.0, 24.0),
        speed_limit_mps=(9.5, 13.5),
    ),
    "leftville": City(
        "leftville",
        1,
        0.034,
        False,
        asphalt=(0.29, 0.30, 0.33),
        walk=(0.72, 0.62, 0.52),
        grass=(0.30, 0.50, 0.28),
        paving=(0.58, 0.55, 0.58),
        walls=(
            (0.91, 0.85, 0.72),
            (0.86, 0.66, 0.58),
            (0.68, 0.78, 0.80),
            (0.94, 0.93, 0.90),
            (0.80, 0.72, 0.50),
        ),
        roofs=((0.64, 0.30, 0.20), (0.52, 0.25, 0.19), (0.34, 0.35, 0.40)),
        leaves=((0.16, 0.38, 0.20), (0.24, 0.44, 0.22), (0.42, 0.50, 0.20)),
        gabled=0.85,
        conifers=0.45,
        setback_m=(2.0, 8.0),
        height_m=(5.0, 9.5),
        speed_limit_mps=(8.0, 12.0),
    ),
}


def city_named(name: str) -> City:
    """The city of this name.

    Raises:
        InputError: there is none.
    """
    if name not in _CITIES:
        raise InputError(f"city is {name!r}, wanted one of {', '.join(CITIES)}")
    return _CITIES[name]


@dataclass(frozen=True)
class Sky:
    """Light and air. Colors are linear light."""

    weather: str
    hour: str
    sun_direction: NDArray[np.float64]  # (3,) toward the sun
    sun: Color  # its light on a surface that faces it
    ambient: Color
    zenith: Color
    horizon: Color
    clouds: float  # share of the sky
    haze_m: float  # distance after which air hides two thirds of a thing
    wet: float  # 0 dry to 1
    lamps: float  # how strongly lamps glow
    shadows: float  # 0 none to 1 hard


_HOURS = {  # elevation in degrees, sun, ambient, zenith, horizon, lamps
    "morning": (24.0, (1.15, 0.92, 0.66), (0.34, 0.38, 0.46), (0.16, 0.33, 0.62), (0.74, 0.72, 0.68), 0.15),
    "noon": (55.0, (1.12, 1.05, 0.94), (0.36, 0.41, 0.48), (0.10, 0.29, 0.64), (0.60, 0.71, 0.82), 0.0),
    "evening": (14.0, (1.10, 0.70, 0.42), (0.31, 0.30, 0.37), (0.17, 0.24, 0.48), (0.88, 0.58, 0.38), 0.45),
    "night": (
        35.0,
        (0.035, 0.04, 0.06),
        (0.035, 0.04, 0.06),
        (0.004, 0.006, 0.015),
        (0.02, 0.024, 0.04),
        1.0,
    ),
}
_WEATHERS = {  # sun share, ambient gain, gray of the sky, clouds, haze, wet, shadows
    "clear": (1.0, 1.0, 0.0, 0.15, 1400.0, 0.0, 1.0),
    "cloudy": (0.85, 1.05, 0.12, 0.55, 1000.0, 0.0, 0.85),
    "overcast": (0.18, 1.45, 0.75, 0.9, 600.0, 0.0, 0.15),
    "rain": (0.08, 1.25, 0.85, 1.0, 260.0, 1.0, 0.06),
    "fog": (0.10, 1.35, 0.95, 1.0, 85.0, 0.3, 0.05),
}


def make_sky(seed: int, weather: str | None = None, hour: str | None = None) -> Sky:
    """The sky of a seed; weather and hour are drawn unless given.

    Raises:
        InputError: no such weather or hour.
    """
    rng = stream(seed, "sky")
    drawn_weather = str(rng.choice(WEATHERS, p=[0.40, 0.25, 0.17, 0.12, 0.06]))
    drawn_hour = str(rng.choice(HOURS, p=[0.27, 0.40, 0.21, 0.12]))
    weather, hour = weather or drawn_weather, hour or drawn_hour
    if weather not in WEATHERS:
        raise InputError(f"weather is {weather!r}, wanted one of {', '.join(WEATHERS)}")
    if hour not in HOURS:
        raise InputError(f"hour is {hour!r}, wanted one of {', '.join(HOURS)}")
    elevation, sun, ambient, zenith, horizon, lamps = _HOURS[hour]
    share, gain, gray, clouds, haze, wet, shadows = _WEATHERS[weather]
    azimuth = rng.uniform(0, 2 * np.pi)
    height = np.deg2rad(elevation * rng.uniform(0.8, 1.25))
    direction = np.array([np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)])
    return Sky(
        weather,
        hour,
        direction,
        _scaled(sun, share),
        _grayed(_scaled(ambient, gain), gray * 0.6),
        _grayed(zenith, gray),
        _grayed(horizon, gray),
        clouds,
        haze,
        wet,
        max(lamps, 0.25 if weather in ("rain", "fog") else 0.0),
        0.0 if hour == "night" else shadows,
    )


def _scaled(color: Color, gain: float) -> Color:
    return (color[0] * gain, color[1] * gain, color[2] * gain)


def _grayed(color: Color, share: float) -> Color:
    """Toward a bright gray of the same strength."""
    mean = sum(color) / 3 * 1.25
    r, g, b = (c + (mean - c) * share for c in color)
    return (r, g, b)
