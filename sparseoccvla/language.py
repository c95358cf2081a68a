"""The language model and its tokenizer: any transformers causal LM that takes `inputs_embeds`.

Either built from sizes (the tiny one, trained from scratch) or loaded from a folder that
`save_pretrained` wrote; LoRA is injected by peft, which leaves the model's class as it was.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sparseoccvla.errors import InputError

# transformers takes seconds to import: only who builds a language model waits for it.
if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

END_MARK = "</s>"
INT4_GROUP = 32  # weights of a row that share a scale and a zero


@dataclass(frozen=True)
class LanguageConfig:
    """Where the language model comes from; the sizes are Vicuna-7B's.

    `path` names a folder (or hub model) for `from_pretrained`; while it is empty, a Llama of the
    sizes below is built. With a path the sizes only say what is to be expected, so that memory can be
    counted before anything is loaded. LoRA is on when `lora_rank` is not 0.
    """

    path: str = ""
    width: int = 4096
    layers: int = 32
    heads: int = 32
    ffn_width: int = 11008
    vocabulary: int = 32000
    tied: bool = False  # word embeddings and word head are one matrix
    dtype: str = "float16"
    lora_rank: int = 128
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")


def build_language_model(config: LanguageConfig) -> PreTrainedModel:
    """The causal LM, with LoRA injected when asked for.

    Raises:
        InputError: `path` is set and transformers can't load a causal LM from it.
    """
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    if config.path:
        try:
            model = AutoModelForCausalLM.from_pretrained(config.path, dtype=getattr(torch, config.dtype))
        except (OSError, ValueError) as error:
            raise InputError(
                f"no causal language model could be loaded from {config.path!r}: {error}; wanted a folder "
                "that save_pretrained wrote, or a model name the hub cache holds"
            ) from error
    else:
        model = LlamaForCausalLM(llama_config(config)).to(getattr(torch, config.dtype))
    if model.config.hidden_size != config.width:
        raise InputError(
            f"the language model in {config.path!r} is {model.config.hidden_size} wide, the configuration "
            f"says {config.width}; set reasoner.language.width and planner.token_width to match"
        )
    if config.lora_rank:
        add_lora(model, config)
    return model


def llama_config(config: LanguageConfig) -> LlamaConfig:
    """The transformers configuration of a Llama of these sizes; also a stand-in for a larger one."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        intermediate_size=config.ffn_width,
        max_position_embeddings=2048,
        tie_word_embeddings=config.tied,
    )


def add_lora(model: nn.Module, config: LanguageConfig) -> None:
    """Inject LoRA in place, freeze the rest, keep the adapters in fp32 (fp16 ones can't be unscaled)."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        bias="none",
    )
    inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def merge_lora(model: nn.Module) -> None:
    """Fold adapters into the matrices they adapt, in place, and drop them: equal numbers, fewer products."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())


def shrink_weights(model: PreTrainedModel, kind: str, device: torch.device) -> None:
    """Keep the matrices of the language model's layers as int8 or int4, in place, on `device`.

    int8 has one scale a row; products are computed in the type that the matrix had. int4 has a scale and a
    zero for 32 weights; products are computed in bf16, the one type that its kernels on CPU and CUDA are fast
    in. Word embeddings and word head stay, as do matrices whose rows do not divide into 32s from int4.
    Adapters are folded in first.

    Args:
        model: with its weights loaded.
        kind: "int8" or "int4".
        device: layers are moved one by one, so that a GPU never holds the large ones.

    Raises:
        InputError: torchao can't be imported.
    """
    torchao = _torchao("torchao.quantization", kind)
    merge_lora(model)
    group = INT4_GROUP if kind == "int4" else 1
    chosen = [matrix for matrix in _matrices(model) if matrix.in_features % group == 0]
    config: Any
    if kind == "int8":
        config = torchao.Int8WeightOnlyConfig(set_inductor_config=False)
    elif device.type == "cuda":
        config = torchao.Int4WeightOnlyConfig(
            group_size=INT4_GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
        )
    else:
        prototype = _torchao("torchao.prototype.quantization.int4", kind)
        config = prototype.PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False)
    for matrix in chosen:
        # Tokens come in the type of the norms or of what autocast did last, and leave in the matrix's own.
        own = matrix.weight.dtype
        matrix.to(torch.bfloat16 if kind == "int4" else own)
        matrix.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))
        matrix.register_forward_hook(lambda layer, inputs, output, own=own: output.to(own))
    wanted = set(chosen)
    torchao.quantize_(model.base_model, config, lambda module, _: module in wanted, device=device)


def shrunk(model: PreTrainedModel) -> tuple[int, int]:
    """How many matrices of the layers `shrink_weights` has changed, and of how many."""
    kinds = [type(matrix.weight) for matrix in _matrices(model)]
    return sum(kind is not nn.Parameter for kind in kinds), len(kinds)


def _matrices(model: PreTrainedModel) -> list[nn.Linear]:
    return [module for module in model.base_model.modules() if isinstance(module, nn.Linear)]


def _torchao(module: str, kind: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"language_weights {kind} needs torchao, which can't be imported here ({error}): "
            "pip install -r requirements/quantization.txt, or set language_weights to stored"
        ) from error


def load_tokenizer(config: LanguageConfig, file: Path | None) -> PreTrainedTokenizerBase:
    """The tokenizer beside `config.path`, or the model folder's own `tokenizer.json`."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if config.path:
        return AutoTokenizer.from_pretrained(config.path)
    if file is None:
        raise InputError("a language model built from sizes needs the tokenizer.json of its model folder")
    return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token=END_MARK, pad_token="<pad>")


def byte_tokenizer_json() -> str:
    """A tokenizer.json whose tokens are the 256 bytes and the marks: needs no corpus and no download."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<pad>": 0, END_MARK: 1} | {symbol: i + 2 for i, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<pad>"), AddedToken(END_MARK)])
    return tokenizer.to_str(pretty=True)
