"""Bodies of people, street furniture, plants and buildings, each in its object's frame, sizes in meters."""

from __future__ import annotations

import numpy as np

from sparseoccvla.world.shapes import Body, Color, Material

Size = tuple[float, float, float]
SKIN = ((0.87, 0.69, 0.56), (0.73, 0.53, 0.40), (0.50, 0.34, 0.25), (0.36, 0.25, 0.19))
HAIR = ((0.12, 0.09, 0.07), (0.32, 0.22, 0.13), (0.62, 0.50, 0.30), (0.45, 0.43, 0.42))


def pedestrian(
    size: Size, shirt: Color, trousers: Color, skin: int = 0, helmet: bool = False, stride: float = 0.2
) -> Body:
    """A standing or walking person; `helmet` makes a construction worker with a bright vest."""
    _, width, height = size
    body = Body()
    leg, top = 0.47 * height, 0.84 * height
    for sign in (-1, 1):
        y = sign * 0.10
        body.box((sign * stride / 2, y, leg / 2), (0.16, 0.15, leg), trousers, pitch_rad=-sign * stride * 0.9)
        body.box((sign * stride / 2 + 0.04, y, 0.05), (0.27, 0.12, 0.1), (0.1, 0.1, 0.1))
        body.box(
            (-sign * stride / 2, sign * (width / 2 - 0.06), 0.64 * height),
            (0.12, 0.11, 0.36 * height),
            shirt,
            pitch_rad=sign * stride,
        )
    body.prism(
        [(-0.13, leg - 0.02), (0.13, leg - 0.02), (0.14, top - 0.06), (0.05, top), (-0.07, top)],
        0.17,
        0.23,
        shirt,
    )
    if helmet:
        for z in (0.58, 0.68):
            band = 0.012
            for s in (-1, 1):
                x = s * (0.145 + band)
                face = [
                    (x, -s * 0.2, z * height),
                    (x, s * 0.2, z * height),
                    (x, s * 0.2, z * height + 0.06),
                    (x, -s * 0.2, z * height + 0.06),
                ]
                body.face(face, (0.9, 0.9, 0.85))
    head = 0.075 * height
    body.blob(
        (0.02, 0, height - head), (head * 0.85, head * 0.75, head), SKIN[skin % 4], material=Material.PLAIN
    )
    hat = (0.95, 0.80, 0.15) if helmet else HAIR[(skin * 7 + 1) % 4]
    body.blob(
        (-0.005, 0, height - head * 0.75),
        (head * 0.92, head * 0.82, head * 0.75),
        hat,
        detail=0,
        material=Material.PLAIN,
    )
    return body


def cone(size: Size) -> Body:
    """A traffic cone with a white collar."""
    length, width, height = size
    body = Body()
    orange, white = (0.95, 0.36, 0.08), (0.94, 0.93, 0.90)
    radius = min(length, width) * 0.36
    body.box((0, 0, 0.03), (length, width, 0.06), orange)
    for low, high, color in ((0.06, 0.40, orange), (0.40, 0.65, white), (0.65, 1.0, orange)):
        body.column(
            (0, 0, low * height), radius * (1.05 - low), (high - low) * height, color,
            top_radius_m=radius * (1.05 - high), sides=8,
        )  # fmt: skip
    return body


def barrier(size: Size, striped: bool) -> Body:
    """A movable road barrier across y: concrete with sloping sides, or striped plastic."""
    length, width, height = size
    body = Body()
    color = (0.92, 0.40, 0.14) if striped else (0.66, 0.65, 0.62)
    material = Material.STRIPES if striped else Material.PLAIN
    a = length / 2
    profile = [
        (-a, 0),
        (a, 0),
        (a * 0.45, 0.4 * height),
        (a * 0.32, height),
        (-a * 0.32, height),
        (-a * 0.45, 0.4 * height),
    ]
    low = [profile[0], profile[1], profile[2], profile[5]]
    body.prism(low, width / 2, width / 2, color, material)
    body.prism([profile[5], profile[2], profile[3], profile[4]], width / 2, width / 2, color, material)
    return body


