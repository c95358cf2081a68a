"""A small CLIP, from crops and captions to the distillation that it serves."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from sparseoccvla.errors import InputError
from sparseoccvla.training.config import ScheduleConfig, TeacherTraining, TrainingConfig
from sparseoccvla.training.crops import CropBatch, CropLoader, crop_batch, named_in
from sparseoccvla.training.distillation import Teacher, clip_pixels, teacher_card
from sparseoccvla.training.loop import Length, Loop
from sparseoccvla.training.losses import reduce_terms
from sparseoccvla.training.run import Run, train
from sparseoccvla.training.teacher_stage import (
    CropCheck,
    TeacherTask,
    build_clip,
    caption_tokenizer,
    contrast,
    embed,
    write_teacher,
)
from tests.nuscenes_root import global_from_base, sample_us
from tests.training_root import make_training_root, write_settings

torch.set_num_threads(1)
STAGE = TeacherTraining(
    schedule=ScheduleConfig(batch=2, learning_rate=3e-3, warmup_steps=2),
    crops=6, crop_px=16, patch_px=8, width=24, heads=2, layers=1, text_layers=1,
)  # fmt: skip
COLORS = {4: (30, 30, 200), 11: (90, 90, 90), 15: (40, 200, 40), 17: (250, 200, 120)}  # BGR


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that show the classes stored for them, and a red car 12 m ahead in each keyframe."""
    root = make_training_root(tmp_path_factory.mktemp("data") / "root")
    for file in (root / "semantics").rglob("*.png"):
        classes = cv2.resize(cv2.imread(str(file), cv2.IMREAD_UNCHANGED), (160, 90), interpolation=0)
        picture = np.array([COLORS.get(kind, (0, 0, 0)) for kind in range(18)], np.uint8)[classes]
        cv2.imwrite(str(root / "samples" / file.parent.name / f"{file.stem}.jpg"), picture)
    version = root / "v1.0-mini"
    instances = json.loads((version / "instance.json").read_text())
    (version / "instance.json").write_text(json.dumps([row | {"color": "red"} for row in instances]))
    boxes = json.loads((version / "sample_annotation.json").read_text())
    for index, row in enumerate(boxes):
        row["size"] = [4.0, 4.0, 1.6]
        row["translation"] = (global_from_base(sample_us(index)) @ [12.0, 0.0, 1.0, 1.0])[:3].tolist()
    (version / "sample_annotation.json").write_text(json.dumps(boxes))
    return root


def a_run(root: Path, out: Path, **changes: object) -> Run:
    config: TrainingConfig = replace(write_settings(root), teacher=STAGE, **changes)  # type: ignore[arg-type]
    return Run(config, "tiny.json", root, None, root / "cache", out)


@pytest.fixture
def task(root: Path, tmp_path: Path) -> tuple[TeacherTask, CropLoader]:
    run = a_run(root, tmp_path / "r")
    crops = run.crops(run.split("train"))
    captions = [caption for _, caption in crops.pairs(0, np.random.default_rng(0))]
    words = caption_tokenizer(captions, STAGE)
    torch.manual_seed(0)
    return TeacherTask(build_clip(STAGE, words), CropCheck(crops, words, 4)), CropLoader(crops, words, 0)


