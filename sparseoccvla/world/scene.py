"""A scene: everything that exists, before anything moves."""

from __future__ import annotations

from dataclasses import dataclass

from sparseoccvla.contracts import Command
from sparseoccvla.world.curves import Path
from sparseoccvla.world.ground import Ground, make_relief
from sparseoccvla.world.network import Network, make_network
from sparseoccvla.world.populate import Plot, parked, paved_patches, scenery
from sparseoccvla.world.style import City, Sky, city_named, make_sky
from sparseoccvla.world.things import Thing
from sparseoccvla.world.traffic import Plan, make_traffic

EGO_LENGTH_M = 4.084
EGO_WIDTH_M = 1.85
EGO_HEIGHT_M = 1.56
WHEELBASE_M = 2.588
EGO_CENTER_M = 1.38  # the box's center ahead of the rear axle


@dataclass(frozen=True, eq=False)
class Scene:
    """Built by `Scene.make`; immutable, and the same for the same arguments."""

    seed: int
    city: City
    sky: Sky
    network: Network
    ground: Ground
    route: Path
    route_command: Command  # what the route does at the junction
    standing: tuple[Thing, ...]
    agents: tuple[Thing, ...]  # that move, or may
    plans: tuple[Plan, ...]  # of the agents

    @classmethod
    def make(
        cls,
        seed: int,
        city: str = "rightville",
        *,
        weather: str | None = None,
        hour: str | None = None,
        colors: int | None = None,
    ) -> Scene:
        """The scene of a seed.

        Args:
            seed: of everything.
            city: rightville or leftville.
            weather: one of `style.WEATHERS` instead of the drawn one.
            hour: one of `style.HOURS` instead of the drawn one.
            colors: another seed for all paint; shapes, places and motion stay.

        Raises:
            InputError: no such city, weather or hour.
        """
        town = city_named(city)
        palette = seed if colors is None else colors
        network, route, command = make_network(seed, leftville=town.side > 0)
        patches = paved_patches(seed, network)
        ground = Ground.make(network, make_relief(seed, town.hilly), patches)
        plot = Plot(ground)
        standing = parked(seed, palette, ground, plot)
        standing += scenery(seed, palette, town, ground, plot)
        agents, plans = make_traffic(seed, palette, network)
        sky = make_sky(seed, weather, hour)
        return cls(
            seed, town, sky, network, ground, route, command, tuple(standing), tuple(agents), tuple(plans)
        )
