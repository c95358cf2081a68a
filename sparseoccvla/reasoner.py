"""Queries to a reasoning token, a forecast, and words: connector, language model, forecaster.

The prompt is occupancy tokens, global tokens, text, and one learned reasoning token. One prefill
gives both products: the hidden state at the reasoning token is T_r, the hidden states at the
occupancy tokens go to the forecaster. No text is decoded for planning.

Dimension legend:
    B batch    Q queries    R points per query    C query width    D token width    I text tokens
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparseoccvla.connector import Connector, ConnectorConfig, Pooling
from sparseoccvla.contracts import NUM_GLOBAL_TOKENS, OCC3D_GRID
from sparseoccvla.forecaster import Forecaster, ForecasterConfig, ForecastStep, Present
from sparseoccvla.language import LanguageConfig, build_language_model


@dataclass(frozen=True)
class ReasonerConfig:
    """Sizes of the reasoner; the token width is the language model's."""

    query_width: int = 256
    global_tokens: int = NUM_GLOBAL_TOKENS
    language: LanguageConfig = field(default_factory=LanguageConfig)
    prompt_style: str = "vicuna"  # or "plain"
    query_order: str = "encoder"  # or "morton": neighbors in space become neighbors in the prompt
    pooled_tokens: int = 0  # that occupancy tokens are mixed to for the language model, 0: one a query
    queries: int = 600  # of the encoder; read where tokens are pooled
    forecast_point_width: int = 128
    forecast_free_class: bool = False
    forecast_from_present: bool = False  # see `forecaster.py`


class Prefill(NamedTuple):
    """What one pass over the planning prompt gives."""

    reasoning: Tensor  # (B, D) T_r
    # (B, Q, D) hidden states at the occupancy tokens, or what pooled ones spread, in the encoder's order.
    occupancy: Tensor


