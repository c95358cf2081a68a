"""What is said about a keyframe, in the layout of OmniDrive-nuScenes and true by construction.

    view = look_around(scene, drive, stamp_ns, images)     # images of the six cameras, cam_front first
    said = keyframe_language(view, stream(seed, "language", number), split="train")
    said.files()                                           # {"desc": ..., "conv": ..., ...} for json.dump

docs/language.md defines the terms: what is "ahead", "near" or "moving", and what is asked at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparseoccvla.contracts import NS_PER_S
from sparseoccvla.world.language_closed import (
    COLOR_PIXELS,
    PAINTED,
    PRESENT,
    Fact,
    choose,
    closed_facts,
    nearest,
    speed_word,
)
from sparseoccvla.world.language_view import (
    PLACES,
    Cause,
    KeyframeView,
    SeenThing,
    WhatIf,
    look_around,
)
from sparseoccvla.world.language_words import CLOSED, OPEN, Wordings, a, join, plural, sentence

__all__ = ["KeyframeLanguage", "KeyframeView", "Question", "keyframe_language", "look_around"]

_MOST_DESCRIBED = 5
_TURN_DEG = 15.0
_JUNCTION_NEAR_M = 35.0
_CUT_IN_S = 3.0  # how long a vehicle that cuts in takes to
_WEATHER = {
    "clear": "the sky is clear",
    "cloudy": "there are clouds",
    "overcast": "the sky is gray",
    "rain": "it rains",
    "fog": "there is fog",
}
_HOUR = {"morning": "in the morning", "noon": "at noon", "evening": "in the evening", "night": "at night"}
_TOWN = {
    "rightville": "tall buildings stand beside the road",
    "leftville": "low houses stand beside the road",
}
_NUMBERS = {1: "one lane", 2: "two lanes"}


@dataclass(frozen=True)
class Question:
    """A question with its answer; a closed one names its type."""

    question: str
    answer: str
    type: str = ""
    held_out: bool = False  # in words that training never sees

    def as_json(self) -> dict[str, Any]:
        result: dict[str, Any] = {"question": self.question, "answer": self.answer}
        if self.type:
            result["type"] = self.type
        if self.held_out:
            result["held_out"] = True
        return result


@dataclass(frozen=True)
class KeyframeLanguage:
    """Everything said about one keyframe."""

    description: str
    action: str
    keywords: str
    conv: tuple[Question, ...]  # what there is
    vqa: tuple[Question, ...]  # attention, action, what-if; then the closed questions

    def files(self) -> dict[str, Any]:
        """What the file of each kind holds."""
        return {
            "desc": {"description": self.description, "action": self.action},
            "conv": [question.as_json() for question in self.conv],
            "vqa": [question.as_json() for question in self.vqa],
            "keywords": self.keywords,
        }


def keyframe_language(view: KeyframeView, rng: np.random.Generator, split: str = "train") -> KeyframeLanguage:
    """The texts of a keyframe: the same for the same view, generator state and split ("train" or "val")."""
    closed = [_closed(fact, split, rng) for fact in choose(closed_facts(view), view.city, rng)]
    action = _action(view)
    return KeyframeLanguage(
        description=" ".join(_description(view)),
        action=action,
        keywords=_keywords(view),
        conv=tuple(_conversation(view, split, rng)),
        vqa=(*_judgment(view, action, split, rng), *closed),
    )


def _closed(fact: Fact, split: str, rng: np.random.Generator) -> Question:
    place = f"to the {fact.place}" if fact.form == "ground" else fact.place
    text, held_out = CLOSED[fact.form].draw(split, rng)
    question = text.format(
        kind=fact.kind,
        a_kind=a(fact.kind) if fact.kind else "",
        kinds=plural(fact.kind),
        place=place,
        Place=place.capitalize(),
        meters=fact.distance_m,
    )
    return Question(question, fact.answer, fact.type, held_out)


# --- things -----------------------------------------------------------------------------------------------


def _meters(distance_m: float) -> int:
    """To 5 m."""
    return max(5, 5 * round(distance_m / 5))


def _name(view: KeyframeView, thing: SeenThing) -> str:
    """Such as "a red car"."""
    shown = thing.kind in PAINTED and thing.pixels >= COLOR_PIXELS and view.hour != "night"
    return a(f"{thing.color} {thing.kind}" if shown else thing.kind)


def _at(thing: SeenThing) -> str:
    """Such as "ahead, 15 meters away"."""
    return f"{thing.place}, {_meters(thing.distance_m)} meters away"


def _plain(view: KeyframeView) -> list[SeenThing]:
    """What may be spoken of, nearest first."""
    return [thing for thing in view.things if thing.plain and thing.place]


# --- the texts --------------------------------------------------------------------------------------------


def _description(view: KeyframeView) -> Iterator[str]:
    yield _weather(view)
    yield sentence(_TOWN[view.city])
    yield sentence(f"traffic drives on the {'left' if view.leftville else 'right'}")
    yield sentence(f"the road has {_NUMBERS[view.lanes]} in each direction")
    yield from (sentence(fact) for fact in _road_facts(view))
    things = sorted(_plain(view), key=lambda thing: -thing.pixels)[:_MOST_DESCRIBED]
    for thing in sorted(things, key=lambda thing: thing.distance_m):
        doing = {True: "moving", False: "standing", None: ""}[thing.moving]
        yield sentence(f"there is {_name(view, thing)} {_at(thing)}{f', {doing}' if doing else ''}")


def _weather(view: KeyframeView) -> str:
    return sentence(f"{_HOUR[view.hour]}, {_WEATHER[view.weather]}")


def _road_facts(view: KeyframeView) -> Iterator[str]:
    if view.junction_m == 0:
        yield "the ego car is in a junction"
    elif view.junction_m is not None and view.junction_m < _JUNCTION_NEAR_M:
        yield f"there is a junction {_meters(view.junction_m)} meters ahead"
    elif view.straight_on is not None:
        yield "the road goes straight on" if view.straight_on else "the road does not go straight on"


def _keywords(view: KeyframeView) -> str:
    return ", ".join(_doing(view))


def _doing(view: KeyframeView) -> list[str]:
    """What the ego does about its speed and its direction; of what can't be said nothing."""
    speed = speed_word(view)
    parts = [speed] if speed else []
    if speed != "wait" and view.turned_deg is not None:
        if abs(view.turned_deg) > _TURN_DEG:
            parts.append("turn left" if view.turned_deg > 0 else "turn right")
        elif speed != "stop":
            parts.append("go straight on")
    return parts