def bin_(size: Size, color: Color) -> Body:
    """A wheeled waste bin."""
    length, width, height = size
    body = Body()
    low, high = 0.06, height * 0.92
    side = [(-length * 0.38, low), (length * 0.38, low), (length / 2, high), (-length / 2, high)]
    body.prism(side, width * 0.4, width / 2, color)
    dark: Color = (color[0] * 0.7, color[1] * 0.7, color[2] * 0.7)
    body.box((0, 0, height * 0.96), (length * 1.04, width * 1.02, height * 0.08), dark)
    return body


def debris(size: Size, color: Color) -> Body:
    """Cardboard boxes that fell off something."""
    length, width, height = size
    body = Body()
    body.box((-length * 0.15, 0, height * 0.5), (length * 0.6, width * 0.8, height), color, yaw_rad=0.3)
    body.box(
        (length * 0.28, width * 0.1, height * 0.3),
        (length * 0.4, width * 0.5, height * 0.6),
        color,
        yaw_rad=-0.4,
    )
    return body


def tree(rng: np.random.Generator, height_m: float, leaf: Color, conifer: bool) -> Body:
    """A broadleaf tree of several crowns, or a conifer of stacked cones."""
    body = Body()
    bark = (0.33, 0.25, 0.18)
    if conifer:
        trunk = 0.14 * height_m
        body.column((0, 0, 0), 0.04 * height_m**0.8, trunk + 0.5, bark)
        radius = 0.19 * height_m
        for level in range(3):
            low = trunk + (height_m - trunk) * level * 0.27
            top = min(low + (height_m - trunk) * 0.48, height_m)
            shade = 0.9 + 0.1 * level
            body.column(
                (0, 0, low), radius * (1 - 0.26 * level), top - low,
                (leaf[0] * shade, leaf[1] * shade, leaf[2] * shade),
                top_radius_m=0.0, sides=9, material=Material.FOLIAGE,
            )  # fmt: skip
        return body
    trunk = rng.uniform(0.24, 0.36) * height_m
    body.column(
        (0, 0, 0), 0.035 * height_m**0.85, trunk + 0.12 * height_m, bark, top_radius_m=0.02 * height_m**0.85
    )
    crown = height_m - trunk
    for _ in range(int(rng.integers(2, 4))):
        wide = crown * rng.uniform(0.30, 0.42)
        radii = (wide, wide, 0.85 * wide)
        x, y = rng.uniform(-0.18, 0.18, 2) * crown
        center = (x, y, rng.uniform(trunk + radii[2] * 0.8, height_m - radii[2]))
        shade = rng.uniform(0.85, 1.1)
        body.blob(center, radii, (leaf[0] * shade, leaf[1] * shade, leaf[2] * shade), rng)
    return body


def bush(rng: np.random.Generator, size: Size, leaf: Color) -> Body:
    """A round shrub, or a hedge when it is much longer than high."""
    length, width, height = size
    body = Body()
    if length > 2.5 * height:
        body.box((0, 0, height / 2), size, leaf, Material.FOLIAGE)
        return body
    body.blob((0, 0, height * 0.45), (length / 2, width / 2, height * 0.55), leaf, rng)
    return body


def street_lamp(height_m: float, reach_m: float) -> Body:
    """A lamp post whose arm reaches along +y."""
    body = Body()
    metal = (0.30, 0.32, 0.33)
    body.column((0, 0, 0), 0.09, height_m, metal, top_radius_m=0.06)
    body.box((0, reach_m / 2, height_m), (0.08, reach_m, 0.08), metal, open_bottom=False)
    body.box((0, reach_m, height_m - 0.02), (0.22, 0.55, 0.1), metal)
    x, y, z = 0.10, 0.26, height_m - 0.075
    body.face(
        [(-x, reach_m - y, z), (-x, reach_m + y, z), (x, reach_m + y, z), (x, reach_m - y, z)],
        (1.0, 0.93, 0.75),
        Material.LAMP,
    )
    return body


