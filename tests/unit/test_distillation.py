from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from sparseoccvla.contracts import EncoderInput
from sparseoccvla.errors import InputError
from sparseoccvla.training.distillation import Distillation, DistillationConfig, Teacher

torch.set_num_threads(1)
SIZE = (64, 128)


def rig(batch: int = 1) -> torch.Tensor:
    return torch.from_numpy(EncoderInput.fake(size=SIZE).image_from_odom).float().expand(batch, -1, -1, -1)


def branch(variant: str = "normalized") -> Distillation:
    torch.manual_seed(0)
    return Distillation(DistillationConfig(query_width=16, teacher_width=24, variant=variant))


def given(scale: float = 1.0) -> tuple:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 9, 16, generator=generator)
    points_m = torch.rand(1, 9, 4, 3, generator=generator) * 30 - 15
    teacher = torch.randn(1, 6, 24, 8, 16, generator=generator) * scale
    return features, points_m, teacher, rig(), torch.ones(1, 6), SIZE


def test_the_normalized_loss_does_not_know_the_teachers_scale_and_the_raw_one_does() -> None:
    for variant, same in (("normalized", True), ("raw", False)):
        net = branch(variant)
        small, large = net(*given(1.0)), net(*given(100.0))
        assert torch.allclose(small.total, large.total, rtol=1e-3) == same


def test_only_queries_that_a_camera_sees_count() -> None:
    features, points_m, *rest = given()
    points_m[:, :5] = torch.tensor([0.0, 0.0, 60.0])
    assert branch()(features, points_m, *rest).divisor <= 4
    masked = (*rest[:2], torch.zeros(1, 6), SIZE)
    term = branch()(features, points_m, *masked)
    assert (term.total.item(), term.divisor.item()) == (0, 0)


def test_the_teacher_is_read_where_the_point_falls() -> None:
    # A teacher whose feature is one-hot by camera: a point ahead reads camera 0, one behind camera 3.
    teacher = torch.zeros(1, 6, 24, 8, 16)
    for camera in range(6):
        teacher[:, camera, camera] = 1.0
    points_m = torch.tensor([[[[12.0, 0, 1.0]], [[-12.0, 0, 1.0]]]])
    wanted, seen = Distillation._at_points(points_m, teacher, rig(), torch.ones(1, 6), SIZE)
    assert wanted.argmax(dim=-1).tolist() == [[0, 3]]
    assert seen.tolist() == [[1, 1]]


@pytest.mark.parametrize("variant", ["normalized", "raw"])
def test_gradients_reach_the_student_and_the_loss_falls(variant: str) -> None:
    net = branch(variant)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        term = net(*given())
        loss = term.total / term.divisor
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    dead = [n for n, p in net.named_parameters() if p.requires_grad and not p.grad.abs().sum() > 0]
    assert not dead


def test_any_clip_folder_is_a_frozen_teacher_for_wide_pictures(tmp_path: Path) -> None:
    sizes = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    CLIPVisionModel(sizes).save_pretrained(tmp_path)
    teacher = Teacher(tmp_path)
    maps = teacher(torch.rand(1, 6, 3, *SIZE) * 255)
    assert maps.shape == (1, 6, 24, 8, 16)
    assert not maps.requires_grad
    assert not teacher.train().clip.training
    assert teacher.width == 24


def test_a_folder_without_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no CLIP vision model could be loaded from"):
        Teacher(tmp_path)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="variant is 'cosine', wanted normalized or raw"):
        branch("cosine")
