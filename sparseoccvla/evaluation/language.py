"""Answers: texts by BLEU, ROUGE-L and CIDEr, closed questions by accuracy, beside rows without eyes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparseoccvla.data.cache import SampleCache
from sparseoccvla.evaluation.figures import Figures, PerScene, Said, keyframes
from sparseoccvla.evaluation.questions import Question
from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.language import ClosedQuestionMetric, ItemMeans, LanguageMetric, Tokens
from sparseoccvla.metrics.ptb import ptb_tokens

# An empty answer of a model is wrong, not missing: this equals no reference and shares no word with any.
NOTHING = "<nothing>"
MAJORITY = "majority answer"

Blind = Mapping[str, Callable[[Question], str]]  # by row, whoever answers without seeing
Texts = dict[str, PerScene[LanguageMetric]]  # by kind of question
Closed = dict[bool, PerScene[ClosedQuestionMetric]]  # by whether the wording was held out


def score_language(
    cache: SampleCache,
    runs: list[Said],
    count: int,
    blind: Blind,
    tokens: Tokens,
    progress: Callable[[int], None],
) -> Figures:
    """Figures of the keyframes among the first `count` that were asked.

    Args:
        cache: the split.
        runs: what was said; the first is the model as it is.
        count: keyframes.
        blind: by row, whoever answers without seeing.
        tokens: how texts are cut into words.
        progress: called with 1 for each keyframe.
    """
    figures = Figures("language", f"{tokens} tokens; closed questions by their words")
    texts: Texts = {}
    closed: Closed = {held: PerScene(ClosedQuestionMetric) for held in (False, True)}
    for scene, indices, said in keyframes(cache, runs, count):
        for place, index in enumerate(indices):
            rows = {name: predictions[place] for name, predictions in said.items()}
            failed = [row.failure for row in rows.values() if row.failure]
            if failed:
                figures.skip(cache.tokens[index], failed[0])
            for number, asked in enumerate(rows[runs[0].name].answers if not failed else ()):
                answers = {name: row.answers[number].said for name, row in rows.items()}
                answers |= {name: reply(asked.question) for name, reply in blind.items()}
                try:
                    _score(asked.question, answers, scene, texts, closed, tokens)
                    figures.n += 1
                except UnscorableError as error:
                    figures.skip(f"{cache.tokens[index]}: {asked.question.text}", error)
            progress(1)
    figures.require_items()
    for kind, per_scene in texts.items():
        for row in per_scene.rows:
            pooled = per_scene.pooled(row)
            figures.rows.setdefault(row, {})[kind] = {"n": len(pooled.predictions), **pooled.result()}
    for held, answered in closed.items():
        for row in answered.rows:
            name = "closed, held-out wording" if held else "closed"
            figures.rows.setdefault(row, {})[name] = answered.pooled(row).result()
    figures.differences = _differences(runs[0].name, list(blind), texts, closed)
    return figures


def _score(
    question: Question,
    answers: Mapping[str, str],
    scene: str,
    texts: Texts,
    closed: Closed,
    tokens: Tokens,
) -> None:
    """Add one question with the answer of every row, or of none."""
    if not question.reference.strip():
        raise UnscorableError("the reference is empty")
    for row, said in answers.items():
        text = said if ptb_tokens(said) else NOTHING
        if question.type:
            closed[question.held_out].at(row, scene).update(question.type, text, question.reference)
        else:
            per_scene = texts.setdefault(question.kind, PerScene(lambda: LanguageMetric(tokens)))
            per_scene.at(row, scene).update(text, [question.reference])


def _item_means(texts: PerScene[LanguageMetric]) -> PerScene[ItemMeans]:
    """Per-answer scores by scene: corpus scores do not add up, so intervals are of these."""
    means = PerScene(ItemMeans)
    for row in texts.rows:
        _, scores = texts.pooled(row).scores()
        rest = iter(scores)
        for scene, metric in texts.scenes(row).items():
            for _ in metric.predictions:
                means.at(row, scene).update(next(rest))
    return means


def _differences(model: str, blind: Sequence[str], texts: Texts, closed: Closed) -> dict[str, Any]:
    """Model less each blind row: mean scores of texts, and accuracy of each type of question."""
    found: dict[str, Any] = {}
    means = {name: _item(name) for name in ("Bleu_4", "ROUGE_L", "CIDEr")}
    for kind, metrics in texts.items():
        items = _item_means(metrics)
        for base in blind:
            found[f"{model} - {base}, {kind}, means of answers"] = items.differences(model, base, means)
    for held, answered in closed.items():
        if model not in answered.rows:
            continue
        accuracies = {kind: _accuracy(kind) for kind in sorted(answered.pooled(model).asked)}
        for base in blind:
            name = "closed, held-out wording" if held else "closed"
            found[f"{model} - {base}, {name}"] = answered.differences(model, base, accuracies)
    return found


def _item(name: str) -> Callable[[ItemMeans], float | None]:
    def figure(metric: ItemMeans) -> float | None:
        value: float | None = metric.result()[name]
        return value

    return figure


def _accuracy(kind: str) -> Callable[[ClosedQuestionMetric], float | None]:
    def figure(metric: ClosedQuestionMetric) -> float | None:
        asked = metric.asked.get(kind)
        return metric.right[kind] / asked.total() if asked else None

    return figure
