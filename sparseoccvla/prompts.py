"""What a language model is asked, as text. No torch, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Vicuna v1.5 was trained with exactly this sentence and these separators.
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
PLANNING_QUESTION = (
    "Assign a score to each trajectory anchor, given what you observe and how you judge the situation."
)
DESCRIPTION_QUESTION = "Describe the driving scene."  # data sets with descriptions name no question


@dataclass(frozen=True)
class Turn:
    """One question with its answer; an open question has none."""

    question: str
    answer: str | None = None


def vicuna_prompt(turns: Sequence[Turn]) -> str:
    """A Vicuna v1.5 conversation; an open last question ends with "ASSISTANT:"."""
    text = _VICUNA_SYSTEM + " "
    for turn in turns:
        text += f"USER: {turn.question} ASSISTANT:"
        if turn.answer is not None:
            text += f" {turn.answer}</s>"
    return text


def plain_prompt(turns: Sequence[Turn]) -> str:
    """A short form for a language model trained here: "Q: ... A: ..." with an end mark."""
    text = ""
    for turn in turns:
        text += f"Q: {turn.question} A:"
        if turn.answer is not None:
            text += f" {turn.answer}</s>"
    return text


def prompt(style: str, turns: Sequence[Turn]) -> str:
    """The conversation in the "vicuna" or "plain" style."""
    match style:
        case "vicuna":
            return vicuna_prompt(turns)
        case "plain":
            return plain_prompt(turns)
    raise ValueError(f"prompt style is {style!r}, wanted vicuna or plain")