_THIRD = {
    "keep speed": "keeps its speed",
    "slow down": "slows down",
    "speed up": "speeds up",
    "stop": "stops",
    "wait": "waits",
    "drive off": "drives off",
    "go straight on": "goes straight on",
    "turn left": "turns left",
    "turn right": "turns right",
}


def _action(view: KeyframeView) -> str:
    doing = [_THIRD[part] for part in _doing(view)]
    return sentence(f"the ego car {join(doing)}{_reason(view)}") if doing else "The drive ends here."


def _reason(view: KeyframeView) -> str:
    """Why the ego slows, stops or waits: an event in sight, else the junction."""
    if speed_word(view) not in ("slow down", "stop", "wait"):
        return ""
    if view.causes:
        thing = view.causes[0].thing
        return f" because of {_name(view, thing)} {thing.place}".rstrip()
    if view.junction_m is not None and view.junction_m < _JUNCTION_NEAR_M:
        return " at the junction"
    return ""


def _conversation(view: KeyframeView, split: str, rng: np.random.Generator) -> Iterator[Question]:
    place = PLACES[int(rng.integers(len(PLACES)))]
    seen = [thing for thing in _plain(view) if thing.place == place][:3]
    if seen:
        things = join([f"{_name(view, thing)} {_meters(thing.distance_m)} meters away" for thing in seen])
        yield _question(OPEN["look"], sentence(f"there is {things}"), split, rng, place=place)
    elif not any(view.within(kind, place) for kind in PRESENT):
        yield _question(OPEN["look"], "There is nothing near.", split, rng, place=place)
    surely = [thing for kind in PRESENT if (thing := nearest(view, kind)) is not None and thing.place]
    if surely:
        thing = surely[int(rng.integers(len(surely)))]
        yield _question(OPEN["where"], sentence(f"it is {_at(thing)}"), split, rng, kind=thing.kind)
    yield _question(OPEN["weather"], _weather(view), split, rng)


def _judgment(view: KeyframeView, action: str, split: str, rng: np.random.Generator) -> Iterator[Question]:
    yield _question(OPEN["attention"], sentence(_attention(view)), split, rng)
    yield _question(OPEN["action"], action, split, rng)
    told = [what for what in view.what_if if what.leaves_road or what.hits is not None]
    for index in rng.permutation(len(told))[:2]:
        what = told[int(index)]
        wordings = OPEN[f"what_if_{what.maneuver}"]
        yield _question(wordings, sentence(_outcome(view, what)), split, rng)


def _attention(view: KeyframeView) -> str:
    if view.causes:
        cause = view.causes[0]
        return f"{_name(view, cause.thing)} {_at(cause.thing)}, because {_why(view, cause)}"
    ahead = [thing for thing in _plain(view) if thing.place == "ahead"]
    if ahead:
        return f"{_name(view, ahead[0])} {_at(ahead[0])}, because it is the nearest thing to see ahead"
    return "nothing, because there is nothing to see ahead"


def _why(view: KeyframeView, cause: Cause) -> str:
    """What makes the thing of an event one to watch, true at t0."""
    cutting_in = view.t0_ns < cause.event.onset_ns + round(_CUT_IN_S * NS_PER_S)
    match cause.event.kind:
        case "construction":
            return "part of the road is closed there"
        case "pedestrian":
            return "it walks into the road" if cause.speed_mps > 0.3 else "it may walk into the road"
        case "crossing":
            return "it crosses the way"
        case "cut_in" if cutting_in:
            return "it moves into the lane"
    if cause.speed_mps < 0.2:
        return "it stands in the way"
    return "it brakes" if cause.braking else "it is in the way"


def _outcome(view: KeyframeView, what: WhatIf) -> str:
    if what.leaves_road:
        return "it would leave the road"
    return (
        f"it would hit {_name(view, what.thing)}" if what.thing else "nothing would happen, the way is free"
    )


def _question(
    wordings: Wordings, answer: str, split: str, rng: np.random.Generator, **words: str
) -> Question:
    text, held_out = wordings.draw(split, rng)
    return Question(text.format(**words), answer, held_out=held_out)
