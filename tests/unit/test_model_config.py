"""config.json, weights files, prompts, and the account of memory."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from sparseoccvla.cli import app
from sparseoccvla.config import ConfigError
from sparseoccvla.encoder import EncoderConfig
from sparseoccvla.errors import InputError
from sparseoccvla.footprint import GIB, check_fits, footprint, language_bytes
from sparseoccvla.language import LanguageConfig, build_language_model
from sparseoccvla.model import ModelConfig, SparseOccVLA, read_config, write_config
from sparseoccvla.planner import Planner, PlannerConfig
from sparseoccvla.prompts import Turn, plain_prompt, prompt, vicuna_prompt
from sparseoccvla.reasoner import Reasoner, ReasonerConfig
from sparseoccvla.runtime.manifest import ModelError, read_manifest
from sparseoccvla.weights import load_weights, save_weights, stored_tensors
from tools.make_untrained_models import TINY, write_model

torch.set_num_threads(1)
TINY_LANGUAGE = LanguageConfig(
    width=32, layers=1, heads=2, ffn_width=48, vocabulary=64, tied=True, dtype="float32", lora_rank=0
)


def shipped(name: str) -> ModelConfig:
    return read_config(read_manifest(name).file("config.json"))


def test_a_configuration_survives_its_file(tmp_path: Path) -> None:
    for name in ("tiny", "nuscenes_r50_vicuna7b"):
        config = shipped(name)
        write_config(tmp_path / "config.json", config)
        assert read_config(tmp_path / "config.json") == config


def test_the_paper_configuration_is_the_papers() -> None:
    config = shipped("nuscenes_r50_vicuna7b")
    assert config.encoder == EncoderConfig(), "nothing that tiny adds is on, and no import quirk"
    language = config.reasoner.language
    assert (language.width, language.layers, language.lora_rank, language.lora_alpha) == (4096, 32, 128, 16)
    assert language.lora_targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    assert config.planner == PlannerConfig()


def test_the_tiny_model_is_as_small_as_the_design_says() -> None:
    model = SparseOccVLA(shipped("tiny"))
    for stage in (model.encoder, model.reasoner, model.planner):
        assert 2 * sum(p.numel() for p in stage.parameters()) < 15e6, "bytes in half precision"


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"encoder": {"widht": 3}}', r"encoder has widht, wanted only image_size_px"),
        ('{"encoder": {"width": "3"}}', r"encoder: width is '3', wanted a int"),
        ('{"encoder": {"image_size_px": [1]}}', r"image_size_px is \[1\], wanted 2 values"),
        ('{"encoder": {"width": 250}}', r"encoder: width 250 is not a multiple of 4 groups"),
        ('{"planner": {"query_width": 128}}', r"planner.query_width is 128, the encoder's width is 256"),
        ('{"planner": {"token_width": 128}}', r"planner.token_width is 128, the language model is 4096 wide"),
        ("{", r"is not JSON"),
    ],
)
def test_a_wrong_configuration_says_where(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(InputError, match=text):
        read_config(path)


def test_config_errors_are_config_errors(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"encoder": 3}')
    with pytest.raises(ConfigError, match="encoder is 3, wanted a mapping with fields of EncoderConfig"):
        read_config(path)


def small_planner(seed: int) -> Planner:
    torch.manual_seed(seed)
    return Planner(PlannerConfig(query_width=16, token_width=24, width=32, heads=4, ffn_width=32))


def test_weights_survive_their_file(tmp_path: Path) -> None:
    one, other = small_planner(0), small_planner(1)
    save_weights(one, tmp_path / "planner.safetensors", torch.float32)
    load_weights(other, tmp_path / "planner.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_tied_word_embeddings_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    net = Reasoner(ReasonerConfig(query_width=16, language=TINY_LANGUAGE))
    assert "language.lm_head.weight" not in stored_tensors(net)
    save_weights(net, tmp_path / "r.safetensors")
    load_weights(net, tmp_path / "r.safetensors")
    assert net.language.get_output_embeddings().weight is net.language.get_input_embeddings().weight


def test_of_a_language_model_from_a_folder_only_the_adapters_are_stored(tmp_path: Path) -> None:
    build_language_model(TINY_LANGUAGE).save_pretrained(tmp_path)
    language = replace(TINY_LANGUAGE, path=str(tmp_path), lora_rank=2)
    names = list(stored_tensors(Reasoner(ReasonerConfig(query_width=16, language=language))))
    assert any(name.startswith("connector.") for name in names)
    assert [n for n in names if n.startswith("language.") and "lora_" not in n] == []


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "planner.safetensors"
    save_weights(small_planner(0), path)
    other = Planner(PlannerConfig(query_width=16, token_width=24, width=64, heads=4, ffn_width=32))
    with pytest.raises(ModelError, match=r"does not fit its config.json: 0 missing .* of another shape"):
        load_weights(other, path)
    path.write_bytes(b"x")
    with pytest.raises(ModelError, match="is not a safetensors file"):
        load_weights(other, path)


def test_an_account_counts_what_a_built_language_model_has() -> None:
    for language in (TINY_LANGUAGE, replace(TINY_LANGUAGE, tied=False, lora_rank=4)):
        built = sum(p.numel() * p.element_size() for p in build_language_model(language).parameters())
        assert language_bytes(language) == built


def test_vicuna_takes_seven_billion_weights_and_is_not_loaded_to_know_it() -> None:
    assert language_bytes(LanguageConfig(lora_rank=0)) / 2 == pytest.approx(6.738e9, rel=1e-3)


def test_what_does_not_fit_is_refused_before_loading() -> None:
    parts = footprint(shipped("nuscenes_r50_vicuna7b"))
    with pytest.raises(
        InputError, match=r"profile 16gb has 16 GiB; the largest part is language model .*off"
    ):
        check_fits(parts, "16gb")
    check_fits(parts, "24gb")
    check_fits(footprint(shipped("nuscenes_r50_vicuna7b"), reasoner=False), "16gb")
    with pytest.raises(InputError, match="profile is '8gb', wanted one of 16gb, 24gb, 48gb"):
        check_fits(parts, "8gb")


def test_the_memory_verb_prints_bytes_of_each_part() -> None:
    result = CliRunner().invoke(app, ["memory", "--model", "tiny", "--profile", "16gb"])
    assert result.exit_code == 0, result.output
    account = json.loads(result.stdout)
    assert account["bytes"] == sum(part["size_bytes"] for part in account["parts"]) < 4 * GIB


def turns_of(messages: list[list[str]]) -> list[Turn]:
    turns: list[Turn] = []
    for who, text in messages:
        turns = [*turns, Turn(text)] if who == "u" else [*turns[:-1], replace(turns[-1], answer=text)]
    return turns


def test_vicuna_prompts_are_the_recorded_ones(real_data: Path) -> None:
    path = real_data.parent / "oracles" / "vicuna_prompts.json"
    if not path.is_file():
        pytest.skip(f"no recorded prompts beside the real data ({path})")
    cases = json.loads(path.read_text())
    assert cases
    for case in cases:
        assert vicuna_prompt(turns_of(case["messages"])) == case["prompt"]


def test_prompt_styles() -> None:
    turns = [Turn("a?", "b"), Turn("c?")]
    assert plain_prompt(turns) == "Q: a? A: b</s>Q: c? A:"
    assert prompt("vicuna", turns).endswith("USER: a? ASSISTANT: b</s>USER: c? ASSISTANT:")
    with pytest.raises(ValueError, match="prompt style is 'chatml'"):
        prompt("chatml", turns)


def test_untrained_folders_are_written_and_trained_ones_left_alone(tmp_path):
    for kept in (False, True):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / "config.json").write_text("mine")
        if kept:
            (folder / "encoder.safetensors").touch()
        write_model(folder, TINY, "tests")
        assert ((folder / "config.json").read_text() == "mine") == kept
