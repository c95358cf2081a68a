"""Bodies of everything on wheels. Each function gives a body in its object's frame for a size in meters."""

from __future__ import annotations

import numpy as np

from sparseoccvla.world.shapes import Body, Color, Material

TIRE: Color = (0.07, 0.07, 0.08)
GLASS: Color = (0.16, 0.20, 0.25)
CHROME: Color = (0.55, 0.56, 0.58)
RED: Color = (0.62, 0.06, 0.06)
WHITE: Color = (0.93, 0.93, 0.90)
AMBER: Color = (0.80, 0.45, 0.08)
Size = tuple[float, float, float]  # length, width, height


def _quad_x(x: float, y: float, z: float, half_y: float, half_z: float, forward: bool) -> np.ndarray:
    """An upright rectangle that faces forward or backward."""
    s = 1 if forward else -1
    return np.array(
        [
            (x, y - s * half_y, z - half_z),
            (x, y + s * half_y, z - half_z),
            (x, y + s * half_y, z + half_z),
            (x, y - s * half_y, z + half_z),
        ]
    )


def _lights(body: Body, length: float, width: float, z: float, size: float) -> None:
    """Tail lamps, headlamps and turn signals at both ends."""
    for sign, signal in ((-1, Material.RIGHT_SIGNAL), (1, Material.LEFT_SIGNAL)):
        y = sign * width * 0.38
        body.face(_quad_x(-length / 2 - 0.012, y, z, 0.16 * size, 0.09 * size, False), RED, Material.BRAKE)
        body.face(
            _quad_x(length / 2 + 0.012, y, z - 0.06, 0.17 * size, 0.075 * size, True), WHITE, Material.LAMP
        )
        edge = sign * (width / 2 - 0.07 * size)
        for x, forward in ((-length / 2 - 0.016, False), (length / 2 + 0.016, True)):
            body.face(_quad_x(x, edge, z + 0.11 * size, 0.07 * size, 0.05 * size, forward), AMBER, signal)


def _axles(body: Body, positions: tuple[float, ...], width: float, radius: float, tire: float = 0.24) -> None:
    for x in positions:
        for sign in (-1, 1):
            body.wheel((x, sign * (width / 2 - tire / 2), radius), radius, tire, TIRE)


def _window(body: Body, corners: np.ndarray, outward: np.ndarray) -> None:
    """Glass on a quad: shrunk to its middle and lifted off it."""
    center = corners.mean(axis=0)
    body.face(center + 0.84 * (corners - center) + 0.012 * outward, GLASS, Material.GLASS)


def _cabin(body: Body, profile: np.ndarray, half: float, top_half: float, color: Color) -> None:
    """A narrowing cabin (rear bottom, front bottom, front top, rear top) with glass all around."""
    body.prism(profile, half, top_half, color)
    (x0, z0), (x1, z1), (x2, z2), (x3, z3) = profile
    low, high = min(z0, z1), max(z2, z3)

    def at(x: float, z: float, sign: int) -> tuple[float, float, float]:
        part = (z - low) / (high - low)
        return (x, sign * (half + (top_half - half) * part), z)

    for sign in (-1, 1):
        order = slice(None) if sign < 0 else slice(None, None, -1)
        corners = np.array([at(x, z, sign) for x, z in profile])[order]
        _window(body, corners, np.array([0, sign, 0.1]))
    front = np.array([at(x1, z1, -1), at(x1, z1, 1), at(x2, z2, 1), at(x2, z2, -1)])
    _window(body, front, np.array([1, 0, 0.5]))
    rear = np.array([at(x0, z0, 1), at(x0, z0, -1), at(x3, z3, -1), at(x3, z3, 1)])
    _window(body, rear, np.array([-1, 0, 0.5]))


