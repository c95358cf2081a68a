"""Training stages on a small data set: what they promise, not how good the result is."""

import json
import math
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sparseoccvla.anchors import analytic_anchors
from sparseoccvla.config import ConfigError, ModelSource
from sparseoccvla.contracts import NUM_CLASSES
from sparseoccvla.data.cache import SampleCache
from sparseoccvla.data.edits import EditedKeyframe
from sparseoccvla.encoder import Encoder
from sparseoccvla.errors import InputError
from sparseoccvla.forecaster import Present
from sparseoccvla.language import END_MARK, load_tokenizer
from sparseoccvla.model import SparseOccVLA
from sparseoccvla.prompts import PLANNING_QUESTION, Turn, prompt
from sparseoccvla.reasoner import Reasoner
from sparseoccvla.runtime.load import load_encoder, load_planner, load_reasoner
from sparseoccvla.runtime.manifest import read_manifest
from sparseoccvla.training.batches import made_ahead, made_by_workers, network_inputs, places_of_step
from sparseoccvla.training.config import PixelTraining, ScheduleConfig, TrainingConfig, read_training_config
from sparseoccvla.training.driving import DrivingSampler, driving_terms, turned
from sparseoccvla.training.encoder_stage import EncoderTask, start_at
from sparseoccvla.training.joint_stage import JointLoader, JointTask
from sparseoccvla.training.loop import Length, Loop
from sparseoccvla.training.losses import IGNORE, NO_TEXT, reduce_terms
from sparseoccvla.training.packing import Texts, answer_logits, packed_pass
from sparseoccvla.training.pixel_stage import PixelCheck, PixelTask
from sparseoccvla.training.pixels import stored_pixels
from sparseoccvla.training.run import Run, model_config, train
from sparseoccvla.training.schedule import rate_at
from sparseoccvla.training.signs import failure_signs
from sparseoccvla.training.tokenizer import texts_of, train_tokenizer
from tests.training_root import MODEL, SIZE, make_training_root, write_settings
from tools.make_untrained_models import TINY

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_training_root(tmp_path_factory.mktemp("data") / "root")


