"""Connector, prompt order, one prefill, answers, forecaster, and language models from a folder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from sparseoccvla.contracts import MOVABLE_CLASSES
from sparseoccvla.errors import InputError
from sparseoccvla.forecaster import Present
from sparseoccvla.language import (
    LanguageConfig,
    build_language_model,
    byte_tokenizer_json,
    llama_config,
    load_tokenizer,
)
from sparseoccvla.reasoner import Reasoner, ReasonerConfig, morton_order
from sparseoccvla.training.losses import NO_TEXT, reduce_terms, text_term

torch.set_num_threads(1)
TOY = LanguageConfig(
    width=32, layers=2, heads=4, ffn_width=48, vocabulary=258, tied=True, dtype="float32", lora_rank=0
)
CONFIG = ReasonerConfig(query_width=16, language=TOY, prompt_style="plain", forecast_point_width=8)
QUERIES, POINTS = 7, 5


def network(config: ReasonerConfig = CONFIG) -> Reasoner:
    torch.manual_seed(0)
    return Reasoner(config).eval()


def scene(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, QUERIES, 16, generator=generator),
        torch.randn(batch, QUERIES, POINTS, 3, generator=generator) * 15,
    )


def present_at(points_m: torch.Tensor) -> Present:
    generator = torch.Generator().manual_seed(5)
    shape = points_m.shape[:3]
    labels = torch.randint(17, shape, generator=generator, dtype=torch.int32)
    return Present(points_m, labels, torch.rand(shape, generator=generator))


IDS = torch.tensor([5, 9, 33, 70])


def test_the_prompt_is_occupancy_then_global_then_text_then_the_reasoning_token() -> None:
    net, (features, points_m) = network(), scene()
    seen: list[torch.Tensor] = []
    net.language.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    net.prefill(features, points_m, IDS)
    assert len(seen) == 1, "one prefill"
    embeddings = seen[0]
    assert embeddings.shape == (2, QUERIES + 12 + len(IDS) + 1, 32)
    assert torch.equal(embeddings[:, :QUERIES], net.connector(features, points_m))
    assert torch.equal(embeddings[0, QUERIES : QUERIES + 12], net.global_tokens)
    assert torch.equal(embeddings[0, QUERIES + 12 : -1], net.embed(IDS))
    assert torch.equal(embeddings[1, -1], net.reasoning_token)


def test_the_reasoning_token_hears_queries_and_text() -> None:
    net, (features, points_m) = network(), scene()
    token = net.prefill(features, points_m, IDS).reasoning
    assert not torch.allclose(token, net.prefill(-features, points_m, IDS).reasoning, atol=1e-3)
    assert not torch.equal(token, net.prefill(features, points_m, IDS + 1).reasoning)


def test_answers_with_a_cache_equal_answers_without() -> None:
    net, (features, points_m) = network(), scene(batch=1)
    quick = list(net.generate(features, points_m, IDS, 6, end_id=-1))
    ids = IDS.tolist()
    for _ in range(6):
        text = torch.tensor([ids])
        logits = net.text_logits(features, points_m, text, torch.ones_like(text))
        ids.append(int(logits[0, -1].argmax()))
    assert quick == ids[len(IDS) :]


def test_decoding_stops_at_the_end_mark_and_when_closed() -> None:
    net, (features, points_m) = network(), scene(batch=1)
    first = next(net.generate(features, points_m, IDS, 6, end_id=-1))
    assert list(net.generate(features, points_m, IDS, 6, end_id=first)) == []
    calls: list[int] = []
    net.language.register_forward_pre_hook(lambda *_: calls.append(1))
    pieces = net.generate(features, points_m, IDS, 6, end_id=-1)
    next(pieces)
    pieces.close()
    assert len(calls) == 1


def test_padding_changes_nothing() -> None:
    net, (features, points_m) = network(), scene(batch=1)
    plain = net.text_logits(features, points_m, IDS[None], torch.ones(1, 4, dtype=torch.long))
    padded_ids = torch.cat([IDS, torch.zeros(3, dtype=torch.long)])[None]
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    padded = net.text_logits(features, points_m, padded_ids, mask)
    assert torch.allclose(plain, padded[:, :4], atol=1e-5)


def test_morton_order_keeps_neighbors_together_and_outputs_in_the_encoders_order() -> None:
    grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"), -1).view(
        1, 64, 1, 2
    )
    points_m = torch.cat([grid * 10 - 35, torch.zeros(1, 64, 1, 1)], dim=-1)
    shuffled = points_m[:, torch.randperm(64, generator=torch.Generator().manual_seed(0))]

    def walked(order: torch.Tensor) -> float:
        centers = shuffled[0, order[0], 0]
        return (centers[1:] - centers[:-1]).norm(dim=-1).sum().item()

    order = morton_order(shuffled)
    assert sorted(order[0].tolist()) == list(range(64))
    assert walked(order) < 0.5 * walked(torch.arange(64)[None])

    net, (features, points) = network(replace(CONFIG, query_order="morton")), scene()
    hidden = net.prefill(features, points, IDS).occupancy
    again = torch.randperm(QUERIES, generator=torch.Generator().manual_seed(3))
    permuted = net.prefill(features[:, again], points[:, again], IDS)
    assert torch.allclose(permuted.occupancy, hidden[:, again], atol=1e-5), "any order in, the same out"


def test_the_forecast_keeps_shapes_and_uses_the_language_models_tokens() -> None:
    net, (features, points_m) = network(), scene()
    tokens = net.prefill(features, points_m, IDS).occupancy
    steps = net.forecast(features, present_at(points_m), tokens)
    assert [(s.points_m.shape, s.logits.shape) for s in steps] == [((2, 7, 5, 3), (2, 7, 5, 17))] * 3
    other = net.forecast(features, present_at(points_m), tokens + 0.5)
    assert not torch.equal(steps[0].logits, other[0].logits)


@pytest.mark.parametrize("free", [False, True], ids=["sigmoid", "softmax"])
def test_a_forecast_from_the_present_starts_as_the_present(free: bool) -> None:
    """Before training every point keeps its class, surest where the encoder was."""
    net = network(replace(CONFIG, forecast_from_present=True, forecast_free_class=free))
    features, points_m = scene()
    present = present_at(points_m)
    steps = net.forecast(features, present, torch.zeros(2, QUERIES, 32))
    for step in steps:
        scores = step.logits.softmax(dim=-1)[..., :17] if free else step.logits.sigmoid()
        best = scores.max(dim=-1)
        sure = present.scores > 0.1
        assert torch.equal(best.indices[sure].int(), present.labels[sure])
        assert ((best.values - present.scores)[sure].abs() < 0.05).all()
        assert ((step.points_m - points_m).norm(dim=-1) < 0.2).all()
    other = net.forecast(
        features, present._replace(labels=(present.labels + 1) % 17), torch.zeros(2, QUERIES, 32)
    )
    assert not torch.allclose(steps[0].logits, other[0].logits)


def test_what_can_not_move_stays_where_and_what_it_is() -> None:
    net = network(replace(CONFIG, forecast_from_present=True))
    for parameter in net.forecaster.head.parameters():
        torch.nn.init.normal_(parameter)
    features, points_m = scene()
    present = present_at(points_m)
    can_move = torch.isin(present.labels, torch.tensor(MOVABLE_CLASSES, dtype=torch.int32))
    steps = net.forecast(features, present, torch.randn(2, QUERIES, 32))
    for step in steps:
        assert torch.equal(step.points_m[~can_move], points_m[~can_move])
        assert ((step.points_m - points_m).norm(dim=-1)[can_move] > 0).all()
        assert torch.equal(step.logits, steps[0].logits)
        best = step.logits.sigmoid().max(dim=-1)
        sure = present.scores > 0.1
        assert torch.equal(best.indices[sure].int(), present.labels[sure])


def test_leaving_out_what_can_not_move_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network(replace(CONFIG, forecast_from_present=True))
    torch.nn.init.normal_(net.forecaster.head.out.weight)
    torch.nn.init.normal_(net.forecaster.head.move.weight)
    features, points_m = scene()
    present, tokens = present_at(points_m), torch.randn(*features.shape[:2], CONFIG.language.width)
    found = []
    for whole in (False, True):  # as a CPU works, and as what is exported, compiled or recorded does
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda whole=whole: whole)
        net.zero_grad()
        steps = net.forecast(features, present, tokens)
        torch.stack([step.points_m for step in steps]).square().sum().backward()
        gradients = {n: p.grad for n, p in net.forecaster.named_parameters() if p.grad is not None}
        found.append((steps, gradients))
    (some, few), (every, all_) = found
    assert (some[-1].points_m - points_m).abs().max() > 0.1
    for one, other in zip(some, every, strict=True):
        torch.testing.assert_close(one.points_m, other.points_m, rtol=1e-5, atol=1e-5)
        assert torch.equal(one.logits, other.logits)
    assert few.keys() == all_.keys()
    for name, gradient in few.items():
        torch.testing.assert_close(gradient, all_[name], rtol=1e-3, atol=1e-3, msg=name)


def test_one_head_serves_all_steps() -> None:
    net, (features, points_m) = network(), scene()
    calls: list[int] = []
    net.forecaster.head.register_forward_hook(lambda *_: calls.append(1))
    net.forecast(features, present_at(points_m), torch.zeros(2, QUERIES, 32))
    assert len(calls) == 3


def loss_of(net: Reasoner) -> torch.Tensor:
    features, points_m = scene()
    prefill = net.prefill(features, points_m, IDS)
    steps = net.forecast(features, present_at(points_m), prefill.occupancy)
    ids = torch.tensor([[NO_TEXT, 9, 33, 70], [NO_TEXT, 3, 4, NO_TEXT]])
    logits = net.text_logits(features, points_m, ids.clamp(min=0), torch.ones_like(ids))
    wanted = torch.ones_like(prefill.reasoning)
    other = (prefill.reasoning - wanted).square().mean() + sum(
        s.points_m.square().mean() / 100 + s.logits.square().mean() for s in steps
    )
    return reduce_terms({"text": text_term(logits, ids)}, {})[0] + other


def test_gradients_reach_every_parameter_and_the_loss_falls() -> None:
    net = network().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    losses = []
    for step in range(30):
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            dead = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
            assert not dead
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def stand_in(folder: Path) -> LanguageConfig:
    """A Vicuna-shaped model, small, as `save_pretrained` writes one; untied and half precision."""
    sizes = replace(TOY, tied=False, dtype="float16")
    torch.manual_seed(3)
    LlamaForCausalLM(llama_config(sizes)).half().save_pretrained(folder)
    (folder / "bytes.json").write_text(byte_tokenizer_json())
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bytes.json"), eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.save_pretrained(folder)
    return replace(sizes, path=str(folder), lora_rank=4, lora_alpha=4)


def test_a_vicuna_shaped_stand_in_loads_through_the_same_code(tmp_path: Path) -> None:
    language = stand_in(tmp_path)
    net = network(replace(CONFIG, language=language, prompt_style="vicuna"))
    # Half precision is for a GPU; on a CPU the stand-in computes in fp32.
    net.language.float()
    features, points_m = scene()
    ids = load_tokenizer(language, None)("What is ahead?", return_tensors="pt").input_ids[0]
    assert net.prefill(features, points_m, ids).reasoning.shape == (2, 32)
    assert type(net.language) is LlamaForCausalLM, "LoRA leaves the class as it was"
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path), PreTrainedTokenizerFast)


def test_lora_trains_its_adapters_in_fp32_and_nothing_else(tmp_path: Path) -> None:
    model = build_language_model(stand_in(tmp_path))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 4, "two matrices for q, k, v, o of two layers"
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trained.items())
    frozen = [p for n, p in model.named_parameters() if "lora_" not in n]
    assert all(p.dtype == torch.float16 and not p.requires_grad for p in frozen)


def test_gradients_reach_the_adapters_through_the_prompt(tmp_path: Path) -> None:
    net = network(replace(CONFIG, language=stand_in(tmp_path))).train()
    net.language.float()
    loss_of(net).backward()
    adapters = {n: p for n, p in net.named_parameters() if "lora_B" in n}
    assert adapters
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapters.values())


def test_a_folder_without_a_language_model_or_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no causal language model could be loaded from"):
        build_language_model(replace(TOY, path=str(tmp_path)))
    language = stand_in(tmp_path)
    with pytest.raises(InputError, match="is 32 wide, the configuration says 64"):
        build_language_model(replace(language, width=64))


def test_the_byte_tokenizer_returns_any_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer_json())
    tokenizer = load_tokenizer(TOY, tmp_path / "tokenizer.json")
    text = "Bremsen? Ja – größer als 3 m/s²."
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer) == TOY.vocabulary