def car(size: Size, color: Color, style: str = "sedan") -> Body:
    """`style` is sedan, hatch, suv or van."""
    length, width, height = size
    body = Body()
    clear, belt = 0.2, {"sedan": 0.60, "hatch": 0.60, "suv": 0.60, "van": 0.56}[style]
    belt_z, half = belt * height, width / 2
    nose = {"sedan": 0.48, "hatch": 0.48, "suv": 0.54, "van": 0.52}[style] * height
    profile = [
        (-length / 2 + 0.04, clear),
        (length / 2 - 0.06, clear),
        (length / 2, nose * 0.75),
        (length / 2 - 0.12, nose),
        (0.22 * length, belt_z - 0.01),
        (-length / 2 + 0.05, belt_z),
        (-length / 2, clear + 0.25),
    ]
    body.prism(profile, half, half * 0.95, color)
    x = {
        "sedan": (-0.40, 0.20, 0.05, -0.24),
        "hatch": (-0.49, 0.22, 0.08, -0.38),
        "suv": (-0.49, 0.20, 0.10, -0.44),
        "van": (-0.495, 0.36, 0.22, -0.48),
    }[style]
    cabin = np.array(
        [(x[0] * length, belt_z), (x[1] * length, belt_z), (x[2] * length, height), (x[3] * length, height)]
    )
    _cabin(body, cabin, half * 0.94, half * 0.76, color)
    radius = 0.34 if style in ("suv", "van") else 0.31
    _axles(body, (-0.30 * length, 0.31 * length), width, radius)
    body.face(_quad_x(-length / 2 - 0.01, 0.0, clear + 0.30, 0.26, 0.06, False), WHITE)
    _lights(body, length, width, belt_z * 0.80, 1.0)
    return body


def truck(size: Size, color: Color, cargo: Color = (0.86, 0.86, 0.84)) -> Body:
    """A box truck: colored cab, cargo box behind it."""
    length, width, height = size
    body = Body()
    cab, clear = min(2.1, 0.3 * length), 0.55
    front = length / 2
    cab_height = min(2.6, 0.85 * height)
    profile = [
        (front - cab, clear),
        (front - 0.05, clear),
        (front, clear + 0.9),
        (front - 0.28, cab_height),
        (front - cab, cab_height),
    ]
    body.prism(profile, width * 0.48, width * 0.44, color)
    low, high = clear + 0.95, cab_height - 0.25
    slope = 0.28 / (cab_height - clear - 0.9)
    x_low, x_high = front - slope * (low - clear - 0.9), front - slope * (high - clear - 0.9)
    w = width * 0.42
    body.face(
        [
            (x_low + 0.02, -w, low),
            (x_low + 0.02, w, low),
            (x_high + 0.02, w * 0.95, high),
            (x_high + 0.02, -w * 0.95, high),
        ],
        GLASS,
        Material.GLASS,
    )
    for sign in (-1, 1):
        y = sign * (width * 0.48 + 0.005)
        window = [
            (front - cab + 0.5, y, low),
            (front - 0.3, y, low),
            (front - 0.45, y, high),
            (front - cab + 0.5, y, high),
        ]
        body.face(window if sign < 0 else window[::-1], GLASS, Material.GLASS)
    box_length = length - cab - 0.15
    body.box(
        (-front + box_length / 2, 0, (0.9 + height) / 2),
        (box_length, width, height - 0.9),
        cargo,
        open_bottom=False,
    )
    body.box((-front + box_length / 2, 0, 0.75), (box_length, width * 0.7, 0.35), (0.15, 0.15, 0.16))
    _axles(body, (-front + 0.22 * length, front - 0.5 * cab), width, 0.48, 0.32)
    for sign in (-1, 1):
        body.face(_quad_x(-front - 0.012, sign * width * 0.36, 0.82, 0.2, 0.1, False), RED, Material.BRAKE)
        body.face(
            _quad_x(front + 0.012, sign * width * 0.34, clear + 0.25, 0.18, 0.1, True), WHITE, Material.LAMP
        )
    return body


