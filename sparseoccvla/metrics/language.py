"""BLEU, ROUGE-L, CIDEr and METEOR of answers, and accuracy of closed questions.

The OmniDrive line of papers (HERMES, SparseOccVLA) scores raw strings split at spaces (`raw`); caption
papers tokenize first (`ptb`). The two do not compare. BLEU and ROUGE-L are pycocoevalcap's, METEOR is
nltk's; CIDEr equals pycocoevalcap's (`cider.py`). All depend on the whole corpus: name it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sparseoccvla.errors import InputError
from sparseoccvla.metrics.additive import STATE, Additive, UnscorableError, zeros
from sparseoccvla.metrics.cider import cider
from sparseoccvla.metrics.ptb import ptb_tokens

SCORES = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")


class Tokens(StrEnum):
    """How a sentence becomes tokens: split at white space, or as `ptb.ptb_tokens` does."""

    RAW = "raw"
    PTB = "ptb"


class MeteorUnavailableError(InputError):
    """nltk's data are not there; the text says which and how to get them."""


@dataclass
class LanguageMetric:
    """Answers with their references; figures are computed over all of them at once."""

    tokens: Tokens = Tokens.RAW
    predictions: list[str] = field(default_factory=list)
    references: list[tuple[str, ...]] = field(default_factory=list)

    def update(self, prediction: str, references: Sequence[str]) -> None:
        """Add one answer.

        Raises:
            UnscorableError: not text, empty, or without a reference.
        """
        for name, text in (("the prediction", prediction), *(("a reference", r) for r in references)):
            if not isinstance(text, str):
                raise UnscorableError(f"{name} is a {type(text).__name__}, wanted text")
            if not text.strip():
                raise UnscorableError(f"{name} is empty")
        if not references:
            raise UnscorableError("there is no reference")
        self.predictions.append(prediction)
        self.references.append(tuple(references))

    def merge(self, other: Self, times: int = 1) -> None:
        """Add another metric's answers, `times` over."""
        if self.tokens is not other.tokens:
            raise ValueError(
                f"cannot add answers in {other.tokens} tokens to answers in {self.tokens} tokens"
            )
        self.predictions += other.predictions * times
        self.references += other.references * times

    def empty(self) -> Self:
        return type(self)(self.tokens)

    def result(self) -> dict[str, Any]:
        """`SCORES` of the corpus. CIDEr is 0 to 10, the rest 0 to 1."""
        return self.scores()[0]

    def scores(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """`SCORES` of the corpus and of each answer (CIDEr with the corpus's document frequencies).

        Raises:
            ValueError: there is no answer.
        """
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test
        from pycocoevalcap.rouge.rouge import Rouge

        if not self.predictions:
            raise ValueError("no answer to score")
        guesses = [self._tokenized(p) for p in self.predictions]
        truths = [[self._tokenized(r) for r in group] for group in self.references]
        # Only what is compared is kept: the scorer's own way in keeps every reference's n-grams.
        scorer = BleuScorer(n=4)
        scorer.ctest = [cook_test(g, cook_refs(t)) for g, t in zip(guesses, truths, strict=True)]
        corpus_bleu, item_bleu = scorer.compute_score(option="closest")
        rouge = Rouge()
        item_rouge = np.array([rouge.calc_score([g], t) for g, t in zip(guesses, truths, strict=True)])
        item_cider = cider([g.split() for g in guesses], [[r.split() for r in t] for t in truths])
        columns = [*np.asarray(item_bleu), item_rouge, item_cider]
        corpus = [*corpus_bleu, item_rouge.mean(), item_cider.mean()]
        return (
            {name: float(value) for name, value in zip(SCORES, corpus, strict=True)},
            [dict(zip(SCORES, map(float, row), strict=True)) for row in zip(*columns, strict=True)],
        )

    def _tokenized(self, text: str) -> str:
        # Raw: HERMES passes strings as they are; line breaks are white space to BLEU and CIDEr anyhow.
        return " ".join(ptb_tokens(text)) if self.tokens is Tokens.PTB else text

    def meteor(self) -> NDArray[np.float64]:
        """METEOR of each answer by nltk on its own words (not on `tokens`), as HERMES has it.

        Raises:
            MeteorUnavailableError: nltk or its data are missing.
        """
        try:
            from nltk.corpus import wordnet
            from nltk.tokenize import word_tokenize
            from nltk.translate.meteor_score import meteor_score

            wordnet.ensure_loaded()
            word_tokenize("ready")
        except (ImportError, LookupError, OSError) as error:
            raise MeteorUnavailableError(
                "METEOR needs nltk and its data wordnet and punkt_tab: "
                "run python -m nltk.downloader wordnet punkt_tab, or set NLTK_DATA to a folder with them"
            ) from error
        return np.array(
            [
                meteor_score([word_tokenize(r) for r in group], word_tokenize(guess))
                for guess, group in zip(self.predictions, self.references, strict=True)
            ]
        )


@dataclass
class ItemMeans(Additive):
    """Means of per-answer scores, for intervals by scene: the corpus score itself does not add up."""

    names: tuple[str, ...] = SCORES
    sums: NDArray[np.float64] = field(default_factory=zeros(len(SCORES)), metadata=STATE)
    samples: NDArray[np.int64] = field(default_factory=zeros((), np.int64), metadata=STATE)

    def update(self, scores: dict[str, float]) -> None:
        self.sums = self.sums + [scores[name] for name in self.names]
        self.samples = self.samples + 1

    def result(self) -> dict[str, Any]:
        count = int(self.samples)
        return {n: float(s / count) if count else None for n, s in zip(self.names, self.sums, strict=True)}


@dataclass
class ClosedQuestionMetric:
    """Accuracy of questions with one right short answer, by type of question.

    An answer is right if its words equal the reference's; to a reference that is only "yes" or "no", if
    it begins with that word. `majority` is what always giving a type's most frequent answer would score.
    """

    right: Counter[str] = field(default_factory=Counter)
    asked: dict[str, Counter[str]] = field(default_factory=dict)  # type to how often each answer was right

    def update(self, kind: str, prediction: str, reference: str) -> None:
        """Add one answer to a question of a type.

        Raises:
            UnscorableError: not text, or an empty answer or reference.
        """
        if not isinstance(prediction, str) or not isinstance(reference, str):
            raise UnscorableError(
                f"the answer is a {type(prediction).__name__}, the reference a {type(reference).__name__}, "
                "wanted text"
            )
        said, truth = ptb_tokens(prediction), ptb_tokens(reference)
        if not said or not truth:
            raise UnscorableError(f"the {'answer' if not said else 'reference'} is empty")
        if truth in (["yes"], ["no"]):
            said = said[:1]
        self.asked.setdefault(kind, Counter())[" ".join(truth)] += 1
        self.right[kind] += int(said == truth)

    def merge(self, other: Self, times: int = 1) -> None:
        """Add another metric's answers, `times` over."""
        for kind, answers in other.asked.items():
            mine = self.asked.setdefault(kind, Counter())
            for answer, count in answers.items():
                mine[answer] += times * count
            self.right[kind] += times * other.right[kind]

    def empty(self) -> Self:
        return type(self)()

    def result(self) -> dict[str, Any]:
        """Accuracy over all, the mean over types, and for each type accuracy, majority and n."""
        types = {
            kind: {
                "accuracy": self.right[kind] / answers.total(),
                "majority": max(answers.values()) / answers.total(),
                "n": answers.total(),
            }
            for kind, answers in sorted(self.asked.items())
        }
        asked = sum(answers.total() for answers in self.asked.values())
        return {
            "accuracy": self.right.total() / asked if asked else None,
            "accuracy_mean_of_types": float(np.mean([t["accuracy"] for t in types.values()]))
            if types
            else None,
            "types": types,
        }
