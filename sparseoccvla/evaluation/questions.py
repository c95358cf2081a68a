"""What is asked about a keyframe."""

from __future__ import annotations

from dataclasses import dataclass

from sparseoccvla.data.omnidrive import Language
from sparseoccvla.prompts import DESCRIPTION_QUESTION

DESCRIPTION = "desc"


@dataclass(frozen=True)
class Question:
    """A question with the data set's answer."""

    kind: str  # `DESCRIPTION`, "conv" or "vqa"
    type: str  # of a closed question, "" for one that is answered by a text
    held_out: bool  # in words that training never sees
    text: str
    reference: str


def questions_about(language: Language) -> list[Question]:
    """Every question that has an answer in the data set, the description's first."""
    questions = []
    if language.description:
        questions.append(Question(DESCRIPTION, "", False, DESCRIPTION_QUESTION, language.description))
    questions += [
        Question(entry.kind, entry.type, entry.held_out, entry.question, entry.answer)
        for entry in language.questions
    ]
    return questions