def bus(size: Size, color: Color) -> Body:
    """A city bus with a band of windows."""
    length, width, height = size
    body = Body()
    body.box((0, 0, (0.32 + height) / 2), (length, width, height - 0.32), color, top=(0.85, 0.86, 0.86))
    z, half_z = 0.62 * height, 0.17 * height
    panes = max(int(length / 1.6), 4)
    step = (length - 0.8) / panes
    for i in range(panes):
        x0 = -length / 2 + 0.4 + i * step + 0.06
        x1 = x0 + step - 0.12
        for sign in (-1, 1):
            y = sign * (width / 2 + 0.012)
            low = z - half_z if i % 3 != 2 else 0.5
            pane = [(x0, y, low), (x1, y, low), (x1, y, z + half_z), (x0, y, z + half_z)]
            body.face(pane if sign < 0 else pane[::-1], GLASS, Material.GLASS)
    body.face(
        _quad_x(length / 2 + 0.012, 0, 0.58 * height, width * 0.44, 0.24 * height, True),
        GLASS,
        Material.GLASS,
    )
    body.face(
        _quad_x(-length / 2 - 0.012, 0, 0.66 * height, width * 0.4, 0.14 * height, False),
        GLASS,
        Material.GLASS,
    )
    body.face(
        _quad_x(length / 2 + 0.014, 0, 0.91 * height, width * 0.3, 0.1, True),
        (0.95, 0.65, 0.15),
        Material.LAMP,
    )
    _axles(body, (-0.28 * length, 0.30 * length), width, 0.48, 0.3)
    _lights(body, length, width, 0.85, 1.2)
    return body


def trailer(size: Size, color: Color) -> Body:
    """A cargo box on wheels with a drawbar, parked on its own."""
    length, width, height = size
    body = Body()
    box_length = length - 1.0
    x = -length / 2 + box_length / 2
    body.box((x, 0, (0.75 + height) / 2), (box_length, width, height - 0.75), color, open_bottom=False)
    for k in range(1, 5):
        y_x = -length / 2 + box_length * k / 5
        for sign in (-1, 1):
            y = sign * (width / 2 + 0.01)
            rib = [
                (y_x - 0.05, y, 0.8),
                (y_x + 0.05, y, 0.8),
                (y_x + 0.05, y, height - 0.05),
                (y_x - 0.05, y, height - 0.05),
            ]
            body.face(rib if sign < 0 else rib[::-1], tuple(c * 0.72 for c in color))  # type: ignore[arg-type]
    body.box((length / 2 - 0.55, 0, 0.6), (1.1, 0.14, 0.14), (0.2, 0.2, 0.2), open_bottom=False)
    _axles(body, (x - 0.7, x + 0.7), width, 0.42, 0.26)
    for sign in (-1, 1):
        body.face(_quad_x(-length / 2 - 0.012, sign * width * 0.38, 0.9, 0.16, 0.09, False), RED)
    return body


def construction_vehicle(size: Size, color: Color) -> Body:
    """An excavator on tracks with its arm raised forward."""
    length, width, height = size
    body = Body()
    rear, dark = -length / 2, (0.14, 0.14, 0.14)
    base = 0.55 * length
    for sign in (-1, 1):
        y = sign * (width / 2 - 0.25)
        profile = [
            (rear + 0.3, 0),
            (rear + base - 0.3, 0),
            (rear + base, 0.4),
            (rear + base - 0.3, 0.8),
            (rear + 0.3, 0.8),
            (rear, 0.4),
        ]
        body.prism(profile, 0.25, 0.25, dark, y_m=y)
    body.box((rear + base / 2, 0, 1.25), (base, width * 0.95, 0.9), color, open_bottom=False)
    body.box((rear + 0.45, 0, 1.95), (0.9, width * 0.9, 0.6), tuple(c * 0.85 for c in color))  # type: ignore[arg-type]
    cab_x = rear + base - 0.75
    body.box(
        (cab_x, width * 0.22, (1.7 + height) / 2),
        (1.4, width * 0.46, height - 1.7),
        GLASS,
        Material.GLASS,
        top=color,
    )
    reach = length / 2 - (rear + base)
    top = height * 0.94
    span = np.hypot(reach * 0.55, top - 1.6)
    pitch = -np.arctan2(top - 1.6, reach * 0.55)
    body.box(
        (rear + base + reach * 0.28, -width * 0.15, (1.6 + top) / 2),
        (span, 0.35, 0.42),
        color,
        pitch_rad=pitch,
        open_bottom=False,
    )
    span2 = np.hypot(reach * 0.42, top - 0.8)
    pitch2 = np.arctan2(top - 0.8, reach * 0.42)
    body.box(
        (length / 2 - reach * 0.24, -width * 0.15, (0.8 + top) / 2),
        (span2, 0.28, 0.34),
        color,
        pitch_rad=pitch2,
        open_bottom=False,
    )
    body.box((length / 2 - 0.45, -width * 0.15, 0.5), (0.9, 1.0, 0.7), dark, open_bottom=False)
    return body