def a_run(root: Path, out: Path, config: TrainingConfig | None = None) -> Run:
    return Run(config or write_settings(root), "tiny.json", root, None, root / "cache", out)


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return a_run(root, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def cache(run: Run) -> SampleCache:
    return run.split("train")


@pytest.fixture(scope="module")
def texts(cache: SampleCache, tmp_path_factory: pytest.TempPathFactory) -> Texts:
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    file.write_text(train_tokenizer(texts_of(cache, "plain"), 320))
    return Texts(load_tokenizer(MODEL.reasoner.language, file), "plain")


@pytest.fixture
def joint(run: Run, cache: SampleCache, texts: Texts) -> tuple[JointTask, JointLoader]:
    """Every loss term there is."""
    torch.manual_seed(0)
    model = SparseOccVLA(run.sizes)
    anchors_m = torch.from_numpy(analytic_anchors().reshape(18, 6, 2))
    task = JointTask(model, run.config, anchors_m, *[None] * 3)  # type: ignore[arg-type]
    sampler = DrivingSampler(cache, texts, run.config.planning.driving, 0)
    return task, JointLoader(run.scenes(cache), sampler)


def let_everything_move(task: JointTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """The few points that an untrained encoder calls movable lie outside the grid."""
    monkeypatch.setattr("sparseoccvla.training.losses.MOVABLE_CLASSES", tuple(range(NUM_CLASSES)))
    monkeypatch.setattr(task.model.reasoner.forecaster.head, "can_move", torch.ones(NUM_CLASSES))
    driving = task.config.planning.driving
    driving = replace(driving, occupancy=replace(driving.occupancy, movable_reach_m=1000.0))
    task.config = replace(task.config, planning=replace(task.config.planning, driving=driving))


@pytest.mark.slow
def test_losses_fall_on_one_batch(
    joint: tuple[JointTask, JointLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, loader = joint
    let_everything_move(task, monkeypatch)
    batch = loader.batch([(0, 1), (1, 2)])  # their whole future is known
    optimizer = torch.optim.AdamW(task.parameters(), lr=3e-3)
    history = []
    for _ in range(30):
        loss, values = reduce_terms(task(batch, 0), task.weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(values)
    for name in ("points_1", "classes_1", "auxiliary_classes", "auxiliary_depth", "text", "score", "path"):
        assert history[-1][name] < 0.9 * history[0][name], name
    assert history[-1]["forecast_points_0"] < history[0]["forecast_points_0"]


def test_gradients_reach_every_parameter(
    joint: tuple[JointTask, JointLoader], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, loader = joint
    let_everything_move(task, monkeypatch)
    driving = replace(task.config.planning.driving, null_share=0.5, stale_share=0.3)
    task.config = replace(task.config, planning=replace(task.config.planning, driving=driving))
    for step in range(4):
        places = places_of_step(step, 2, 9, 0)
        reduce_terms(task(loader.batch(places), step), task.weights)[0].backward()
    without = [name for name, p in task.named_parameters() if p.grad is None or not (p.grad != 0).any()]
    assert [name for name in without if "null" not in name] == []


def test_the_encoder_learns_from_a_teacher_that_itself_stays(
    run: Run, cache: SampleCache, tmp_path: Path
) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    clip = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(clip).save_pretrained(tmp_path / "clip")
    stage = replace(run.config.encoder, teacher=str(tmp_path / "clip"))
    torch.manual_seed(0)
    task = EncoderTask(Encoder(MODEL.encoder), stage, 0, None)  # type: ignore[arg-type]
    term = task(run.scenes(cache).batch([(0, 1), (1, 2)]), 0)["distillation"]
    (term.total / term.divisor).backward()
    grad = task.encoder.backbone.lateral[0].weight.grad
    assert grad is not None
    assert grad.abs().sum() > 0
    assert all(p.grad is None for p in task.teacher.parameters())
    with pytest.raises(InputError, match="no CLIP vision model"):
        EncoderTask(Encoder(MODEL.encoder), replace(stage, teacher=str(tmp_path)), 0, None)  # type: ignore[arg-type]


def test_planner_and_language_model_reach_the_encoder(joint: tuple[JointTask, JointLoader]) -> None:
    task, loader = joint
    batch = loader.batch([(0, 1), (1, 2)])  # their whole future is known
    for name in ("text", "score", "path"):
        task.zero_grad()
        term = task(batch, 0)[name]
        (term.total / term.divisor.clamp(min=1)).backward()
        grad = task.model.encoder.backbone.lateral[0].weight.grad
        assert grad is not None, name
        if name != "score":  # T_r may be the null token for both
            assert grad.abs().sum() > 0, name


def test_a_packed_question_is_answered_as_if_it_were_asked_alone(texts: Texts) -> None:
    torch.manual_seed(0)
    reasoner = Reasoner(MODEL.reasoner).eval()
    features, points_m = torch.randn(2, 8, 16), torch.randn(2, 8, 32, 3) * 10
    said = [("Is the number odd?", "yes", True), ("What is there?", "3 blocks on a road.", False)]
    pack = texts.pack([said, said[1:]])
    with torch.no_grad():
        together = packed_pass(reasoner, features, points_m, pack)
        alone = reasoner.prefill(features, points_m, torch.tensor(texts.planning))
        assert torch.allclose(together.prefill.reasoning, alone.reasoning, atol=1e-5)
        assert torch.allclose(together.prefill.occupancy, alone.occupancy, atol=1e-5)
        logits, wanted = answer_logits(reasoner, together, pack)
        whole = torch.tensor([texts.ids(prompt("plain", [Turn("Is the number odd?", "yes")]))])
        open_length = len(texts.ids(prompt("plain", [Turn("Is the number odd?")])))
        expected = reasoner.text_logits(features[:1], points_m[:1], whole, torch.ones_like(whole))
    answer = whole[0, open_length:]
    assert wanted[: len(answer)].tolist() == answer.tolist()
    assert answer[-1] == texts.end_id
    assert torch.allclose(logits[: len(answer)], expected[0, open_length - 1 : -1], atol=1e-5)
    assert not torch.allclose(logits[: len(answer)], expected[0, open_length:], atol=1e-2)


def test_training_sees_what_the_live_stack_sees(run: Run, cache: SampleCache) -> None:
    """The same history and projections as ring buffer and backend, frame after frame."""
    from sparseoccvla.config import MemoryConfig
    from sparseoccvla.contracts import StageInfo
    from sparseoccvla.memory import FeatureMemory
    from sparseoccvla.runtime.torch_backend import TorchEncoder

    torch.manual_seed(0)
    net = Encoder(MODEL.encoder).eval()
    backend = TorchEncoder(net, StageInfo("encoder", "", "", "", False, "", "torch", ""), half=False)
    memory: FeatureMemory = FeatureMemory(MemoryConfig(), 2)
    for index in range(3):
        [seen] = cache.history(index, 1)
        assert seen is not None
        memory.add(seen.t0_ns, backend.extract(seen))
        live = backend.decode(memory.select(seen.t0_ns)).queries
        inputs = network_inputs(cache.history(index, 2), net.config.repeat_history)
        with torch.no_grad():
            trained = net(inputs.images_rgb[None].float(), *(part[None] for part in inputs[1:]))
        assert np.allclose(live.features, trained.features[0], atol=1e-4)
        assert np.allclose(live.points_base_m, trained.points_m[-1][0], atol=1e-4)
    blind = inputs._replace(valid=torch.tensor([[1.0] * 6, [0.0] * 6]))
    with torch.no_grad():
        other = net(blind.images_rgb[None].float(), *(part[None] for part in blind[1:]))
    assert not np.allclose(live.features, other.features[0], atol=1e-4)


def test_pixels_follow_the_augmented_picture(run: Run, cache: SampleCache) -> None:
    """A mirrored picture has mirrored labels; a plain one those of the file."""
    from sparseoccvla.data.augment import AugmentationConfig

    still = {"zoom_low": 1.0, "zoom_high": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    [plain] = cache.history(3, 1)
    assert plain is not None
    expected = stored_pixels(run.dataroot, *cache.source(3), plain, 8)
    assert expected is not None
    assert set(expected[0].unique().tolist()) >= {11, 17}
    mirrored = 0
    for seed in range(4):
        rng = np.random.default_rng(seed)
        [seen] = cache.history(3, 1, AugmentationConfig(**still, mirror=True), rng)
        assert seen is not None
        got = stored_pixels(run.dataroot, *cache.source(3), seen, 8)
        assert got is not None
        for camera in range(6):
            same = torch.equal(got[0][camera], expected[0][camera])
            flipped = torch.equal(got[0][camera].flip(-1), expected[0][camera])
            assert same or flipped
            mirrored += not same
    assert mirrored > 4


def test_a_data_set_without_pixels_teaches_from_its_voxels(tmp_path: Path) -> None:
    bare = make_training_root(tmp_path / "bare", pixels=False)
    run = a_run(bare, tmp_path / "run", write_settings(tmp_path))
    batch = run.scenes(run.split("train")).batch([(0, 4)])
    known = batch.pixel_classes != IGNORE
    assert 0.02 < known.float().mean() < 0.9
    assert (batch.pixel_depth_m[known] > 0).all()


def test_processes_share_a_step_and_an_epoch_sees_every_sample_once() -> None:
    whole = [places_of_step(step, 4, 10, 7) for step in range(5)]
    for step, places in enumerate(whole):
        halves = [places_of_step(step, 4, 10, 7, process, 2) for process in range(2)]
        assert halves[0] + halves[1] == places
    seen = [sample for places in whole for _, sample in places]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.parametrize("made", [made_ahead, made_by_workers])
def test_batches_come_in_order_from_any_step_on(made: Any) -> None:
    batches = made(lambda step: step * step, 3, 2)
    assert [next(batches) for _ in range(4)] == [9, 16, 25, 36]


def test_the_rate_warms_up_and_ends_low() -> None:
    schedule = ScheduleConfig(learning_rate=1.0, warmup_steps=10, last_rate=0.1)
    assert rate_at(schedule, 0, 0.0) == pytest.approx(0.1)
    assert rate_at(schedule, 50, 0.0) == pytest.approx(1.0)
    assert rate_at(schedule, 50, 0.5) == pytest.approx(0.55)
    assert rate_at(schedule, 50, 1.0) == pytest.approx(0.1)
    with_clock, with_steps = Length(minutes=2), Length(steps=10)
    assert with_clock.share_done(9, 60.0) == with_steps.share_done(5, 1e9) == 0.5


def test_learned_queries_start_where_voxels_are() -> None:
    net = Encoder(MODEL.encoder)
    voxels_m = torch.tensor([[10.0, 5.0, 0.2], [-20.0, 8.0, 0.2], [0.0, -30.0, 3.0], [5.0, 0.0, 0.2]])
    start_at(net, voxels_m.repeat(50, 1), 1.5, seed=0)
    start_m = net.initial_points.detach() * net.extent_m + net.low_m
    assert torch.allclose(start_m[start_m[:, 0].argsort()], voxels_m[voxels_m[:, 0].argsort()], atol=1e-3)
    points_m = net.layers[-1].offsets[-1].bias.detach().view(-1, 3) * net.config.offset_scale
    assert points_m[:, :2].std() == pytest.approx(1.5, rel=0.4)


def test_the_tokenizer_reads_every_text_back(cache: SampleCache, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(train_tokenizer(texts_of(cache, "plain"), 320))
    assert file.read_text() == train_tokenizer(texts_of(cache, "plain"), 320)
    words = load_tokenizer(MODEL.reasoner.language, file)
    for text in (prompt("plain", [Turn(PLANNING_QUESTION)]), "Zürich: 3 blocks, 80 % \u2713"):
        assert words.decode(words(text).input_ids) == text
    assert words("yes" + END_MARK).input_ids[-1] == words.eos_token_id
    seen = len(words("What is there? 3 blocks on a road.").input_ids)
    assert seen < len("What is there? 3 blocks on a road.") / 2  # words were learned


class KilledError(Exception):
    """Stands for a kill in the middle of a run."""


def weights_after(out: Path) -> dict[str, torch.Tensor]:
    state = torch.load(out / "checkpoints" / "encoder.pt", weights_only=True)
    return {**state["weights"], "step": torch.tensor(state["step"])}


@pytest.mark.slow
@pytest.mark.parametrize(("share", "killed_in"), [(0.0, "encoder"), (0.5, "pixels"), (0.5, "encoder")])
def test_a_killed_run_goes_on_bit_by_bit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, killed_in: str
) -> None:
    config = replace(write_settings(root), checkpoint_minutes=0.0, validate_minutes=60.0)
    pixels = replace(config.encoder.pixels, share=share, schedule=config.encoder.schedule)
    config = replace(config, encoder=replace(config.encoder, pixels=pixels))
    whole, broken = a_run(root, tmp_path / "whole", config), a_run(root, tmp_path / "broken", config)
    train("encoder", whole, Length(steps=6))
    step_once = Loop._train_step

    def fragile(self: Loop, batch: object, done: float) -> None:
        if self.stage == killed_in and self.step == 2:
            raise KilledError
        step_once(self, batch, done)

    monkeypatch.setattr(Loop, "_train_step", fragile)
    with pytest.raises(KilledError):
        train("encoder", broken, Length(steps=6))
    monkeypatch.undo()
    state = torch.load(broken.out / "checkpoints" / f"{killed_in}.pt", weights_only=True)
    assert state["step"] == 2
    train("encoder", a_run(root, tmp_path / "broken", config), Length(steps=6))
    expected, got = weights_after(whole.out), weights_after(broken.out)
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    lines = [json.loads(line) for line in (broken.out / "metrics.jsonl").read_text().splitlines()]
    steps = {stage: [line["step"] for line in lines if "loss" in line and line["stage"] == stage]
             for stage in ("pixels", "encoder")}  # fmt: skip
    first = round(6 * share)
    assert steps == {"pixels": [*range(1, first + 1)], "encoder": [*range(1, 7 - first)]}
    card = json.loads((broken.out / "model" / "manifest.json").read_text())["card"]
    assert card["lengths"] == {"encoder": "--steps 6"}, "one command makes both parts"
    with pytest.raises(InputError, match="other settings"):
        train("encoder", a_run(root, tmp_path / "broken", replace(config, seed=1)), Length(steps=6))


def test_pixels_are_learned_by_backbone_and_head_alone(run: Run, cache: SampleCache) -> None:
    torch.manual_seed(0)
    encoder = Encoder(run.sizes.encoder)
    before = {name: parameter.clone() for name, parameter in encoder.named_parameters()}
    loader = run.scenes(cache, frames=1, as_driven=True)
    task = PixelTask(encoder, run.config.encoder, PixelCheck(loader, 2, 2, torch.float32))
    batch = loader.batch([(0, 0), (1, 1)])
    guessed = task.validate()
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    losses = []
    for step in range(60):
        loss, _ = reduce_terms(task(batch, step), task.weights)
        optimizer.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in task.parameters()), "several processes hang"
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert {name.split(".")[0] for name in moved} == {"backbone", "auxiliary"}
    learned = task.validate()
    assert learned["pixel_mIoU"] > guessed["pixel_mIoU"] + 0.1
    assert learned["log_depth_error"] < guessed["log_depth_error"] / 2


def test_pixels_need_a_head(run: Run, cache: SampleCache) -> None:
    sizes = replace(run.sizes.encoder, auxiliary_width=0, seeded_queries=0, lifted_points=False)
    check = PixelCheck(run.scenes(cache), len(cache), 2, torch.float32)
    with pytest.raises(InputError, match=r"encoder\.pixels\.share is 0\.5, but the sizes have no 2-D head"):
        PixelTask(Encoder(sizes), replace(run.config.encoder, pixels=PixelTraining(share=0.5)), check)


@pytest.mark.slow
def test_two_processes_lose_what_one_loses_at_the_same_global_batch(root: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps(asdict(write_settings(tmp_path))))
    losses = []
    for processes in (1, 2):
        out = tmp_path / f"r{processes}"
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", f"--num_processes={processes}"]
        launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "-m", "sparseoccvla"]
        said = ["train", "--stage=encoder", f"--config={config}", f"--dataroot={root}", f"--out={out}"]
        subprocess.run([*launch, *said, "--steps=3"], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != pytest.approx(losses[0][2], rel=1e-3)


def test_failures_are_named_in_words() -> None:
    rising = [{"mIoU": 0.05 + 0.01 * i, "CIDEr": 0.3} for i in range(5)]
    assert "language does not follow" in failure_signs(rising)[0]
    assert failure_signs([{**figures, "CIDEr": 0.3 + 0.05 * i} for i, figures in enumerate(rising)]) == []
    far = [{"L2_1s": 0.3 - 0.02 * i, "L2_3s": 1.0 + 0.1 * i} for i in range(4)]
    assert "ego state" in failure_signs(far)[0]
    assert failure_signs([{"L2_1s": 0.3, "L2_3s": 1.0 - 0.1 * i} for i in range(4)]) == []
    assert "they collapse onto the ground" in failure_signs([{"points_above_ground": 0.05}] * 3)[0]
    assert failure_signs([{"points_above_ground": 0.3}] * 3) == []
    assert failure_signs(rising[:2]) == []


@pytest.mark.slow
def test_stages_follow_each_other_into_a_model_that_runs(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train --stage encoder with the same --out first"):
        train("planning", a_run(root, tmp_path / "r"), Length(steps=1))
    manifests = []
    for stage in ("encoder", "planning", "planner", "joint"):
        run = a_run(root, tmp_path / "r")
        train(stage, run, Length(steps=2))
        manifests.append(read_manifest(str(run.model_folder)))
    assert len({manifest.model_id for manifest in manifests}) == 4
    _, planning, planner, _ = (manifest.stages for manifest in manifests)
    kept = {name for name in planning if planning[name].stage_id == planner[name].stage_id}
    assert kept == {"encoder", "reasoner"}, "stage planner changes the planner alone"
    source = ModelSource(model=str(tmp_path / "r" / "model"))
    encoder, reasoner = load_encoder(source), load_reasoner(source)
    assert encoder.info.trained
    assert reasoner.info.trained
    assert load_planner(source).info.requires_stage_id == encoder.info.stage_id
    card = json.loads((tmp_path / "r" / "model" / "manifest.json").read_text())["card"]
    stages = {"encoder", "planning", "planner", "joint"}
    assert set(card["figures"]) == set(card["training_seconds"]) == stages
    assert not any(str(tmp_path) in text for text in card["command"])
    lines = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    figures = [line for line in lines if "val/mIoU" in line]
    assert {line["stage"] for line in figures} == {"encoder", "joint"}
    assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line)


@pytest.mark.slow
def test_stage_planning_takes_its_sizes_from_the_settings(root: Path, tmp_path: Path) -> None:
    """Not from the folder that the encoder's stage left: a planner once never had what was decided since."""
    train("encoder", a_run(root, tmp_path / "r"), Length(steps=1))
    other = replace(MODEL, planner=replace(MODEL.planner, keep_on_cue=not MODEL.planner.keep_on_cue))
    run = a_run(root, tmp_path / "r", write_settings(tmp_path / "w", other))
    train("planning", run, Length(steps=1))
    assert model_config(str(run.model_folder)).planner == other.planner


def test_the_future_is_where_the_vehicle_will_have_gone(run: Run, cache: SampleCache, texts: Texts) -> None:
    """10 m/s for a second on an arc: what lies 10 m ahead now is then at the vehicle."""
    sampler = DrivingSampler(cache, texts, run.config.planning.driving, 0)
    later = sampler.later(2, 1.0)
    assert later == 4
    there = sampler.label_from_base(2, later) @ np.array([10.0, 1.0, 0.0, 1.0])
    assert np.abs(there[:2]).max() < 1.0
    target = sampler.future(2, 1.0)
    assert target is not None
    assert target.bounded
    assert not target.counts(torch.tensor([[60.0, 0.0, 1.0]])).any()
    assert sampler.future(8, 1.0) is None


def test_a_turned_question_keeps_its_words_and_begins_with_another() -> None:
    rng = np.random.default_rng(0)
    found = {turned("Is the nearest Car, ahead, near or far?", rng) for _ in range(60)}
    assert len(found) == 7
    assert "Near or far is the nearest Car, ahead?" in found
    assert "Ahead, near or far is the nearest Car?" in found
    assert turned("Why?", rng) == "Why?"


def test_some_questions_are_turned_and_no_answer_is(run: Run, cache: SampleCache, texts: Texts) -> None:
    never = replace(run.config.planning.driving, edited_share=0.0, sight_share=0.0, turned_share=0.0)
    asked = {}
    for share in (0.0, 1.0):
        _, truth = DrivingSampler(cache, texts, replace(never, turned_share=share), 0).draw([(0, 3)])
        begin = len(texts.planning) + 1
        wanted = truth.pack.wanted[0, begin:]
        said = texts.text(wanted[wanted != NO_TEXT].tolist())
        asked[share] = (texts.text(truth.pack.ids[0, begin:].tolist()), said)
    assert "Is the number odd?" in asked[0.0][0]
    assert "Is the number odd?" not in asked[1.0][0]
    assert sorted(asked[0.0][1]) == sorted(asked[1.0][1])


def test_late_reasoning_comes_from_an_earlier_keyframe_of_the_scene(
    run: Run, cache: SampleCache, texts: Texts
) -> None:
    config = replace(run.config.planning.driving, stale_share=1.0, null_share=0.0, sight_share=0.0)
    samples, truth = DrivingSampler(cache, texts, config, 0).draw([(0, 6), (1, 0)])
    assert len(samples) == 3  # the first keyframe of a scene has none before it
    assert truth.reasoning_of.tolist() == [2, 1]
    assert truth.reasoning_age_s[0] == pytest.approx(0.5 * (6 - samples[2]), abs=1e-3)
    assert truth.reasoning_age_s[1] == 0


def test_an_edited_keyframe_is_planned_as_the_driver_would_there(
    run: Run, cache: SampleCache, texts: Texts
) -> None:
    config = replace(run.config.planning.driving, edited_share=1.0, stale_share=1.0, null_share=0.0)
    future = np.full((6, 3), 7.0)
    edits = [
        EditedKeyframe(cache.tokens[5], "remove-pedestrian-0", "remove", "pedestrian-0", True, future),
        EditedKeyframe(cache.tokens[2], "hour-night", "hour", "", True, future),
    ]
    samples, truth = DrivingSampler(cache, texts, config, 0, edits).draw([(i, 0) for i in range(8)])
    assert set(samples) == {len(cache), len(cache) + 1}
    assert len(samples) == 8  # none lends its T_r: the keyframe before shows the hazard
    for row, index in enumerate(samples):
        driven = torch.from_numpy(cache.truth(2).future[:, :2]).float()
        wanted = driven if index > len(cache) else torch.full((6, 2), 7.0)
        torch.testing.assert_close(truth.future_m[row], wanted)
    assert all(target is None for step in truth.forecast for target in step)
    assert truth.pack.ids.shape[1] == len(texts.planning) + 1  # nothing is said of it
    config = replace(config, edited_share=0.0)
    samples, _ = DrivingSampler(cache, texts, config, 0, edits).draw([(i, 0) for i in range(8)])
    assert max(samples) < len(cache)


def test_keyframes_without_words_are_planned_with_the_null_token(
    joint: tuple[JointTask, JointLoader], run: Run, cache: SampleCache, texts: Texts
) -> None:
    config = replace(
        run.config.planning.driving, spoken_share=0.5, stale_share=1.0, null_share=0.0, sight_share=0.0
    )
    samples, truth = DrivingSampler(cache, texts, config, 0).draw([(0, 6), (1, 5), (2, 1), (3, 2)])
    assert samples[:2] + samples[4:] == [6, 5, 1, 2]
    assert len(truth.pack.ids) == 4
    assert truth.has_reasoning.tolist() == [1, 1, 0, 0]
    assert truth.reasoning_of.tolist() == [2, 3, 0, 0]
    model = joint[0].model
    features, points_m = torch.randn(6, 8, 16), torch.randn(6, 8, 32, 3)
    anchors_m = torch.from_numpy(analytic_anchors().reshape(18, 6, 2))
    present = Present.of(points_m, torch.rand(6, 8, 32, 17))
    terms = driving_terms(
        model.reasoner, model.planner, features, points_m, present, truth, config, anchors_m
    )
    assert terms["path"].divisor == truth.future_valid.float().cumprod(dim=1).sum()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ('{"modle": "tiny"}', "has modle, wanted only model"),
        ('{"encoder": {"schedule": {"batch": 0}}}', "ScheduleConfig.batch is 0, wanted 1 to 4096"),
        ('{"precision": "fp8"}', "wanted one of bf16, fp32"),
    ],
)
def test_bad_settings_are_refused(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(content)
    with pytest.raises(ConfigError, match=said):
        read_training_config(file)


@pytest.mark.slow
def test_bad_runs_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="config/train/ has some"):
        read_training_config(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="wanted one of teacher, encoder, planning, planner, joint"):
        train("encode", a_run(root, tmp_path / "r"), Length(steps=1))
    dumb = make_training_root(tmp_path / "dumb", language=False)
    run = a_run(dumb, tmp_path / "r2", write_settings(tmp_path))
    train("encoder", run, Length(steps=1))
    with pytest.raises(InputError, match="no texts for a tokenizer"):
        train("planning", a_run(dumb, tmp_path / "r2", write_settings(tmp_path)), Length(steps=1))
    driving = replace(run.config.planning.driving, edited_share=0.5)
    edited = replace(run.config, planning=replace(run.config.planning, driving=driving))
    with pytest.raises(InputError, match="make it with `sparseoccvla world edit"):
        train("planning", a_run(dumb, tmp_path / "r2", edited), Length(steps=1))
    wide = replace(MODEL, encoder=replace(MODEL.encoder, queries=12))
    with pytest.raises(InputError, match="other sizes"):
        train("planning", a_run(dumb, tmp_path / "r2", write_settings(tmp_path / "w", wide)), Length(steps=1))
    (dumb / "gts" / "scene-0001" / "sample3" / "labels.npz").unlink()
    bare = Run(write_settings(tmp_path), "c", dumb, None, tmp_path / "cache2", tmp_path / "r3")
    with pytest.raises(InputError, match="has no occupancy label"):
        train("encoder", bare, Length(steps=20))


def test_the_shipped_settings_are_read_and_fit_the_model() -> None:
    settings = read_training_config(Path(__file__).parents[2] / "config" / "train" / "tiny.json")
    assert model_config(settings.model) == TINY
    assert settings.encoder.losses.drawn_points
    assert SIZE


def test_the_paper_s_tiny_is_as_large_and_has_nothing_that_the_paper_has_not() -> None:
    settings = read_training_config(Path(__file__).parents[2] / "config" / "train" / "tiny_paper.json")
    paper = model_config(settings.model)
    ours = {
        "encoder": {
            "free_class": False, "least_spread_m": (), "auxiliary_width": 0, "depth_by_contact": False,
            "seeded_queries": 0, "lifted_points": False, "lifted_spread": 0.0, "lifted_reach_m": 0.0,
            "point_class_width": 0, "surface_cue": False,
        },
        "reasoner": {"forecast_free_class": False, "forecast_from_present": False},
        "planner": {
            "score_with_ego": False, "score_along_path": False, "look_along_path": False,
            "keep_on_cue": False,
        },
    }  # fmt: skip
    assert paper == replace(
        TINY, **{part: replace(getattr(TINY, part), **changes) for part, changes in ours.items()}
    )
    assert settings.encoder.teacher, "it is distilled"
    assert not settings.encoder.pixels.share
    assert not settings.planning.driving.edited_share