def sign(color: Color, round_plate: bool) -> Body:
    """A road sign that faces -x, toward whoever drives along +x."""
    body = Body()
    metal = (0.55, 0.56, 0.57)
    body.column((0, 0, 0), 0.04, 2.7, metal, sides=5)
    angle = 2 * np.pi * (np.arange(8) + 0.5) / 8 if round_plate else np.pi / 4 + np.pi / 2 * np.arange(4)
    radius = 0.38 if round_plate else 0.46
    plate = np.stack(
        [np.full(len(angle), -0.06), -np.cos(angle) * radius, 2.45 + np.sin(angle) * radius], axis=1
    )
    body.face(plate, color)
    inner = plate.copy()
    inner[:, 0] -= 0.01
    inner[:, 1:] = (plate[:, 1:] - [0, 2.45]) * 0.62 + [0, 2.45]
    body.face(inner, (0.95, 0.95, 0.93))
    body.face(plate[::-1] + np.array([0.02, 0, 0]), metal)
    return body


def building(size: Size, wall: Color, roof: Color, gabled: bool, foundation_m: float) -> Body:
    """A house or block. Walls reach `foundation_m` under the ground, because the ground slopes."""
    length, width, height = size
    body = Body()
    eaves = height - (0.3 * min(length, width) if gabled else 0.0)
    low = -foundation_m
    x, y = length / 2, width / 2
    corners = [(-x, -y), (x, -y), (x, y), (-x, y)]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True):
        body.face([(x0, y0, low), (x1, y1, low), (x1, y1, eaves), (x0, y0, eaves)], wall, Material.FACADE)
    if gabled:
        _gable(body, x, y, eaves, height, wall, roof)
    else:
        body.face([(*c, eaves) for c in corners], roof, Material.ROOF)
        trim: Color = (wall[0] * 0.8, wall[1] * 0.8, wall[2] * 0.8)
        body.box((0, 0, eaves + 0.15), (length + 0.3, width + 0.3, 0.7), trim, top=roof, open_bottom=False)
    return body


def _gable(body: Body, x: float, y: float, eaves: float, ridge: float, wall: Color, roof: Color) -> None:
    """A saddle roof with its ridge along the longer side."""
    over = 0.35
    swap = y > x
    a, b = (y, x) if swap else (x, y)

    def at(along: float, across: float, z: float) -> tuple[float, float, float]:
        return (across, -along, z) if swap else (along, across, z)

    drop = over * (ridge - eaves) / b
    for s in (-1, 1):
        slope = [
            at(-a - over, s * (b + over), eaves - drop),
            at(a + over, s * (b + over), eaves - drop),
            at(a + over, 0, ridge),
            at(-a - over, 0, ridge),
        ]
        body.face(slope if s < 0 else slope[::-1], roof, Material.ROOF)
        body.face(slope[::-1] if s < 0 else slope, tuple(c * 0.6 for c in roof))  # type: ignore[arg-type]
        end = [at(s * a, -s * b, eaves), at(s * a, s * b, eaves), at(s * a, 0, ridge)]
        body.face(end, wall)


def wall(length_m: float, height_m: float, color: Color) -> Body:
    """A garden wall or fence along x."""
    body = Body()
    body.box((0, 0, height_m / 2 - 0.2), (length_m, 0.22, height_m + 0.4), color)
    return body


def shelter() -> Body:
    """A bus shelter open toward -y."""
    body = Body()
    metal, glass = (0.28, 0.30, 0.32), (0.55, 0.65, 0.68)
    body.box((0, 0.65, 1.2), (3.6, 0.06, 2.1), glass, Material.GLASS, open_bottom=False)
    for x in (-1.8, 1.8):
        body.box((x, 0.1, 1.25), (0.08, 1.2, 2.5), metal)
    body.box((0, 0, 2.52), (4.0, 1.6, 0.12), metal, open_bottom=False)
    body.box((0, 0.4, 0.45), (2.4, 0.4, 0.08), (0.5, 0.36, 0.22), open_bottom=False)
    return body
