"""Answers are decoded on a cache that is allocated once and says what a growing one says."""

from contextlib import nullcontext

import pytest
import torch
from transformers.cache_utils import Cache, DynamicCache

from sparseoccvla import answer_cache
from sparseoccvla.config import ModelSource
from sparseoccvla.contracts import OccupancyQueries
from sparseoccvla.errors import InputError
from sparseoccvla.language import LanguageConfig
from sparseoccvla.reasoner import Reasoner, ReasonerConfig
from sparseoccvla.runtime.load import load_reasoner

torch.set_num_threads(1)
IDS = torch.tensor([5, 9, 33, 70])
TOKENS = 12


@pytest.fixture(scope="module")
def net() -> Reasoner:
    torch.manual_seed(0)
    language = LanguageConfig(
        width=32, layers=2, heads=4, ffn_width=48, vocabulary=258, dtype="float32", lora_rank=0
    )
    return Reasoner(ReasonerConfig(query_width=16, language=language, forecast_point_width=8)).eval()


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, 7, 16, generator=generator), 15 * torch.randn(1, 7, 5, 3, generator=generator)


def answer(net: Reasoner) -> list[int]:
    return list(net.generate(*scene(), IDS, TOKENS, end_id=-1))


def spied(net: Reasoner, monkeypatch: pytest.MonkeyPatch, make: object = None) -> tuple[list[int], list]:
    """An answer, and after each pass the logits and where the cache lies; `make` replaces the cache."""
    seen: list[tuple[torch.Tensor, list[int]]] = []

    def look(module, args, kwargs, output) -> None:
        layers = kwargs["past_key_values"].layers
        seen.append(
            (output.logits[0, -1].float(), [t.data_ptr() for x in layers for t in (x.keys, x.values)])
        )

    with monkeypatch.context() as patch:
        if make is not None:
            patch.setattr(answer_cache, "answer_cache", make)
        handle = net.language.register_forward_hook(look, with_kwargs=True)
        tokens = answer(net)
        handle.remove()
    return tokens, seen


@pytest.mark.parametrize("half", [False, True])
def test_tokens_and_logits_equal_those_of_a_growing_cache(net, monkeypatch, half) -> None:
    with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
        tokens, seen = spied(net, monkeypatch)
        grown, wanted = spied(net, monkeypatch, lambda config, *_: DynamicCache(config=config))
    assert len(set(tokens)) > 2, "an answer of one word would compare little"
    assert tokens == grown
    for (logits, _), (expected, _) in zip(seen, wanted, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-2 if half else 1e-5)


def test_nothing_is_allocated_anew_between_tokens(net, monkeypatch) -> None:
    places = {tuple(places) for _, places in spied(net, monkeypatch)[1]}
    grown = {
        tuple(places)
        for _, places in spied(net, monkeypatch, lambda config, *_: DynamicCache(config=config))[1]
    }
    assert len(places) == 1
    assert len(grown) > 1, "a growing cache moves"


def test_two_answers_that_alternate_do_not_mix(net) -> None:
    alone = answer(net)
    first, second = (net.generate(*scene(), IDS, TOKENS, end_id=-1) for _ in range(2))
    pairs = list(zip(first, second, strict=True))
    assert pairs == list(zip(alone, alone, strict=True))


def test_a_cache_is_as_long_as_prompt_and_answer(net, monkeypatch) -> None:
    made: list[Cache] = []
    real = answer_cache.answer_cache

    def keep(*args) -> Cache:
        made.append(real(*args))
        return made[-1]

    spied(net, monkeypatch, keep)
    prompt = 7 + 12 + len(IDS)
    assert [layer.keys.shape for layer in made[0].layers] == [(1, 4, prompt + TOKENS, 8)] * 2


def test_more_tokens_than_positions_are_refused_before_anything_is_computed(net) -> None:
    prompt = 7 + 12 + len(IDS)
    next(net.generate(*scene(), IDS, 2048 - prompt, end_id=-1))
    with pytest.raises(
        InputError,
        match=rf"are {prompt} tokens and the answer may be {2049 - prompt} long, .* has 2048 positions; "
        rf"ask a shorter question or for fewer than {2049 - prompt} tokens",
    ):
        next(net.generate(*scene(), IDS, 2049 - prompt, end_id=-1))


def test_a_question_that_is_too_long_is_an_error_of_the_backend(untrained_tiny) -> None:
    reasoner = load_reasoner(ModelSource(model=str(untrained_tiny)))
    queries = OccupancyQueries.fake(shape=(128, 8, 128))
    assert list(reasoner.answer(queries, "What is ahead?", 2))
    with pytest.raises(InputError, match=r"ask a shorter question"):
        list(reasoner.answer(queries, "What is ahead? " * 200, 2))


def test_a_prompt_that_is_read_once_says_the_same_on_the_cache_that_keeps_nothing(net: Reasoner) -> None:
    embeddings = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(2))
    cache = answer_cache.passing_cache(net.language.config)
    with torch.no_grad():
        wanted = net.hidden(embeddings)
        for _ in range(2):
            said = net.language.base_model(inputs_embeds=embeddings, past_key_values=cache, use_cache=False)
            assert torch.equal(said.last_hidden_state, wanted)
    assert cache.get_seq_length() == 0
