"""int8 and int4 matrices of the language model: near the stored ones, smaller, asked for and said."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sparseoccvla.config import ConfigError, ModelSource
from sparseoccvla.contracts import OccupancyQueries
from sparseoccvla.errors import InputError
from sparseoccvla.language import LanguageConfig, build_language_model, shrink_weights, shrunk
from sparseoccvla.runtime.load import load_reasoner

torch.set_num_threads(1)
CPU = torch.device("cpu")
CONFIG = LanguageConfig(
    width=64, layers=2, heads=4, ffn_width=80, vocabulary=258, dtype="float32", lora_rank=4
)
MATRICES = 2 * 7
OF_INT4 = 2 * 6  # rows of 80 do not divide into 32s
LARGEST_ERROR = {"int8": 0.02, "int4": 0.2}


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: make torchao")


def language_model() -> nn.Module:
    torch.manual_seed(0)
    model = build_language_model(CONFIG).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, so an adapter that is lost would not be seen
            nn.init.normal_(parameter, std=0.15)
    return model


def hidden(model: nn.Module) -> torch.Tensor:
    embeddings = torch.randn(1, 9, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.base_model(inputs_embeds=embeddings).last_hidden_state.float()


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_without_torchao_the_error_says_what_to_install(monkeypatch) -> None:
    model = language_model()
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(
        InputError, match=r"int8 needs torchao, .*: pip install -r requirements/quantization\.txt, or set"
    ):
        shrink_weights(model, "int8", CPU)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"language_weights is 'int2', wanted one of stored, int8, int4"):
        ModelSource(language_weights="int2")


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(("kind", "changed"), [("int8", MATRICES), ("int4", OF_INT4)])
def test_merged_adapters_are_in_the_rounded_matrices(kind, changed) -> None:
    wanted, model = hidden(language_model()), language_model()
    shrink_weights(model, kind, CPU)
    assert shrunk(model) == (changed, MATRICES)
    rounding = error(hidden(model), wanted)
    assert 1e-4 < rounding < LARGEST_ERROR[kind]
    without = build_language_model(replace(CONFIG, lora_rank=0)).eval()
    lost = language_model()
    without.load_state_dict(
        {n.replace(".base_layer", ""): p for n, p in lost.state_dict().items() if "lora_" not in n}
    )
    assert error(hidden(without), wanted) > 2 * rounding, "lost adapters would be seen"


@pytest.mark.usefixtures("torchao")
def test_words_are_left_alone_and_matrices_are_smaller() -> None:
    def stored_bytes(model: nn.Module) -> int:
        return sum(
            getattr(weight, part).nbytes if part else weight.nbytes
            for weight in (m.weight for m in model.base_model.modules() if isinstance(m, nn.Linear))
            if weight.shape[1] == CONFIG.width
            for part in (weight.__tensor_flatten__()[0] if type(weight) is not nn.Parameter else [""])
        )

    plain = build_language_model(replace(CONFIG, lora_rank=0))
    sizes = {"stored": stored_bytes(plain)}
    for kind in ("int8", "int4"):
        model = language_model()
        words = [module.weight.clone() for module in (model.lm_head, model.get_input_embeddings())]
        shrink_weights(model, kind, CPU)
        assert torch.equal(model.lm_head.weight, words[0])
        assert torch.equal(model.get_input_embeddings().weight, words[1])
        sizes[kind] = stored_bytes(model)
    assert sizes["int8"] < 0.35 * sizes["stored"]
    assert sizes["int4"] < 0.7 * sizes["int8"]


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_backend_reasons_and_answers_with_them_and_says_so(untrained_tiny, precision) -> None:
    source = ModelSource(model=str(untrained_tiny), precision=precision)
    queries = OccupancyQueries.fake(shape=(128, 8, 128))
    stored = load_reasoner(source)
    assert "language weights" not in stored.info.extras
    wanted = stored.reason(queries).reasoning.token
    for kind, changed in (("int8", 42), ("int4", 36)):
        reasoner = load_reasoner(replace(source, language_weights=kind))
        assert reasoner.info.extras == {"language weights": f"{kind} in {changed} of 42 matrices"}
        token = reasoner.reason(queries).reasoning.validate().token
        assert 1e-5 < np.linalg.norm(token - wanted) / np.linalg.norm(wanted) < 2 * LARGEST_ERROR[kind]
        assert list(reasoner.answer(queries, "What is ahead?", 3))
