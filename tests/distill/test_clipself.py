import copy

import pytest
import torch

from clipself_d2.clip import load_tower
from clipself_d2.distill import CLIPSelfDistiller

NAME = "ViT-Ti-8-emoji"


def make(train_embedding: bool = True, square_size: int = 0, blocks: int = 6) -> CLIPSelfDistiller:
    torch.manual_seed(0)
    teacher = load_tower(NAME)
    return CLIPSelfDistiller(
        student=copy.deepcopy(teacher),
        teacher=teacher,
        pixel_mean=teacher.pixel_mean,
        pixel_std=teacher.pixel_std,
        trainable_blocks=blocks,
        train_embedding=train_embedding,
        square_size=square_size,
    )


def item(seed: int, regions: int = 3, size: tuple[int, int] = (48, 64)) -> dict[str, object]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(regions, 2, generator=generator) * 20
    return {
        "image": torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8),
        "boxes": torch.cat([corner, corner + 20], dim=1),
        "crops": torch.randint(0, 255, (regions, 3, 64, 64), generator=generator).byte(),
    }


def test_the_teacher_stays_in_eval_and_never_changes() -> None:
    model = make().train()
    before = copy.deepcopy(model.teacher.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(3):
        model([item(step)])["loss_cosine"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not model.teacher.training
    assert model.student.training
    after = model.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    student = model.student.state_dict()
    assert any(not torch.equal(before[key], student[key]) for key in before)


@pytest.mark.parametrize("train_embedding", [True, False])
def test_every_trainable_parameter_gets_a_gradient(train_embedding: bool) -> None:
    model = make(train_embedding).train()
    model([item(0), item(1)])["loss_cosine"].backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert "student.visual.proj" not in trained
    assert not any(name.startswith("teacher") for name in trained)


def test_the_loss_is_the_mean_over_all_regions_of_the_batch() -> None:
    model = make().train()
    single = [float(model([item(0, 1)])["loss_cosine"]), float(model([item(1, 5)])["loss_cosine"])]
    joined = float(model([item(0, 1), item(1, 5)])["loss_cosine"])
    assert joined == pytest.approx((single[0] + 5 * single[1]) / 6, abs=1e-5)


def test_no_region_at_all_gives_a_zero_loss_with_gradients() -> None:
    model = make().train()
    loss = model([item(0, 0), item(1, 0)])["loss_cosine"]
    loss.backward()
    assert float(loss) == 0.0
    weight = model.student.visual.transformer.resblocks[0].mlp.c_fc.weight
    assert weight.grad is not None
    assert not weight.grad.any()


def test_an_image_without_regions_does_not_disturb_the_others() -> None:
    model = make().train()
    alone = float(model([item(0)])["loss_cosine"])
    assert float(model([item(0), item(1, 0)])["loss_cosine"]) == pytest.approx(alone, abs=1e-5)


def test_scoring_gives_one_row_a_region_for_each_image() -> None:
    model = make().eval()
    inputs = [
        {**item(0, 2), "masks": torch.ones(2, 6, 8)},
        {**item(1, 0), "masks": torch.zeros(0, 6, 8)},
    ]
    with torch.no_grad():
        outputs = model(inputs)
    assert [tuple(row["roi"].shape) for row in outputs] == [(2, 128), (0, 128)]
    assert [tuple(row["crop"].shape) for row in outputs] == [(2, 128), (0, 128)]
    torch.testing.assert_close(outputs[0]["mask"].norm(dim=1), torch.ones(2))


def test_the_crop_embedding_is_the_teachers_own() -> None:
    model = make().eval()
    crops = item(0)["crops"]
    pixels = (crops.float() - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        torch.testing.assert_close(model.embed_crops(crops), model.teacher.forward_image(pixels))


def test_chunks_do_not_change_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make().eval()
    crops = item(0, 5)["crops"]
    whole = model.embed_crops(crops)
    monkeypatch.setattr("clipself_d2.distill.clipself.TEACHER_BATCH", 2)
    torch.testing.assert_close(model.embed_crops(crops), whole)


def test_images_are_padded_with_black_before_normalisation() -> None:
    model = make(square_size=80)
    batch = model.preprocess_images([torch.full((3, 40, 60), 200, dtype=torch.uint8)])
    assert batch.shape == (1, 3, 80, 80)
    black = (-model.pixel_mean / model.pixel_std)[:, 0, 0]
    torch.testing.assert_close(batch[0, :, 79, 79], black)
    torch.testing.assert_close(batch[0, :, 39, 60], black)


def test_a_batch_is_padded_to_its_largest_image_and_to_the_patch() -> None:
    model = make()
    sizes = [(3, 33, 40), (3, 20, 50)]
    batch = model.preprocess_images([torch.zeros(size, dtype=torch.uint8) for size in sizes])
    assert batch.shape == (2, 3, 40, 56)


def test_the_mixture_is_linear_in_alpha() -> None:
    model = make()
    with torch.no_grad():
        model.student.visual.class_embedding += 1.0
    key = "visual.class_embedding"
    mixed = model.student_state_dict(0.25)[key]
    torch.testing.assert_close(mixed, model.teacher.visual.class_embedding + 0.25)
    with pytest.raises(ValueError, match="ALPHA"):
        model.student_state_dict(1.5)


def test_more_blocks_than_the_tower_has_name_the_key() -> None:
    with pytest.raises(ValueError, match="TRAINABLE_BLOCKS"):
        make(blocks=7)
