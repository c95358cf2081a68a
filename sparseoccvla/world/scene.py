"""A scene: everything that exists, before anything moves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from sparseoccvla.contracts import Command
from sparseoccvla.errors import InputError
from sparseoccvla.world.curves import Path
from sparseoccvla.world.ground import Ground, make_relief
from sparseoccvla.world.hazards import LEADS, EgoPlan, Hazard, Planner, junction_stations
from sparseoccvla.world.network import BEHIND_M, Layout, Network, make_network
from sparseoccvla.world.plans import Plan
from sparseoccvla.world.populate import Plot, parked, paved_patches, place, scenery
from sparseoccvla.world.seeds import stream
from sparseoccvla.world.stage import Stage
from sparseoccvla.world.style import City, Sky, city_named, make_sky
from sparseoccvla.world.things import Thing
from sparseoccvla.world.traffic import make_traffic

COMMAND_AHEAD_M = 40.0  # a turn is announced this far before the junction


@dataclass(frozen=True, eq=False)
class Scene:
    """Built by `Scene.make`; immutable, and the same for the same arguments."""

    seed: int
    colors: int  # the seed of all paint
    city: City
    sky: Sky
    network: Network
    ground: Ground
    ego: EgoPlan
    route_command: Command  # what the route does at the junction
    standing: tuple[Thing, ...]
    traffic: tuple[tuple[Thing, Plan], ...]  # everyday agents
    hazards: tuple[Hazard, ...]  # that take part
    possible_hazards: tuple[str, ...]  # names for `make(add=...)`

    @classmethod
    def make(
        cls,
        seed: int,
        city: str = "rightville",
        *,
        weather: str | None = None,
        hour: str | None = None,
        colors: int | None = None,
        remove: Iterable[str] = (),
        add: Iterable[str] = (),
    ) -> Scene:
        """The scene of a seed.

        Args:
            seed: of everything, at least 0.
            city: rightville or leftville.
            weather: one of `style.WEATHERS` instead of the drawn one.
            hour: one of `style.HOURS` instead of the drawn one.
            colors: another seed for all paint; shapes, places and motion stay.
            remove: names of hazards to leave out; all else stays.
            add: names of hazards to put in; all else stays.

        Raises:
            InputError: no such city, weather, hour or hazard.
        """
        if seed < 0:
            raise InputError(f"seed is {seed}, wanted 0 or more")
        town = city_named(city)
        palette = seed if colors is None else colors
        sky = make_sky(seed, weather, hour)
        network, route, command = make_network(seed, leftville=town.side > 0)
        rng = stream(seed, "ego")
        limit = float(rng.uniform(*town.speed_limit_mps))
        ego = EgoPlan(route, BEHIND_M, limit * float(rng.uniform(0.75, 1.0)), limit)
        book = Planner(seed, palette, network, ego, command).book()
        ground = Ground.make(network, make_relief(seed, town.hilly), paved_patches(seed, network))
        plot = Plot(ground)
        for reserve in book.reserves:
            plot.take(reserve.pose, (*reserve.size_m, 1.0))
        standing = []
        for screen, pose in book.screens:
            plot.take(pose, screen.size_m)
            standing.append(place(screen, ground, pose))
        standing += parked(seed, palette, ground, plot)
        standing += scenery(seed, palette, town, ground, plot)
        traffic = zip(*make_traffic(seed, palette, network, ego, command), strict=True)
        hazards = book.choose(seed, remove, add)
        return cls(
            seed, palette, town, sky, network, ground, ego, command, tuple(standing), tuple(traffic),
            hazards, tuple(book.hazards),
        )  # fmt: skip

    def without(self, hazard: str) -> Scene:
        """The same scene with one of its hazards left out."""
        return replace(self, hazards=tuple(h for h in self.hazards if h.name != hazard))

    def calmed(self, hazard: str) -> Scene:
        """The scene in which a hazard does not happen: a lead stays but never brakes, others are left out."""
        leads = [h for h in self.hazards if h.name == hazard and h.kind in LEADS]
        if not leads:
            return self.without(hazard)
        calm = replace(leads[0], plans=tuple(replace(plan, steps=()) for plan in leads[0].plans))
        return replace(self, hazards=tuple(calm if h.name == hazard else h for h in self.hazards))

    @cached_property
    def agents(self) -> tuple[Thing, ...]:
        """Everything that moves or may: hazards first, then everyday traffic."""
        return (*(t for h in self.hazards for t in h.things), *(thing for thing, _ in self.traffic))

    @cached_property
    def plans(self) -> tuple[Plan, ...]:
        """What the agents mean to do. Those on the route keep clear of construction as the ego does."""
        plans = (*(p for h in self.hazards for p in h.plans), *(plan for _, plan in self.traffic))
        return tuple(
            replace(plan, path=self.ego_path) if plan.path is self.ego.route else plan for plan in plans
        )

    @cached_property
    def ego_path(self) -> Path:
        """The route with the shifts that construction zones ask for."""
        route = self.ego.route
        zones = [hazard.zone for hazard in self.hazards if hazard.zone is not None]
        if not zones:
            return route
        stations = np.arange(len(route.points_m)) * route.step_m
        offset = np.sum([zone.offset_m(stations) for zone in zones], axis=0)
        return Path(route.at(stations, offset)[:, :2])

    @cached_property
    def junction_m(self) -> tuple[float, float] | None:
        """First and last station of the route inside the junction."""
        return junction_stations(self.network, self.ego.route)

    @cached_property
    def stage(self) -> Stage:
        """The scene's faces for the caster, on the CPU."""
        return Stage(self.ground, self.standing, self.agents, torch.device("cpu"))

    @property
    def ego_priority(self) -> int:
        """The ego's rank among `Plan.priority` at the junction."""
        if self.network.layout is Layout.TEE_END:
            return 2
        return 5 if self.route_command is Command.STRAIGHT else 3

    def command_at_m(self, station_m: float) -> Command:
        """What the route asks for when the ego's front is at a station."""
        if self.junction_m is None:
            return Command.STRAIGHT
        first, last = self.junction_m
        turning = first - COMMAND_AHEAD_M < station_m < last + 4.0
        return self.route_command if turning else Command.STRAIGHT
