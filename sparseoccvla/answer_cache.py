"""Key-value caches: of an answer, allocated whole and written in place; and of a prompt that has none."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from sparseoccvla.errors import InputError


class AnswerLayer(StaticLayer):
    """transformers' static layer; keys are kept in the type of the values.

    Under autocast rotated keys are fp32 beside bf16 values; attention would convert all for each token.
    """

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = super().update(key_states.to(value_states.dtype), value_states, *args, **kwargs)
        return keys, values


def answer_cache(config: PreTrainedConfig, prompt_tokens: int, max_tokens: int) -> Cache:
    """An empty cache for a prompt and the longest answer to it.

    Raises:
        InputError: together they are longer than what the language model has positions for.
    """
    length = prompt_tokens + max_tokens
    # A model without this entry can count as far as it likes.
    positions = getattr(config, "max_position_embeddings", length)
    if length > positions:
        left = positions - prompt_tokens
        raise InputError(
            f"scene and question are {prompt_tokens} tokens and the answer may be {max_tokens} long, but the "
            f"language model has {positions} positions; ask a shorter question"
            + (f" or for fewer than {left + 1} tokens" if left > 0 else "")
        )
    return Cache(layers=[AnswerLayer(length) for _ in range(config.num_hidden_layers)])


class PassingLayer(DynamicLayer):
    """Keeps nothing: a prompt that is read once has nothing behind it."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


def passing_cache(config: PreTrainedConfig) -> Cache:
    """A cache that says that this prompt begins here and is whole, and keeps nothing.

    Without one transformers looks whether positions begin anew in the prompt; on a GPU that waits for the
    device, and while a CUDA graph is recorded it can't look and makes a mask, for which a compiler would
    begin anew in the middle of the recording.
    """
    return Cache(layers=[PassingLayer() for _ in range(config.num_hidden_layers)])
