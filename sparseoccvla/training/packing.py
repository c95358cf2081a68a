"""One pass of the language model for everything that is said about a scene.

Occupancy and global tokens come first; behind them stand the planning prompt and several questions with
their answers, each of which sees the scene and itself only. A question so costs its own words, not the
scene again, and gives the same numbers as if it were asked alone.

Dimension legend:
    B scenes    P prefix tokens (occupancy and global)    I text tokens of all segments    D token width
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt
from sparseoccvla.reasoner import Prefill, Reasoner
from sparseoccvla.training.losses import NO_TEXT, Term

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PADDING = -1  # segment of a token that is none


@dataclass(frozen=True)
class TextPack:
    """Segments of text behind each scene; segment 0 is the planning prompt, whose last token is T_r's."""

    ids: Tensor  # (B, I)
    segment: Tensor  # (B, I), `_PADDING` behind the last
    place: Tensor  # (B, I) within its segment
    wanted: Tensor  # (B, I) the token that follows, NO_TEXT where none is asked
    closed: Tensor  # (B, I) whether it belongs to the answer of a closed question
    reasoning_at: int  # place of the reasoning token; the same in all scenes

    def to(self, device: torch.device) -> TextPack:
        """The pack on a device."""
        return TextPack(
            self.ids.to(device),
            self.segment.to(device),
            self.place.to(device),
            self.wanted.to(device),
            self.closed.to(device),
            self.reasoning_at,
        )


class Said(NamedTuple):
    """Hidden states after one pass."""

    prefill: Prefill
    text: Tensor  # (B, I, D)


class Texts:
    """Conversations as tokens.

    Args:
        tokenizer: of the language model.
        style: of the prompt.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, style: str) -> None:
        self._tokenizer = tokenizer
        self._style = style
        self.planning = self.ids(prompt(style, [Turn(PLANNING_QUESTION)]))

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        return int(self._tokenizer.eos_token_id)

    def text(self, ids: list[int]) -> str:
        """What tokens say."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return list(self._tokenizer(text).input_ids)

    def pack(self, conversations: Sequence[Sequence[tuple[str, str, bool]]]) -> TextPack:
        """Pack (question, answer, is closed) of each scene behind the planning prompt."""
        rows = [self._row(conversation) for conversation in conversations]
        longest = max(row.shape[1] for row in rows)
        fill = np.array([0, _PADDING, 0, NO_TEXT, 0])[:, None]
        padded = [
            np.concatenate([row, np.repeat(fill, longest - row.shape[1], axis=1)], axis=1) for row in rows
        ]
        ids, segment, place, wanted, closed = torch.from_numpy(np.stack(padded, axis=1))
        return TextPack(ids, segment, place, wanted, closed.bool(), len(self.planning))

    def _row(self, conversation: Sequence[tuple[str, str, bool]]) -> np.ndarray:
        """(5, I) of one scene: id, segment, place, wanted, closed."""
        asked = [*self.planning, 0]  # the reasoning token is no word; its embedding is put there
        parts = [
            np.array([asked, [0] * len(asked), range(len(asked)), [NO_TEXT] * len(asked), [0] * len(asked)])
        ]
        for number, (question, answer, closed) in enumerate(conversation, 1):
            opening = self.ids(prompt(self._style, [Turn(question)]))
            whole = self.ids(prompt(self._style, [Turn(question, answer)]))
            said = whole[len(opening) :]
            wanted = [*([NO_TEXT] * (len(opening) - 1)), *said, NO_TEXT]
            count = len(whole)
            told = [int(closed)] * count
            parts.append(np.array([whole, [number] * count, range(count), wanted, told]))
        return np.concatenate(parts, axis=1)


def packed_pass(reasoner: Reasoner, features: Tensor, points_m: Tensor, pack: TextPack) -> Said:
    """Hidden states of the scene and of every segment behind it.

    Args:
        reasoner: whose language model reads.
        features: Q_L (B, Q, C).
        points_m: P_L (B, Q, R, 3).
        pack: what is said about each scene.
    """
    prefix = reasoner.prefix(features, points_m)  # (B, P, D)
    text = reasoner.embed(pack.ids)
    at = torch.arange(text.shape[1], device=text.device) == pack.reasoning_at
    text = torch.where(at[:, None], reasoner.reasoning_token.to(text.dtype), text)
    length = prefix.shape[1]
    mask = segment_mask(pack.segment, length)
    position = torch.cat(
        [torch.arange(length, device=text.device).expand(len(text), -1), length + pack.place], dim=1
    )
    # A mask of four dimensions is taken as it is: as numbers to be added, which every attention knows.
    added = torch.zeros(mask.shape, dtype=prefix.dtype, device=mask.device)
    added = added.masked_fill(~mask, torch.finfo(prefix.dtype).min)
    hidden = reasoner.language.base_model(
        inputs_embeds=torch.cat([prefix, text.to(prefix.dtype)], dim=1),
        attention_mask=added,
        position_ids=position,
        use_cache=False,
    ).last_hidden_state.float()
    occupancy = reasoner.occupancy_states(hidden, points_m)
    return Said(Prefill(hidden[:, length + pack.reasoning_at], occupancy), hidden[:, length:])


def segment_mask(segment: Tensor, prefix: int) -> Tensor:
    """(B, 1, P + I, P + I) True where a token (row) may look: back, at the scene and its own segment."""
    batch, count = segment.shape
    whole = torch.cat([segment.new_full((batch, prefix), -2), segment], dim=1)
    back = torch.ones(prefix + count, prefix + count, dtype=torch.bool, device=segment.device).tril()
    scene = torch.arange(prefix + count, device=segment.device) < prefix
    same = whole[:, :, None] == whole[:, None, :]
    return (back & (same | scene))[:, None]


def answer_logits(reasoner: Reasoner, said: Said, pack: TextPack) -> tuple[Tensor, Tensor]:
    """Logits (n, vocabulary) wherever an answer's token follows, and these tokens (n,)."""
    asked = pack.wanted != NO_TEXT
    head = reasoner.language.get_output_embeddings()
    logits: Tensor = head(said.text[asked].to(reasoner.language.dtype))
    return logits.float(), pack.wanted[asked]


def answer_term(logits: Tensor, wanted: Tensor) -> Term:
    """Cross-entropy of answers' tokens."""
    if not len(wanted):
        return Term(0.0 * logits.sum(), logits.new_zeros(()))
    return Term(F.cross_entropy(logits, wanted, reduction="sum"), logits.new_tensor(float(len(wanted))))
