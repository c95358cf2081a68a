"""The words of the language: for each question several wordings, the last of which training never sees.

A held-out wording uses no word that the others don't: what it tests is a new order of known words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PLURALS = {"person": "people", "bus": "buses"}


@dataclass(frozen=True)
class Wordings:
    """Ways to ask the same; `{thing}` and the like are filled in."""

    seen: tuple[str, ...]
    held_out: tuple[str, ...]

    def draw(self, split: str, rng: np.random.Generator) -> tuple[str, bool]:
        """A wording and whether it is held out: every other one of split "val" is, of others none."""
        held_out = bool(rng.random() < 0.5) and split == "val"
        choices = self.held_out if held_out else self.seen
        return choices[int(rng.integers(len(choices)))], held_out


def _ways(*seen: str, held_out: Sequence[str]) -> Wordings:
    return Wordings(seen, tuple(held_out))


CLOSED = {
    "presence": _ways(
        "Is there {a_kind} {place}?",
        "Do you see {a_kind} {place}?",
        "Can you see {a_kind} {place}?",
        held_out=["{Place}, is there {a_kind}?", "{Place}, can you see {a_kind}?"],
    ),
    "side": _ways(
        "Is the nearest {kind} on the left or on the right?",
        "On which side is the nearest {kind}, left or right?",
        "Left or right, where is the nearest {kind}?",
        held_out=["The nearest {kind}, is it on the left or on the right side?"],
    ),
    "distance": _ways(
        "Is the nearest {kind} {place} near or far?",
        "Near or far, where is the nearest {kind} {place}?",
        "How far is the nearest {kind} {place}, near or far?",
        held_out=["The nearest {kind} {place}, is it near or far?"],
    ),
    "motion": _ways(
        "Is the nearest {kind} {place} moving or standing?",
        "What does the nearest {kind} {place} do, is it moving or standing?",
        "Moving or standing, what does the nearest {kind} {place} do?",
        held_out=["The nearest {kind} {place}, is it moving or standing?"],
    ),
    "color": _ways(
        "What color is the nearest {kind} {place}?",
        "What is the color of the nearest {kind} {place}?",
        "Which color does the nearest {kind} {place} have?",
        held_out=["The nearest {kind} {place}, what color is it?"],
    ),
    "count": _ways(
        "How many {kinds} are {place}?",
        "How many {kinds} are there {place}?",
        "How many {kinds} do you see {place}?",
        held_out=["{Place}, how many {kinds} can you see?"],
    ),
    "slow_down": _ways(
        "Does the ego car slow down?",
        "Should the ego car slow down now?",
        "Is the ego car to slow down?",
        held_out=["Now, should the ego car slow down?"],
    ),
    "speed_up": _ways(
        "Does the ego car speed up?",
        "Should the ego car speed up now?",
        "Is the ego car to speed up?",
        held_out=["Now, should the ego car speed up?"],
    ),
    "stop": _ways(
        "Does the ego car stop?",
        "Should the ego car stop now?",
        "Is the ego car to stop?",
        held_out=["Now, should the ego car stop?"],
    ),
    "turn_left": _ways(
        "Does the ego car turn left?",
        "Should the ego car turn left now?",
        "Is the ego car to turn left?",
        held_out=["Now, should the ego car turn left?"],
    ),
    "turn_right": _ways(
        "Does the ego car turn right?",
        "Should the ego car turn right now?",
        "Is the ego car to turn right?",
        held_out=["Now, should the ego car turn right?"],
    ),
    "speed": _ways(
        "What does the ego car do about its speed?",
        "What should the ego car do about its speed now?",
        "What is the ego car to do about its speed?",
        held_out=["Now, what should the ego car do about its speed?"],
    ),
    "hazard": _ways(
        "Is there something that the ego car must slow down for?",
        "Do you see something that the ego car must slow down for?",
        "Must the ego car slow down for something?",
        held_out=["Can you see something that the ego car must slow down for?"],
    ),
    "leave_straight": _ways(
        "Would the ego car leave the road if it kept its speed and went straight on?",
        "If the ego car kept its speed and went straight on, would it leave the road?",
        held_out=["Would it leave the road if the ego car went straight on and kept its speed?"],
    ),
    "leave_left": _ways(
        "Would the ego car leave the road if it turned left now?",
        "If the ego car turned left now, would it leave the road?",
        held_out=["If it turned left now, would the ego car leave the road?"],
    ),
    "leave_right": _ways(
        "Would the ego car leave the road if it turned right now?",
        "If the ego car turned right now, would it leave the road?",
        held_out=["If it turned right now, would the ego car leave the road?"],
    ),
    "hit_straight": _ways(
        "Would the ego car hit something if it kept its speed and went straight on?",
        "If the ego car kept its speed and went straight on, would it hit something?",
        held_out=["Would it hit something if the ego car went straight on and kept its speed?"],
    ),
    "hit_left": _ways(
        "Would the ego car hit something if it turned left now?",
        "If the ego car turned left now, would it hit something?",
        held_out=["If it turned left now, would the ego car hit something?"],
    ),
    "hit_right": _ways(
        "Would the ego car hit something if it turned right now?",
        "If the ego car turned right now, would it hit something?",
        held_out=["If it turned right now, would the ego car hit something?"],
    ),
    "straight_on": _ways(
        "Does the road go straight on for 30 meters?",
        "Is the road straight for 30 meters?",
        "For 30 meters, does the road go straight on?",
        held_out=["For 30 meters, is the road straight?"],
    ),
    "way_left": _ways(
        "Does a road lead off to the left?",
        "Is there a road that leads off to the left?",
        "Do you see a road that leads off to the left?",
        held_out=["Can you see a road that leads off to the left?"],
    ),
    "way_right": _ways(
        "Does a road lead off to the right?",
        "Is there a road that leads off to the right?",
        "Do you see a road that leads off to the right?",
        held_out=["Can you see a road that leads off to the right?"],
    ),
    "ground": _ways(
        "What is the ground {meters} meters {place}?",
        "{meters} meters {place}, what is the ground?",
        "What is there on the ground {meters} meters {place}?",
        held_out=["What ground do you see {meters} meters {place}?"],
    ),
}

OPEN = {
    "look": _ways(
        "What is {place}?",
        "What do you see {place}?",
        "What is there {place}?",
        held_out=["What can you see {place}?"],
    ),
    "where": _ways(
        "Where is the nearest {kind}?",
        "How far is the nearest {kind}, and on which side is it?",
        held_out=["The nearest {kind}, where is it?"],
    ),
    "weather": _ways(
        "What is the weather?",
        "What is the weather and what time of day is it?",
        held_out=["What time of day is it, and what is the weather?"],
    ),
    "attention": _ways(
        "What should the ego car watch and why?",
        "What is there to watch for the ego car, and why?",
        held_out=["Why, and what should the ego car watch?"],
    ),
    "action": _ways(
        "What does the ego car do now and why?",
        "What should the ego car do now, and why?",
        held_out=["What should the ego car do, and why now?"],
    ),
    "what_if_straight": _ways(
        "What would happen if the ego car kept its speed and went straight on?",
        "If the ego car kept its speed and went straight on, what would happen?",
        held_out=["What would happen if the ego car went straight on and kept its speed?"],
    ),
    "what_if_left": _ways(
        "What would happen if the ego car turned left now?",
        "If the ego car turned left now, what would happen?",
        held_out=["If it turned left now, what would happen to the ego car?"],
    ),
    "what_if_right": _ways(
        "What would happen if the ego car turned right now?",
        "If the ego car turned right now, what would happen?",
        held_out=["If it turned right now, what would happen to the ego car?"],
    ),
}


def a(words: str) -> str:
    """With the indefinite article."""
    return f"{'an' if words[0] in 'aeio' else 'a'} {words}"


def plural(kind: str) -> str:
    return PLURALS.get(kind, f"{kind}s")


def sentence(words: str) -> str:
    """With a capital letter and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def join(parts: Sequence[str]) -> str:
    """One, two and three as "one, two and three"."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)
