"""LIDAR_TOP by ray casting: 32 beams that turn on the roof, and the panorama that says what they can reach.

A beam's rays lie in a cone, so a picture's rows and columns don't fit them. But the rays of one azimuth lie
in a plane, along which each edge of a face is a bound on the tangent of the elevation: a face is hit by one
run of beams. Each ray meets the exact face, as in `caster`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparseoccvla.world.cameras import LIDAR_POSITION_M, looking
from sparseoccvla.world.caster import NOTHING, Lens, cross, unroll
from sparseoccvla.world.drive import Drive
from sparseoccvla.world.ground import DRIVEABLE, Ground, classify, sample_fields
from sparseoccvla.world.shapes import Material
from sparseoccvla.world.stage import Faces, Stage

RATE_HZ = 20
BEAMS = 32
ELEVATIONS_DEG = (-30.67, 10.67)  # of the lowest and the highest beam
RANGE_M = 100.0
_FAR_M = RANGE_M + 20.0  # of the centers of faces, which may be long
AZIMUTHS = 1080  # rays of each beam in a turn
# Directions between two beams that see but give no points: what is between beams is in sight, too.
_BETWEEN = 3
_QUARTERS = 4  # of a turn; in each, the rays of one direction are a column of a picture 90 degrees wide
# The share of near infrared that comes back from driveable surface, other flat, sidewalk and terrain.
_GROUND_REFLECTANCE = (0.08, 0.20, 0.30, 0.40)


def _base_from_lidar() -> NDArray[np.float64]:
    matrix = np.eye(4)
    matrix[:2, :2] = [[0, 1], [-1, 0]]
    matrix[:3, 3] = LIDAR_POSITION_M
    return matrix


# The sensor's frame is that of nuScenes: x right, y forward, z up.
BASE_FROM_LIDAR = _base_from_lidar()


@dataclass(frozen=True)
class Panorama:
    """The first surface in every direction around the lidar, at one time."""

    # (azimuths + 1, elevations) 1/m along the plane of base_link, 0 where nothing is. Rows turn to the right
    # from 45 degrees to the left, and the first comes once more at the end.
    inverse_reach: Tensor
    points: NDArray[np.float32]  # (N, 5) x, y, z [m] in the sensor's frame, intensity 0-255, ring from below


class Lidar:
    """The lidar of one scene."""

    def __init__(self, ground: Ground, stage: Stage, azimuths: int = AZIMUTHS):
        """`stage` says on which device; `azimuths` are the rays of each beam in a turn, a multiple of 4."""
        self._stage = stage
        device = stage.device
        self.elevations = (BEAMS - 1) * _BETWEEN + 1
        self.azimuths = azimuths
        self._elevation_rad = torch.deg2rad(torch.linspace(*ELEVATIONS_DEG, self.elevations, device=device))
        self._step_rad = 2 * np.pi / azimuths
        self.rays_per_rad = float(1 / (self._elevation_rad[1] - self._elevation_rad[0]))
        # Of a quarter, from its left to its right.
        self._azimuth_rad = (
            np.pi / 4 - (torch.arange(azimuths // _QUARTERS, device=device) + 0.5) * self._step_rad
        )
        self._origin_m = ground.origin_m
        self._fields = torch.from_numpy(ground.fields).to(device)
        self._reflectance = torch.tensor(_GROUND_REFLECTANCE, device=device)
        # A picture that holds a quarter, for choosing faces.
        focal = azimuths / 2 / np.pi
        up, down = (float(torch.tan(self._elevation_rad[end])) * 2**0.5 * focal for end in (-1, 0))
        self._lens = Lens(focal, focal, focal, up, round(2 * focal), round(up - down))

    def turn(self, drive: Drive, stamp_ns: int) -> Panorama:
        """One whole turn, as if in an instant."""
        moving = self._stage.moving(drive.look_at(stamp_ns))
        inverse, points = [], []
        for quarter in range(_QUARTERS):
            heading = -quarter * np.pi / 2
            pose = torch.from_numpy(drive.world_from_base(stamp_ns) @ looking(LIDAR_POSITION_M, heading))
            pose = pose.float().to(self._stage.device)
            faces, corners = self._stage.in_view(pose, self._lens, moving, _FAR_M)
            face, reach = self._cast(corners)
            inverse.append(reach)
            points.append(self._points(face, reach, faces, pose, heading))
        return Panorama(torch.cat([*inverse, inverse[0][:1]]), torch.cat(points).cpu().numpy())

    def directions(self, points_m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where points (3, N) of base_link appear in a panorama.

        Returns:
            Indices of the points between the lowest and the highest beam; of each its column (elevation) and
            row (azimuth), with fractions, and its reach.
        """
        x, y, z = (points_m[k] - LIDAR_POSITION_M[k] for k in range(3))
        reach = torch.hypot(x, y)
        low, high = (float(torch.tan(self._elevation_rad[end])) for end in (0, -1))
        index = ((z > low * reach) & (z < high * reach)).nonzero()[:, 0]
        x, y, z, reach = (value.index_select(0, index) for value in (x, y, z, reach))
        first, step = self._elevation_rad[0], self._elevation_rad[1] - self._elevation_rad[0]
        column = (torch.atan2(z, reach) - first) / step
        row = torch.remainder((np.pi / 4 - torch.atan2(y, x)) / self._step_rad - 0.5, self.azimuths)
        return index, column, row, reach

    def _cast(self, corners_m: Tensor) -> tuple[Tensor, Tensor]:
        """First face and inverse reach (columns, elevations) of the rays of a quarter."""
        sine, cosine = torch.sin(self._azimuth_rad), torch.cos(self._azimuth_rad)
        tangent = torch.tan(self._elevation_rad)
        normal = cross(corners_m[:, 1] - corners_m[:, 0], corners_m[:, 2] - corners_m[:, 0])
        toward = -(normal * corners_m[:, 0]).sum(dim=-1)  # positive: seen from its visible side
        scale = normal.abs().sum(dim=-1) * corners_m[:, 0].abs().sum(dim=-1)
        number = (toward > 1e-6 * scale).nonzero()[:, 0]
        corners = corners_m[number]
        column, which = self._columns(corners)
        # Edges and planes as forms of (sine to the left, tangent upward, cosine): not negative inside, and
        # inverse reach. A camera's x is to the right and its y down.
        edges = cross(corners.roll(-1, dims=1), corners)
        planes = -normal[number] / toward[number, None]
        s, c = sine[column], cosine[column]
        low = torch.full_like(s, -1e9)
        high = torch.full_like(s, 1e9)
        for edge in range(4):
            x, y, z = (edges[:, edge, k].contiguous().index_select(0, which) for k in range(3))
            rest = z * c - x * s
            bound = rest / y  # inside: rest - y * tangent >= 0
            high = torch.where(y > 0, torch.minimum(high, bound), high)
            low = torch.where(y < 0, torch.maximum(low, bound), low)
            high = torch.where((y == 0) & (rest < 0), -1e9, high)
        first = torch.searchsorted(tangent, low)
        last = torch.searchsorted(tangent, high, right=True) - 1
        run = (last >= first).nonzero()[:, 0]
        of, step = unroll((last - first + 1)[run])
        which, column = which[run], column[run]
        x, y, z = planes[which].unbind(dim=1)
        beam = first[run].index_select(0, of) + step
        level = (z * c[run] - x * s[run]).index_select(0, of)
        inverse = level - y.index_select(0, of) * tangent.index_select(0, beam)
        key = (inverse.clamp(min=0).view(torch.int32).to(torch.int64) << 32) + number[which].index_select(
            0, of
        )
        best = torch.full((len(sine) * len(tangent),), NOTHING, dtype=torch.int64, device=key.device)
        best.scatter_reduce_(0, column.index_select(0, of) * len(tangent) + beam, key, "amax")
        hit = best >= 0
        nearest = torch.where(hit, best >> 32, 0).to(torch.int32).view(torch.float32)
        shape = (len(sine), len(tangent))
        return torch.where(hit, best & 0xFFFFFFFF, NOTHING).view(shape), nearest.view(shape)

    def _columns(self, corners_m: Tensor) -> tuple[Tensor, Tensor]:
        """All columns a face can touch: (R,) columns and the place of the face of each."""
        x, _, z = corners_m.unbind(dim=-1)
        place = (torch.atan2(x, z) + np.pi / 4) / self._step_rad - 0.5
        count = len(self._azimuth_rad)
        ahead = (z > 1e-3).all(dim=1)
        low = torch.where(ahead, place.amin(dim=1), 0.0).clamp(0, count).floor()
        high = torch.where(ahead, place.amax(dim=1), count - 1.0).clamp(-1, count - 1).ceil()
        lengths = (high - low + 1).clamp(min=0).to(torch.int64)
        which = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        start = lengths.cumsum(0) - lengths
        column = torch.arange(len(which), device=lengths.device) - (start - low.to(torch.int64))[which]
        return column, which

    def _points(
        self, face: Tensor, inverse_reach: Tensor, faces: Faces, world_from_eye: Tensor, heading_rad: float
    ) -> Tensor:
        """What the beams of a quarter bring, column by column."""
        face, inverse_reach = face[:, ::_BETWEEN], inverse_reach[:, ::_BETWEEN]
        near = torch.cos(self._elevation_rad[::_BETWEEN]) / RANGE_M
        column, ring = ((face >= 0) & (inverse_reach > near)).nonzero().unbind(dim=1)
        face, reach = face[column, ring], 1 / inverse_reach[column, ring]
        rise = reach * torch.tan(self._elevation_rad[ring * _BETWEEN])
        left = self._azimuth_rad[column]
        seen = torch.stack([-reach * torch.sin(left), -rise, reach * torch.cos(left)], dim=1)
        world = seen @ world_from_eye[:3, :3].T + world_from_eye[:3, 3]
        ground = sample_fields(self._fields, self._origin_m, world[:, :2])
        reflectance = torch.where(
            faces.material[face] == Material.GROUND,
            self._reflectance[classify(ground).long() - DRIVEABLE],
            faces.albedo[face].mean(dim=1),
        )
        azimuth = left + heading_rad
        return torch.stack(
            [-reach * torch.sin(azimuth), reach * torch.cos(azimuth), rise, 255 * reflectance, ring.float()],
            dim=1,
        )