def fit(task: TeacherTask, batches: Iterable[CropBatch]) -> list[dict[str, torch.Tensor]]:
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    history = []
    for step, batch in enumerate(batches):
        loss, values = reduce_terms(task(batch, step), task.weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(values)
    return history


def test_losses_fall_on_one_batch_and_gradients_reach_every_parameter(
    task: tuple[TeacherTask, CropLoader],
) -> None:
    net, loader = task
    history = fit(net, [loader.batch([(0, 0), (1, 1)])] * 30)
    for name in ("crops", "patches"):
        assert history[-1][name] < 0.7 * history[0][name], name
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.slow
def test_a_wrong_caption_is_farther_than_the_right_one_after_a_short_training(
    task: tuple[TeacherTask, CropLoader],
) -> None:
    """Untrained it is chance: the control."""
    net, loader = task
    before = net.eval().validate()
    fit(net.train(), (loader.batch([(p, p % 9) for p in range(4 * s, 4 * s + 4)]) for s in range(60)))
    after = net.eval().validate()
    for by in ("crops", "patches"):
        assert before[f"name_by_{by}"] < before["name_most_frequent"] + 0.1
        assert after[f"name_by_{by}"] > after["name_most_frequent"] + 0.3
        assert after[f"caption_by_{by}"] > 3 * after["chance"]


def test_captions_name_class_color_and_distance(root: Path, tmp_path: Path) -> None:
    run = a_run(root, tmp_path / "r")
    crops = run.crops(run.split("train"))
    said = {caption for index in range(9) for _, caption in crops.pairs(index, np.random.default_rng(index))}
    assert "a red car, about 10 meters away" in said
    assert {named_in(caption) for caption in said} >= {"a red car", "driveable surface", "manmade"}
    assert not any("sky" in caption for caption in said)


def test_crops_depend_on_seed_and_place_only(task: tuple[TeacherTask, CropLoader]) -> None:
    loader = task[1]
    one, again, other = (loader.batch([(place, 3)]) for place in (5, 5, 6))
    assert torch.equal(one.images_rgb, again.images_rgb)
    assert torch.equal(one.ids, again.ids)
    assert not torch.equal(one.images_rgb, other.images_rgb)


def test_the_right_pairing_costs_least_and_equal_captions_cost_their_floor() -> None:
    scale = torch.tensor(50.0)
    right, wrong = (
        contrast(torch.eye(3), torch.eye(3), scale),
        contrast(torch.eye(3), torch.eye(3).roll(1, 0), scale),
    )
    assert right.divisor == 3
    assert right.total == pytest.approx(0, abs=1e-6)
    assert wrong.total == pytest.approx(3 * 50, rel=1e-3)
    twice = torch.eye(3)[[0, 0, 1]]
    assert contrast(7 * twice, twice, scale).total == pytest.approx(2 * np.log(2), abs=1e-3)


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_by_bit(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"checkpoint_minutes": 0.0, "validate_minutes": 60.0}
    train("teacher", a_run(root, tmp_path / "whole", **settings), Length(steps=4))
    step_once = Loop._train_step

    def fragile(self: Loop, batch: object, done: float) -> None:
        if self.step == 2:
            raise KilledError
        step_once(self, batch, done)

    monkeypatch.setattr(Loop, "_train_step", fragile)
    with pytest.raises(KilledError):
        train("teacher", a_run(root, tmp_path / "broken", **settings), Length(steps=4))
    monkeypatch.undo()
    half, _ = weights_of(tmp_path / "broken")
    train("teacher", a_run(root, tmp_path / "broken", **settings), Length(steps=4))
    (expected, step), (got, _) = weights_of(tmp_path / "whole"), weights_of(tmp_path / "broken")
    assert step == 4
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert not all(torch.equal(expected[name], half[name]) for name in expected)
    files = [tmp_path / name / "teacher" / "model.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


def weights_of(out: Path) -> tuple[dict[str, torch.Tensor], int]:
    state = torch.load(out / "checkpoints" / "teacher.pt", weights_only=True)
    return state["weights"], state["step"]


@pytest.mark.slow
def test_an_encoder_is_distilled_from_the_trained_teacher_and_its_card_says_so(
    root: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r"
    train("teacher", a_run(root, out), Length(steps=2))
    card = json.loads((out / "teacher" / "card.json").read_text())
    assert card["command"] == [
        "sparseoccvla train --stage teacher --config tiny.json --dataroot D --out R --steps 2"
    ]
    assert set(card["figures"]["teacher"]) >= {"caption_by_crops", "name_by_patches", "chance"}
    plain = a_run(root, out)
    train("encoder", plain, Length(steps=1))
    assert "distilled_from" not in model_card(out)
    (out / "checkpoints" / "encoder.pt").unlink()
    stage = replace(plain.config.encoder, teacher=str(out / "teacher"))
    train("encoder", a_run(root, out, encoder=stage), Length(steps=1))
    told = model_card(out)["distilled_from"]
    assert told["name"] == "teacher"
    assert told["card"] == card
    assert len(told["sha256"]) == 64
    assert str(tmp_path) not in json.dumps(told)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["distillation"] > 0 for line in lines if "distillation" in line] == [True]


def model_card(out: Path) -> dict:
    return json.loads((out / "model" / "manifest.json").read_text())["card"]


def test_the_folder_is_loaded_by_path_alone(task: tuple[TeacherTask, CropLoader], tmp_path: Path) -> None:
    net, loader = task
    folder = tmp_path / "teacher"
    write_teacher(folder, net.clip, loader._words, STAGE, {"name": "a card"})
    batch = loader.batch([(0, 2)])
    with torch.no_grad():
        expected = embed(net.clip.eval(), batch)
        clip = AutoModel.from_pretrained(folder)
        assert isinstance(clip, CLIPModel)
        got = embed(clip.eval(), batch)
        assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))
        # Patches of the frozen teacher are those of the trained model: nothing was made up while loading.
        maps = Teacher(folder)(batch.images_rgb[None].float())
        patches = net.clip.vision_model(pixel_values=clip_pixels(batch.images_rgb.float())).last_hidden_state
    assert maps.shape == (1, len(batch.ids), 24, 2, 2)
    assert torch.allclose(maps[0].flatten(2).transpose(1, 2), patches[:, 1:], atol=1e-5)
    words = AutoTokenizer.from_pretrained(folder)
    caption = "a red car, about 10 meters away"
    wanted = crop_batch([(np.zeros((16, 16, 3), np.uint8), caption)], loader._words).ids[0]
    assert words(caption, padding="max_length").input_ids == wanted.tolist()
    assert words.eos_token_id in wanted.tolist()
    assert words.decode(wanted, skip_special_tokens=True) == caption
    seen = AutoImageProcessor.from_pretrained(folder)(np.zeros((40, 30, 3), np.uint8), return_tensors="pt")
    assert seen["pixel_values"].shape == (1, 3, 16, 16)
    assert teacher_card(str(folder))["card"] == {"name": "a card"}
    assert teacher_card("openai/clip-vit-base-patch16") == {"name": "openai/clip-vit-base-patch16"}


