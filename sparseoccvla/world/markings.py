"""Paint on the road, as a function of road coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sparseoccvla.world.ground import Channel
from sparseoccvla.world.network import Network, Road
from sparseoccvla.world.style import City

STEP_M = 0.02
REACH_M = 24.0
LINE_M = 0.13
FAR = 9.0
WHITE_SOLID, WHITE_DASHED, YELLOW_SOLID, YELLOW_DASHED = range(4)
STOP_LINE_M = (5.0, 5.45)  # before the junction
CROSSWALK_M = (0.8, 3.8)


@dataclass(frozen=True)
class Markings:
    """Tables on one device. Lookups are by road number and offset from the centerline."""

    distance: Tensor  # (4, roads, offsets) to the edge of the nearest line of each sort, positive outside
    junction_m: Tensor  # (roads,) station of the junction
    mouth_m: Tensor  # (roads,) half length of the junction, negative where there is none
    curbs_m: Tensor  # (roads, 2) offsets of right and left curb
    side: int
    dash_m: tuple[float, float]  # painted length and period

    @classmethod
    def make(cls, network: Network, city: City, device: torch.device) -> Markings:
        offsets = torch.arange(-REACH_M, REACH_M, STEP_M, device=device)
        # The last row is that of no road.
        tables = torch.full((4, len(network.roads) + 1, len(offsets)), FAR, device=device)
        for number, road in enumerate(network.roads):
            for sort, center in _lines(road, city):
                distance = (offsets - center).abs() - LINE_M / 2
                tables[sort, number] = torch.minimum(tables[sort, number], distance)
        roads = network.roads
        floats = partial(torch.tensor, dtype=torch.float32, device=device)
        return cls(
            tables,
            floats([*(road.junction_m or 0.0 for road in roads), 0.0]),
            floats([*(-1e4 if road.junction_m is None else road.mouth_m for road in roads), 1e4]),
            floats([*([road.profile.right_m, road.profile.left_m] for road in roads), [0.0, 0.0]]),
            network.side,
            (3.0, 9.0) if city.side < 0 else (4.0, 6.0),
        )

    def coverage(self, fields: Tensor, road: Tensor, width_m: Tensor) -> tuple[Tensor, Tensor]:
        """How much of a pixel (N,) is white and yellow paint.

        Args:
            fields: (6, N) ground fields.
            road: (N,) number of the governing road, or the number of roads for none.
            width_m: (N,) size of the pixel on the ground.
        """
        s, d = fields[Channel.STATION], fields[Channel.OFFSET]
        offsets = self.distance.shape[2]
        index = ((d + REACH_M) / STEP_M).to(torch.int64).clamp(0, offsets - 1) + road * offsets
        lines = [table.reshape(-1).index_select(0, index) for table in self.distance]
        signed = s - self.junction_m[road]
        away = signed.abs() - self.mouth_m[road]
        paint, period = self.dash_m
        phase = torch.remainder(s, period)
        dash = (phase - paint / 2).abs() - paint / 2
        outside = 5.0 - away  # lines end at the stop line
        white = torch.maximum(
            torch.minimum(lines[WHITE_SOLID], torch.maximum(lines[WHITE_DASHED], dash)), outside
        )
        yellow = torch.maximum(
            torch.minimum(lines[YELLOW_SOLID], torch.maximum(lines[YELLOW_DASHED], dash)), outside
        )
        white = torch.minimum(white, self._at_junction(road, d, signed, away))
        inside = -fields[Channel.ROAD]
        soft = width_m.clamp(min=0.012)
        return (
            _cover(torch.maximum(white, inside), soft, LINE_M),
            _cover(torch.maximum(yellow, inside), soft, LINE_M),
        )

    def _at_junction(self, road: Tensor, d: Tensor, signed: Tensor, away: Tensor) -> Tensor:
        """Signed distance to crosswalk stripes and stop lines, negative inside."""
        low, high = CROSSWALK_M
        band = (away - (low + high) / 2).abs() - (high - low) / 2
        stripe = (torch.remainder(d, 1.1) - 0.55).abs() - 0.28
        curbs = self.curbs_m[road]
        curb = torch.maximum(curbs[:, 0] + 0.3 - d, d - curbs[:, 1] + 0.3)
        low, high = STOP_LINE_M
        stop = (away - (low + high) / 2).abs() - (high - low) / 2
        # The lanes that lead in: forward ones before the junction, the others behind it.
        incoming = -d * self.side * -torch.sign(signed)
        return torch.maximum(torch.minimum(torch.maximum(band, stripe), torch.maximum(stop, incoming)), curb)


def _cover(distance_m: Tensor, width_m: Tensor, line_m: float) -> Tensor:
    """Share of a pixel inside; lines thinner than a pixel fade instead of flickering."""
    thin = (line_m / width_m).clamp(max=1.0)
    return (0.5 - distance_m / width_m).clamp(0, 1) * thin


def _lines(road: Road, city: City) -> list[tuple[int, float]]:
    """Sort and offset of every line along a road."""
    profile = road.profile
    lanes_m = profile.lanes * profile.lane_width_m
    solid, dashed = (YELLOW_SOLID, YELLOW_DASHED) if city.yellow_center else (WHITE_SOLID, WHITE_DASHED)
    lines: list[tuple[int, float]] = []
    if profile.median_m > 0:
        lines += [(solid, sign * (profile.median_m / 2 + 0.2)) for sign in (-1, 1)]
    elif profile.center_double:
        lines += [(solid, -0.13), (solid, 0.13)]
    else:
        lines += [(dashed, 0.0)]
    for side, parking in ((1, profile.parking_left_m), (-1, profile.parking_right_m)):
        for lane in range(1, profile.lanes):
            lines.append((WHITE_DASHED, side * (profile.median_m / 2 + lane * profile.lane_width_m)))
        edge = side * (profile.median_m / 2 + lanes_m)
        if parking > 0:
            lines.append((WHITE_SOLID if city.yellow_center else WHITE_DASHED, edge))
        elif not city.yellow_center:
            lines += [(YELLOW_SOLID, edge - side * 0.2), (YELLOW_SOLID, edge - side * 0.42)]
        else:
            lines.append((WHITE_SOLID, edge - side * 0.25))
    return lines
