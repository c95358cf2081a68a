"""The tiny language model's own tokenizer, trained on the texts it will meet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sparseoccvla.data.cache import SampleCache
from sparseoccvla.errors import InputError
from sparseoccvla.evaluation.questions import questions_about
from sparseoccvla.language import END_MARK
from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt


def texts_of(cache: SampleCache, style: str) -> Iterator[str]:
    """Every conversation of a split as the language model reads it, the planning prompt first."""
    yield prompt(style, [Turn(PLANNING_QUESTION)])
    for index in range(len(cache)):
        for question in questions_about(cache.language(index)):
            yield prompt(style, [Turn(question.text, question.reference)])


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> str:
    """tokenizer.json of a byte-level BPE; whole words where they are frequent, bytes where nothing fits.

    The same texts give the same tokenizer. Every text can be read back: a word that was never met becomes
    bytes, not a mark for the unknown.

    Raises:
        InputError: there is no text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", END_MARK],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    # The end mark is a token of its own; left in, its letters would be learned as text.
    plain = [text.replace(END_MARK, "") for text in texts]
    if len(plain) < 2:
        raise InputError(
            "the training split has no texts for a tokenizer; generate desc/, conv/ and vqa/, or set "
            "language.path in the model's config.json to a model that brings its own"
        )
    tokenizer.train_from_iterator(plain, trainer)
    result: str = tokenizer.to_str(pretty=True)
    return result
