"""Stage `teacher`: a small CLIP on crops and captions, for the encoder to be distilled from.

A picture's patches are distilled, not its class token, so both learn: two contrastive terms, one on the
class token as in CLIP, one on the mean of the patches through the same norm and projection.

Dimension legend:
    n crops    S side of a crop    L tokens of a caption    P patches    E width of the picture side
    J width of the shared space
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparseoccvla.data.output import new_folder
from sparseoccvla.language import END_MARK
from sparseoccvla.training.config import TeacherTraining
from sparseoccvla.training.crops import CropBatch, CropSource, crop_batch, named_in
from sparseoccvla.training.distillation import TEACHER_CARD, clip_pixels
from sparseoccvla.training.loop import Task
from sparseoccvla.training.losses import Term
from sparseoccvla.training.occupancy_check import spread
from sparseoccvla.training.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPModel

_PAD = "<pad>"
_SCALE_MOST = 100.0  # CLIP's limit of the logits' scale
_CHECKED = 64  # crops in one pass of validation


def caption_tokenizer(captions: Iterable[str], config: TeacherTraining) -> Tokenizer:
    """A tokenizer that gives every caption the end mark and `config.text_tokens` tokens.

    Length and end are part of it, so that threads may share it and `from_pretrained` finds them.
    """
    from tokenizers import Tokenizer, processors

    words: Tokenizer = Tokenizer.from_str(train_tokenizer(captions, config.vocabulary))
    end = (END_MARK, words.token_to_id(END_MARK))
    words.post_processor = processors.TemplateProcessing(single=f"$A {END_MARK}", special_tokens=[end])
    words.enable_truncation(config.text_tokens)
    words.enable_padding(length=config.text_tokens, pad_id=words.token_to_id(_PAD), pad_token=_PAD)
    return words


def build_clip(config: TeacherTraining, words: Tokenizer) -> CLIPModel:
    """A CLIP of these sizes with random weights."""
    from transformers import CLIPConfig, CLIPModel

    common = {
        "hidden_size": config.width,
        "intermediate_size": 4 * config.width,
        "num_attention_heads": config.heads,
        "projection_dim": config.width,
    }
    text = {
        "vocab_size": words.get_vocab_size(),
        "num_hidden_layers": config.text_layers,
        "max_position_embeddings": config.text_tokens,
        "pad_token_id": words.token_to_id(_PAD),
        "bos_token_id": None,
        "eos_token_id": words.token_to_id(END_MARK),
    }
    vision = {
        "num_hidden_layers": config.layers,
        "image_size": config.crop_px,
        "patch_size": config.patch_px,
    }
    return CLIPModel(
        CLIPConfig(text_config=common | text, vision_config=common | vision, projection_dim=config.width)
    )


class Embedded(NamedTuple):
    """Crops and captions in the shared space, (n, J) each; lengths are not normalized."""

    crops: Tensor  # by the class token
    patches: Tensor  # by the mean of the patches
    captions: Tensor


def embed(clip: CLIPModel, batch: CropBatch) -> Embedded:
    """Both sides of a batch."""
    seen = clip.vision_model(pixel_values=clip_pixels(batch.images_rgb.float()))
    patches = clip.vision_model.post_layernorm(seen.last_hidden_state[:, 1:].mean(dim=1))
    said = clip.text_model(input_ids=batch.ids)
    return Embedded(
        clip.visual_projection(seen.pooler_output),
        clip.visual_projection(patches),
        clip.text_projection(said.pooler_output),
    )


def contrast(pictures: Tensor, captions: Tensor, scale: Tensor) -> Term:
    """Cross-entropy of each picture (n, J) among the captions (n, J) and the other way round, halved.

    Captions that are equal share their pictures evenly at best: the loss then has a floor, not a fault.
    """
    logits = scale * F.normalize(pictures, dim=-1) @ F.normalize(captions, dim=-1).T
    wanted = torch.arange(len(logits), device=logits.device)
    lost = F.cross_entropy(logits, wanted, reduction="sum")
    lost = lost + F.cross_entropy(logits.T, wanted, reduction="sum")
    return Term(lost / 2, logits.new_tensor(float(len(logits))))


class TeacherTask(Task):
    """Contrastive terms of a CLIP; captions compete with those of the same process.

    Args:
        clip: to train.
        check: validation.
    """

    def __init__(self, clip: CLIPModel, check: CropCheck) -> None:
        super().__init__()
        self.clip = clip
        self.weights = {}
        self._check = check

    def forward(self, batch: CropBatch, step: int) -> dict[str, Term]:
        """See `Task`."""
        embedded = embed(self.clip, batch)
        with torch.autocast(batch.ids.device.type, enabled=False):
            crops, patches, captions = (part.float() for part in embedded)
            scale = self.clip.logit_scale.float().exp().clamp(max=_SCALE_MOST)
            return {
                "crops": contrast(crops, captions, scale),
                "patches": contrast(patches, captions, scale),
            }

    def validate(self) -> dict[str, float]:
        """See `Task`."""
        return self._check(self.clip)


class CropCheck:
    """Finds the captions of held-out crops among all of theirs.

    Args:
        source: of the validation split.
        words: tokenizer of captions.
        keyframes: how many at most, evenly spread.
    """

    def __init__(self, source: CropSource, words: Tokenizer, keyframes: int) -> None:
        self._source, self._words = source, words
        self._indices = spread(len(source), keyframes)

    @torch.no_grad()
    def __call__(self, clip: CLIPModel) -> dict[str, float]:
        """Share of crops whose own caption is the nearest, by class token and by patches; the same for what
        captions name, distance aside; and what needs no eyes: chance, and the most frequent answer.
        """
        pairs = [
            pair
            for index in self._indices
            for pair in self._source.pairs(index, np.random.default_rng([index, 7]))
        ]
        captions = sorted({caption for _, caption in pairs})
        blank = pairs[0][0]
        said = torch.cat(
            [part.captions for part in self._embedded(clip, [(blank, text) for text in captions])]
        )
        found = list(self._embedded(clip, pairs))
        own = [caption for _, caption in pairs]
        names = [named_in(caption) for caption in own]
        figures = {
            "chance": 1 / len(captions),
            "caption_most_frequent": _most_frequent(own),
            "name_most_frequent": _most_frequent(names),
        }
        for by in ("crops", "patches"):
            cosines = F.normalize(torch.cat([getattr(part, by) for part in found]), dim=-1)
            nearest = (cosines @ F.normalize(said, dim=-1).T).argmax(dim=1).tolist()
            answers = [captions[column] for column in nearest]
            figures[f"caption_by_{by}"] = _share_equal(answers, own)
            figures[f"name_by_{by}"] = _share_equal([named_in(answer) for answer in answers], names)
        return figures

    def _embedded(self, clip: CLIPModel, pairs: list[tuple[Any, str]]) -> Iterable[Embedded]:
        for first in range(0, len(pairs), _CHECKED):
            batch = crop_batch(pairs[first : first + _CHECKED], self._words)
            yield Embedded(*(part.float().cpu() for part in embed(clip, batch.to(clip.device))))


def _most_frequent(of: list[str]) -> float:
    return Counter(of).most_common(1)[0][1] / len(of)


def _share_equal(answers: list[str], wanted: list[str]) -> float:
    return sum(answer == want for answer, want in zip(answers, wanted, strict=True)) / len(wanted)


def write_teacher(
    folder: Path, clip: CLIPModel, words: Tokenizer, config: TeacherTraining, card: dict[str, Any]
) -> None:
    """Write a folder that `Teacher` and the Auto classes of transformers load by path.

    Raises:
        OutputError: something else lies there.
    """
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token=END_MARK,
        pad_token=_PAD,
        model_max_length=config.text_tokens,
    )
    pictures = CLIPImageProcessor(
        size={"height": config.crop_px, "width": config.crop_px}, do_center_crop=False
    )
    with new_folder(folder, lambda old: (old / TEACHER_CARD).exists()) as work:
        clip.save_pretrained(work)
        tokenizer.save_pretrained(work)
        pictures.save_pretrained(work)
        (work / TEACHER_CARD).write_text(json.dumps(card, indent=1) + "\n")