class Reasoner(nn.Module):
    """Connector, global tokens, language model, reasoning token, forecaster."""

    def __init__(self, config: ReasonerConfig) -> None:
        super().__init__()
        self.config = config
        self.language = build_language_model(config.language)
        width = config.language.width
        self.connector = Connector(ConnectorConfig(config.query_width, width))
        self.pooling = Pooling(config.queries, config.pooled_tokens) if config.pooled_tokens else None
        # As large as word embeddings are at the start, so that no token drowns the others.
        self.global_tokens = nn.Parameter(0.02 * torch.randn(config.global_tokens, width))
        self.reasoning_token = nn.Parameter(0.02 * torch.randn(width))
        self.forecaster = Forecaster(
            ForecasterConfig(
                query_width=config.query_width,
                token_width=width,
                point_width=config.forecast_point_width,
                free_class=config.forecast_free_class,
                from_present=config.forecast_from_present,
            )
        )

    def prefix(self, features: Tensor, points_m: Tensor) -> Tensor:
        """Occupancy and global tokens (B, Q + 12, D) of Q_L (B, Q, C) and P_L (B, Q, R, 3).

        Where tokens are pooled there are `pooled_tokens` instead of Q.
        """
        occupancy = self.connector(features, points_m)
        if self.config.query_order == "morton":
            order = morton_order(points_m)[..., None].expand_as(occupancy)
            occupancy = occupancy.gather(1, order)
        if self.pooling is not None:
            occupancy = self.pooling(occupancy)
        tokens = torch.cat([occupancy, self.global_tokens.expand(len(features), -1, -1)], dim=1)
        return tokens.to(self.language.dtype)

    def prefill(self, features: Tensor, points_m: Tensor, text_ids: Tensor) -> Prefill:
        """T_r and the occupancy tokens from one pass; `text_ids` (I,) is the planning prompt."""
        return self.prefill_embedded(features, points_m, self.embed(text_ids))

    def prefill_embedded(self, features: Tensor, points_m: Tensor, text: Tensor) -> Prefill:
        """`prefill` with the prompt as word embeddings (I, D)."""
        batch = len(features)
        prefix = self.prefix(features, points_m)
        text = text.expand(batch, -1, -1)
        last = self.reasoning_token.to(prefix.dtype).expand(batch, 1, -1)
        hidden = self.hidden(torch.cat([prefix, text, last], dim=1)).float()
        return Prefill(hidden[:, -1], self.occupancy_states(hidden, points_m))

    def occupancy_states(self, hidden: Tensor, points_m: Tensor) -> Tensor:
        """`Prefill.occupancy` from the hidden states (B, length, D) of a prompt that begins with `prefix`."""
        if self.pooling is None:
            occupancy = hidden[:, : points_m.shape[1]]
        else:
            occupancy = self.pooling.spread(hidden[:, : self.config.pooled_tokens])
        if self.config.query_order == "morton":
            order = morton_order(points_m)[..., None].expand_as(occupancy)
            occupancy = torch.zeros_like(occupancy).scatter(1, order, occupancy)
        return occupancy

    def forecast(self, features: Tensor, present: Present, occupancy: Tensor) -> tuple[ForecastStep, ...]:
        """The forecast from Q_L, what is there now, and `Prefill.occupancy`."""
        steps: tuple[ForecastStep, ...] = self.forecaster(features, present, occupancy)
        return steps

    def embed(self, ids: Tensor) -> Tensor:
        """Word embeddings (..., D)."""
        embedded: Tensor = self.language.get_input_embeddings()(ids)
        return embedded

    def hidden(self, embeddings: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Last hidden states (B, length, D) of embeddings (B, length, D), without the word head."""
        from sparseoccvla.answer_cache import passing_cache  # imports transformers

        whole = attention_mask is None and embeddings.device.type == "cuda"
        output = self.language.base_model(
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=passing_cache(self.language.config) if whole else None,
            use_cache=False,
        )
        states: Tensor = output.last_hidden_state
        return states

    def text_logits(self, features: Tensor, points_m: Tensor, text_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Logits (B, I, vocabulary) at each text token of right-padded `text_ids` (B, I).

        `text_mask` (B, I) is 1 where a token is no padding.
        """
        prefix = self.prefix(features, points_m)
        seen = torch.cat([text_mask.new_ones(prefix.shape[:2]), text_mask], dim=1)
        hidden = self.hidden(torch.cat([prefix, self.embed(text_ids)], dim=1), seen)
        logits: Tensor = self.language.get_output_embeddings()(hidden[:, prefix.shape[1] :])
        return logits.float()

    @torch.no_grad()
    def generate(
        self, features: Tensor, points_m: Tensor, text_ids: Tensor, max_tokens: int, end_id: int
    ) -> Iterator[int]:
        """Greedy tokens of one scene (B = 1) after `text_ids` (I,), with a static key-value cache.

        Raises:
            InputError: prompt and answer are longer than what the language model has positions for.
        """
        from sparseoccvla.answer_cache import answer_cache  # imports transformers

        embeddings = torch.cat([self.prefix(features, points_m), self.embed(text_ids)[None]], dim=1)
        cache = answer_cache(self.language.config, embeddings.shape[1], max_tokens)
        for _ in range(max_tokens):
            output = self.language(
                inputs_embeds=embeddings, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            token = output.logits[0, -1].argmax()
            if int(token) == end_id:
                return
            yield int(token)
            embeddings = self.embed(token.view(1, 1))


def morton_order(points_m: Tensor) -> Tensor:
    """Order (B, Q) that walks the queries along a Z-curve over x y of their centers.

    Source: Morton (1966): the bits of both cell coordinates, interleaved.
    """
    low = torch.tensor(OCC3D_GRID.min_m[:2], device=points_m.device)
    size_m = OCC3D_GRID.shape[0] * OCC3D_GRID.voxel_size_m
    cell = ((points_m[..., :2].mean(dim=2) - low) / size_m * 256).clamp(0, 255).long()  # (B, Q, 2)
    code = torch.zeros_like(cell[..., 0])
    for bit in range(8):
        code = code + ((cell[..., 0] >> bit) % 2 << (2 * bit)) + ((cell[..., 1] >> bit) % 2 << (2 * bit + 1))
    # Equal cells keep the encoder's order.
    return torch.argsort(code * cell.shape[1] + torch.arange(cell.shape[1], device=code.device), dim=1)