def test_a_data_set_with_nothing_to_caption_is_refused(tmp_path: Path) -> None:
    bare = make_training_root(tmp_path / "bare", pixels=False)
    for file in (bare / "v1.0-mini").glob("sample_annotation.json"):
        file.write_text("[]")
    with pytest.raises(InputError, match="split train has nothing to caption"):
        train("teacher", a_run(bare, tmp_path / "r"), Length(steps=1))


def test_a_thing_that_pixels_do_not_show_is_not_spoken_of(root: Path, tmp_path: Path) -> None:
    run = a_run(root, tmp_path / "r")
    crops = run.crops(run.split("train"))
    shown = 0
    for index in range(9):
        named = [named_in(text) for _, text in crops.pairs(index, np.random.default_rng(index))]
        [file] = [name for name in crops._cache.source(index)[0] if "CAM_FRONT__" in name]
        stored = root / file.replace("samples", "semantics").replace(".jpg", ".png")
        car = bool((cv2.imread(str(stored), cv2.IMREAD_UNCHANGED) == 4).any())
        assert ("a red car" in named) == car
        shown += car
    assert 0 < shown < 9


def test_a_teacher_whose_weights_are_of_something_else_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    words = CLIPTextConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    CLIPTextModel(words).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no CLIP vision model could be loaded from"):
        Teacher(tmp_path)