def bicycle(size: Size, color: Color, rider: Color | None = None, motor: bool = False) -> Body:
    """Two wheels and a frame, with a rider of a shirt color or without."""
    length, width, height = size
    body = Body()
    radius = 0.33 if not motor else 0.31
    for x in (-length / 2 + radius, length / 2 - radius):
        body.wheel((x, 0, radius), radius, 0.16 if motor else 0.06, TIRE)
    seat = 0.78 if motor else 0.95
    if motor:
        frame = [
            (-0.32 * length, 0.3),
            (0.22 * length, 0.3),
            (0.3 * length, 0.85),
            (-0.05 * length, 0.88),
            (-0.42 * length, 0.72),
        ]
        body.prism(frame, 0.17, 0.12, color)
        body.face(_quad_x(-0.43 * length, 0, 0.68, 0.1, 0.05, False), RED, Material.BRAKE)
        body.face(_quad_x(0.31 * length, 0, 0.78, 0.1, 0.09, True), WHITE, Material.LAMP)
    else:
        frame = [
            (-0.12 * length, 0.32),
            (0.06 * length, 0.32),
            (0.27 * length, 0.85),
            (0.22 * length, 0.88),
            (-0.12 * length, 0.8),
        ]
        body.prism(frame, 0.045, 0.045, color)
        body.box((-0.11 * length, 0, seat - 0.03), (0.24, 0.16, 0.06), TIRE)
    body.box((0.24 * length, 0, seat + 0.12), (0.06, min(width, 0.62), 0.05), CHROME, open_bottom=False)
    if rider is not None:
        _rider(body, length, seat, height, rider)
    return body


def _rider(body: Body, length: float, seat: float, height: float, shirt: Color) -> None:
    skin, trousers = (0.78, 0.58, 0.45), (0.16, 0.18, 0.26)
    hip, shoulder = -0.08 * length, 0.06 * length
    top = height - 0.28
    torso = [(hip - 0.14, seat), (hip + 0.12, seat), (shoulder + 0.13, top), (shoulder - 0.12, top)]
    body.prism(torso, 0.17, 0.21, shirt)
    for sign in (-1, 1):
        body.box(
            (hip + 0.18, sign * 0.12, seat - 0.12),
            (0.5, 0.14, 0.16),
            trousers,
            pitch_rad=0.5,
            open_bottom=False,
        )
        body.box((hip + 0.32, sign * 0.12, seat * 0.48), (0.14, 0.12, 0.55), trousers, open_bottom=False)
        body.box(
            (shoulder + 0.2, sign * 0.22, top - 0.22),
            (0.5, 0.1, 0.1),
            shirt,
            pitch_rad=0.75,
            open_bottom=False,
        )
    body.blob((shoulder + 0.04, 0, height - 0.14), (0.12, 0.11, 0.14), skin, material=Material.PLAIN)
    body.box((shoulder + 0.03, 0, height - 0.05), (0.25, 0.22, 0.12), (0.2, 0.3, 0.6))
