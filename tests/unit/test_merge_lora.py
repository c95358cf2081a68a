"""Adapters are folded into the matrices before export: the same numbers, and nothing of them left."""

import torch
from torch import nn

from sparseoccvla.language import LanguageConfig, build_language_model, merge_lora

torch.set_num_threads(1)


def test_merged_adapters_change_nothing_but_are_gone() -> None:
    torch.manual_seed(0)
    config = LanguageConfig(
        width=32, layers=2, heads=2, ffn_width=32, vocabulary=64, dtype="float32", lora_rank=4
    )  # fmt: skip
    model = build_language_model(config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, so an adapter that is lost would not be seen
            nn.init.normal_(parameter)
    embeddings = torch.randn(1, 5, 32)
    with torch.no_grad():
        before = model(inputs_embeds=embeddings).logits
        adapters = [p for n, p in model.named_parameters() if "lora_B" in n]
        assert len(adapters) == 2 * 4
        merge_lora(model)
        after = model(inputs_embeds=embeddings).logits
        plain = build_language_model(config).eval()(inputs_embeds=embeddings).logits
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert (plain - before).abs().max() > 0.01
