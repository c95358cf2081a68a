import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from sparseoccvla.metrics.additive import UnscorableError
from sparseoccvla.metrics.cider import cider
from sparseoccvla.metrics.language import (
    SCORES,
    ClosedQuestionMetric,
    ItemMeans,
    LanguageMetric,
    MeteorUnavailableError,
    Tokens,
)
from sparseoccvla.metrics.ptb import ptb_tokens

PAIRS = [
    ("The car ahead is stopping.", ["The car ahead is stopping now.", "A car in front brakes."]),
    ("Turn left.", ["Turn right at the junction."]),
    ("There are two pedestrians.", ["There are two pedestrians on the sidewalk."]),
]


def metric_of(pairs, tokens: Tokens = Tokens.RAW) -> LanguageMetric:
    metric = LanguageMetric(tokens)
    for prediction, references in pairs:
        metric.update(prediction, references)
    return metric


@pytest.mark.parametrize("seed", range(8))
def test_cider_equals_the_librarys_with_several_references_and_empty_sentences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(12)])
    items = int(rng.integers(1, 12))
    guesses = [list(words[rng.integers(0, 12, rng.integers(0, 9))]) for _ in range(items)]
    truths = [
        [list(words[rng.integers(0, 12, rng.integers(0, 9))]) for _ in range(rng.integers(1, 4))]
        for _ in range(items)
    ]
    library = Cider().compute_score(
        {i: [" ".join(t) for t in truths[i]] for i in range(items)},
        {i: [" ".join(guesses[i])] for i in range(items)},
    )[1]
    np.testing.assert_allclose(cider(guesses, truths), library, atol=1e-9)


def test_a_right_answer_scores_high_and_shuffled_answers_do_not() -> None:
    right = metric_of([(references[0], references) for _, references in PAIRS]).result()
    assert right["Bleu_4"] == pytest.approx(1.0)
    assert right["ROUGE_L"] == pytest.approx(1.0)
    shuffled = [(PAIRS[i - 1][1][0], references) for i, (_, references) in enumerate(PAIRS)]
    assert metric_of(shuffled).result()["CIDEr"] < 0.3 * right["CIDEr"]


def test_cider_depends_on_the_corpus_and_is_zero_for_a_single_item() -> None:
    one = [("the red car", ["the red car"])]
    assert metric_of(one).result()["CIDEr"] == 0.0
    assert metric_of([*one, ("a bus", ["a truck"])]).scores()[1][0]["CIDEr"] > 5


def test_raw_and_ptb_tokens_give_different_scores_for_the_same_answer() -> None:
    pairs = [("The car, it stops.", ["the car it stops"]), *PAIRS]
    assert metric_of(pairs, Tokens.PTB).result()["Bleu_1"] > metric_of(pairs).result()["Bleu_1"]


@pytest.mark.parametrize(
    ("prediction", "references", "message"),
    [
        ("", ["a"], "the prediction is empty"),
        ("  \n", ["a"], "the prediction is empty"),
        ("a", ["b", ""], "a reference is empty"),
        ("a", [], "no reference"),
        (None, ["a"], "NoneType, wanted text"),
        (float("nan"), ["a"], "float, wanted text"),
        ("a", [3], "a reference is a int"),
    ],
)
def test_what_is_not_an_answer_is_refused_and_not_kept(prediction, references, message: str) -> None:
    metric = LanguageMetric()
    with pytest.raises(UnscorableError, match=message):
        metric.update(prediction, references)
    assert metric.predictions == []


def test_merged_answers_score_like_one_corpus() -> None:
    first = metric_of(PAIRS[:1])
    first.merge(metric_of(PAIRS[1:]))
    assert first.result() == metric_of(PAIRS).result()
    with pytest.raises(ValueError, match="ptb tokens"):
        first.merge(LanguageMetric(Tokens.PTB))


def test_item_means_are_the_mean_of_answers() -> None:
    means = ItemMeans()
    items = metric_of(PAIRS).scores()[1]
    for item in items:
        means.update(item)
    assert means.result()["CIDEr"] == pytest.approx(np.mean([i["CIDEr"] for i in items]))
    assert set(means.result()) == set(SCORES)


@pytest.mark.slow
def test_meteor_without_its_data_says_which_and_how(monkeypatch) -> None:
    def missing(text: str) -> list[str]:
        raise LookupError(text)

    # Tokenizing is what fails wherever the data are missing, whatever is installed here.
    monkeypatch.setattr("nltk.tokenize.word_tokenize", missing)
    with pytest.raises(MeteorUnavailableError, match=r"python -m nltk\.downloader wordnet punkt_tab"):
        metric_of(PAIRS).meteor()


def test_closed_questions_are_right_by_words_and_yes_or_no_by_the_first() -> None:
    metric = ClosedQuestionMetric()
    metric.update("color", "Red.", "red")
    metric.update("color", "dark red", "red")
    metric.update("safe", "Yes, the lane is free.", "yes")
    metric.update("safe", "No.", "yes")
    result = metric.result()
    assert result["types"]["color"]["accuracy"] == 0.5
    assert result["types"]["safe"]["accuracy"] == 0.5
    assert result["accuracy"] == 0.5


def test_the_majority_answer_is_reported_beside_the_accuracy() -> None:
    metric = ClosedQuestionMetric()
    for answer in ("no", "no", "no", "yes"):
        metric.update("cones", "no", answer)
    figures = metric.result()["types"]["cones"]
    assert figures == {"accuracy": 0.75, "majority": 0.75, "n": 4}
    with pytest.raises(UnscorableError, match="the answer is empty"):
        metric.update("cones", "...", "no")


def test_ptb_tokens_split_contractions_and_drop_punctuation() -> None:
    assert ptb_tokens("It isn't John's.") == ["it", "is", "n't", "john", "'s"]
    assert ptb_tokens("at (12.4, -3.7)") == ["at", "-lrb-", "12.4", "-3.7", "-rrb-"]
    assert ptb_tokens("U.S. roads; No. 5, no.") == ["u.s.", "roads", "no.", "5", "no"]
    assert ptb_tokens("... !") == []


def test_tokenizing_hostile_text_ends() -> None:
    for text in ("a-" * 3000, "(" * 3000, "n't" * 2000, "<a " * 2000, "1," * 3000, "x" * 3000):
        ptb_tokens(text)
