"""Closed questions: which are true to ask, and how seldom, so that nobody can guess the answers blind.

A fact that is easy to find is thinned until each answer to the same words comes as often as the rarest one:
a fact is asked with probability least / own, where `own` is how often keyframes offer this answer and `least`
how often they offer the rarest answer to the same question. `tools/language_rates.py` measures the rates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sparseoccvla.world.language_view import HORIZON_S, PLACES, KeyframeView, SeenThing

RATES_FILE = Path(__file__).with_name("language_rates.json")

PRESENT = (
    "car",
    "truck",
    "bus",
    "trailer",
    "excavator",
    "motorcycle",
    "bicycle",
    "person",
    "cone",
    "barrier",
)
COUNTED = ("car", "person", "cone", "barrier", "truck", "bicycle")
PAINTED = ("car", "bus", "trailer")
COUNTS = ("zero", "one", "two", "many")
NEAR_M, FAR_M = 12.0, 18.0
SIDE_M = 2.0
APART_M = 1.5  # how much nearer than the next one the nearest must be
COLOR_PIXELS = 60.0
LEAST_RATE = 0.01  # answers that fewer keyframes offer are not asked for
# Keyframes ask about this many questions of each type.
WANTED = {
    "objects": 3.0, "side": 1.5, "count": 1.5, "color": 1.5, "distance": 1.5, "motion": 1.5,
    "action": 2.0, "speed": 1.0, "what_if": 1.5, "road": 1.5, "ground": 1.5, "hazard": 1.0,
}  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """A closed question that may be asked about a keyframe, with its true answer."""

    type: str
    form: str  # which of the wordings in `language_words.CLOSED`
    answer: str
    kind: str = ""
    place: str = ""
    distance_m: int = 0

    @property
    def slot(self) -> str:
        """What a blind guesser sees of it."""
        parts = (self.form, self.kind, self.place, str(self.distance_m or ""))
        return "|".join(part for part in parts if part)


def closed_facts(view: KeyframeView) -> list[Fact]:
    """Everything that may be asked, always in the same order."""
    return [
        *_objects(view),
        *_nearest(view),
        *_counts(view),
        *_actions(view),
        *_hazard(view),
        *_what_ifs(view),
        *_road(view),
    ]


def choose(facts: list[Fact], city: str, rng: np.random.Generator) -> list[Fact]:
    """The facts that are asked: each by its own throw, so that answers are balanced over many keyframes."""
    chances = _chances(city)
    throws = rng.random(len(facts))
    return [
        fact
        for fact, throw in zip(facts, throws, strict=True)
        if throw < chances.get((fact.type, fact.slot, fact.answer), 0.0)
    ]


@cache
def _chances(city: str) -> dict[tuple[str, str, str], float]:
    """Probability with which a fact of (type, slot, answer) is asked; what is not listed never is."""
    rates = json.loads(RATES_FILE.read_bytes())["rates"][city]
    chances: dict[tuple[str, str, str], float] = {}
    for kind, all_slots in rates.items():
        # A very rare answer would silence the others to the same question.
        common = {
            s: {a: r for a, r in answers.items() if r >= LEAST_RATE} for s, answers in all_slots.items()
        }
        slots = {slot: answers for slot, answers in common.items() if len(answers) > 1}
        expected = sum(len(answers) * min(answers.values()) for answers in slots.values())
        gain = min(1.0, WANTED[kind] / expected)
        for slot, answers in slots.items():
            least = min(answers.values())
            for answer, rate in answers.items():
                chances[kind, slot, answer] = gain * least / rate
    return chances


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _objects(view: KeyframeView) -> Iterator[Fact]:
    for kind in PRESENT:
        for place in PLACES:
            nearby = view.within(kind, place)
            if not nearby:
                yield Fact("objects", "presence", "no", kind, place)
            elif any(thing.plain and thing.place == place for thing in nearby):
                yield Fact("objects", "presence", "yes", kind, place)


def nearest(view: KeyframeView, kind: str, place: str = "") -> SeenThing | None:
    """The nearest thing of a kind, if it is in plain sight and surely the nearest."""
    nearby = view.within(kind, place)
    if not nearby or not nearby[0].plain or (place and nearby[0].place != place):
        return None
    if len(nearby) > 1 and nearby[1].distance_m - nearby[0].distance_m < APART_M:
        return None
    return nearby[0]


def _nearest(view: KeyframeView) -> Iterator[Fact]:
    for kind in PRESENT:
        thing = nearest(view, kind)
        if thing is not None and abs(thing.y_m) >= SIDE_M:
            yield Fact("side", "side", "left" if thing.y_m > 0 else "right", kind)
        for place in PLACES:
            thing = nearest(view, kind, place)
            if thing is None:
                continue
            if not NEAR_M < thing.distance_m < FAR_M:
                yield Fact(
                    "distance", "distance", "near" if thing.distance_m <= NEAR_M else "far", kind, place
                )
            if thing.moving is not None:
                yield Fact("motion", "motion", "moving" if thing.moving else "standing", kind, place)
            if kind in PAINTED and thing.pixels >= COLOR_PIXELS and view.hour != "night":
                yield Fact("color", "color", thing.color, kind, place)


def _counts(view: KeyframeView) -> Iterator[Fact]:
    """Only where each one is either in plain sight or surely elsewhere."""
    for kind in COUNTED:
        for place in PLACES:
            nearby = view.within(kind, place)
            if all(thing.plain and thing.place == place for thing in nearby):
                yield Fact("count", "count", COUNTS[min(len(nearby), 3)], kind, place)


def _actions(view: KeyframeView) -> Iterator[Fact]:
    """What the expert does; margins keep apart what is asked."""
    if view.turned_deg is None:
        return
    now, soon, least = view.speeds_mps[0], view.speeds_mps[20], view.speeds_mps.min()
    change = soon - now
    if now > 1.0 and (change < -1.5 or change > -0.5):
        yield Fact("action", "slow_down", _yes(change < -1.5))
    if change > 1.5 or change < 0.5:
        yield Fact("action", "speed_up", _yes(change > 1.5))
    if now > 1.0 and (least < 0.2 or least > 1.5):
        yield Fact("action", "stop", _yes(least < 0.2))
    for side, turned in (("left", view.turned_deg), ("right", -view.turned_deg)):
        if turned > 20 or turned < 8:
            yield Fact("action", f"turn_{side}", _yes(turned > 20))
    speed = speed_word(view)
    if speed is not None:
        yield Fact("speed", "speed", speed)


def speed_word(view: KeyframeView) -> str | None:
    """What the ego does about its speed in the next seconds; None between two answers."""
    if len(view.speeds_mps) <= round(HORIZON_S * 10):
        return None
    now, soon, least = view.speeds_mps[0], view.speeds_mps[20], view.speeds_mps.min()
    if now < 0.2:
        most = view.speeds_mps[:21].max()
        return "wait" if most < 0.3 else "drive off" if soon > 1.0 else None
    if now < 1.0:
        return None
    if least < 0.2:
        return "stop"
    if least < 1.0:
        return None
    change = soon - now
    if abs(change) < 0.8:
        return "keep speed"
    if abs(change) < 1.5:
        return None
    return "slow down" if change < 0 else "speed up"


def _what_ifs(view: KeyframeView) -> Iterator[Fact]:
    for what in view.what_if:
        if what.leaves_road is not None:
            yield Fact("what_if", f"leave_{what.maneuver}", _yes(what.leaves_road))
        if what.hits is not None:
            yield Fact("what_if", f"hit_{what.maneuver}", _yes(what.hits))


def _hazard(view: KeyframeView) -> Iterator[Fact]:
    if view.hazard is not None:
        yield Fact("hazard", "hazard", _yes(view.hazard))


def _road(view: KeyframeView) -> Iterator[Fact]:
    for form, value in (
        ("straight_on", view.straight_on),
        ("way_left", view.way_left),
        ("way_right", view.way_right),
    ):
        if value is not None:
            yield Fact("road", form, _yes(value))
    for (side, distance_m), word in view.grounds.items():
        yield Fact("ground", "ground", word, place=side, distance_m=distance_m)
