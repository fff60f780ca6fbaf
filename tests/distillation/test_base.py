import copy

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.pictures import cut_crops, cut_regions, fit_longest, to_tensor
from clipself_d2.distillation.base import CROP_STEP


@pytest.fixture(params=["clipself", "region_text"])
def make(request: pytest.FixtureRequest):
    """Each kind of distiller."""
    return request.getfixturevalue(f"make_{request.param}")


def total(model, items) -> torch.Tensor:
    return sum(model(items).values())


def test_the_teacher_stays_in_eval_and_never_changes(make, make_item) -> None:
    model = make().train()
    before = copy.deepcopy(model.teacher.state_dict())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for step in range(3):
        total(model, [make_item(step)]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not model.teacher.training
    assert model.student.training
    after = model.teacher.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    student = model.student.state_dict()
    assert any(not torch.equal(before[key], student[key]) for key in before)


@pytest.mark.parametrize("mode", ["off", "blocks", "step"])
def test_the_loss_is_the_same_with_the_crops_that_make_up_the_numbers(
    make_clipself, make_item, mode: str
) -> None:
    model = make_clipself().train()
    expected = total(model, [make_item(0, 3), make_item(1, 2)])
    model.teacher.set_compile(mode)
    model.teacher.compiler.failed = True  # the pass of that mode, without a graph
    seen = []
    embed = model.teacher.forward_image
    model.teacher.forward_image = lambda crops: seen.append(len(crops)) or embed(crops)
    assert torch.equal(total(model, [make_item(0, 3), make_item(1, 2)]), expected)
    assert seen == [5 if mode == "off" else CROP_STEP]


@pytest.mark.parametrize("trained_blocks", [-1, 6])
def test_every_trainable_parameter_gets_a_gradient(make, make_item, trained_blocks: int) -> None:
    model = make().train()
    model.student.freeze(trained_blocks)
    total(model, [make_item(0), make_item(1)]).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.any()]
    assert "student.visual.proj" not in trained
    assert not any(name.startswith("teacher") for name in trained)


def test_no_region_at_all_gives_a_zero_loss_with_gradients(make, make_item) -> None:
    model = make().train()
    loss = total(model, [make_item(0, 0), make_item(1, 0)])
    loss.backward()
    assert float(loss) == 0.0
    weight = model.student.visual.transformer.resblocks[0].mlp.c_fc.weight
    assert weight.grad is not None
    assert not weight.grad.any()


def test_an_image_without_regions_does_not_disturb_the_others(make, make_item) -> None:
    model = make(**({"num_sampled": 10} if "text_KD" in make().state_dict() else {})).train()
    alone = float(total(model, [make_item(0)]))
    assert float(total(model, [make_item(0), make_item(1, 0)])) == pytest.approx(alone, abs=1e-4)


def test_scoring_gives_one_row_a_region_for_each_image(make, make_item) -> None:
    model = make().eval()
    inputs = [
        {**make_item(0, 2), "masks": torch.ones(2, 6, 8)},
        {**make_item(1, 0), "masks": torch.zeros(0, 6, 8)},
    ]
    with torch.no_grad():
        outputs = model(inputs)
    assert [tuple(row["roi"].shape) for row in outputs] == [(2, 128), (0, 128)]
    assert [tuple(row["crop"].shape) for row in outputs] == [(2, 128), (0, 128)]
    torch.testing.assert_close(outputs[0]["mask"].norm(dim=1), torch.ones(2))


def test_the_crop_embedding_is_the_teachers_own(make_clipself, make_item) -> None:
    model = make_clipself().eval()
    item = make_item(0)
    pixels = (item["crops"].float() - model.pixel_mean) / model.pixel_std
    with torch.no_grad():
        torch.testing.assert_close(model.embed_crops([item]), model.teacher.forward_image(pixels))


def test_chunks_do_not_change_the_teacher(
    make_clipself, make_item, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_clipself().eval()
    items = [make_item(0, 5)]
    whole = model.embed_crops(items)
    monkeypatch.setattr("clipself_d2.distillation.base.TEACHER_BATCH", 2)
    torch.testing.assert_close(model.embed_crops(items), whole)


def test_crops_resized_here_are_those_resized_by_pil(make_clipself) -> None:
    model = make_clipself().eval()
    yy, xx = np.mgrid[0:90, 0:130]
    pixels = np.stack([yy * 2, xx, (xx + yy) % 256], axis=-1).astype(np.uint8)
    picture = Image.fromarray(pixels)
    boxes = np.array([[0.0, 0.0, 130.0, 90.0], [10.0, 5.0, 40.0, 85.0]])
    pieces, crops = cut_regions(picture, boxes, None), cut_crops(picture, boxes, 64)
    raw = model.preprocess_crops([{"crops": pieces}, {"crops": []}], "crops")
    ready = model.preprocess_crops([{"crops": crops}], "crops")
    assert raw.shape == (2, 3, 64, 64)
    levels = (raw - ready).abs() * model.pixel_std
    assert float(levels.mean()) < 0.05
    assert float((levels > 2.5).float().mean()) < 0.005


def test_an_image_resized_here_is_that_resized_by_pil(make_clipself) -> None:
    model = make_clipself().eval()
    yy, xx = np.mgrid[0:90, 0:130]
    picture = Image.fromarray(np.stack([yy * 2, xx, (xx + yy) % 256], -1).astype(np.uint8))
    raw = model._fitted({"image": to_tensor(picture), "longest_side": 200})
    ready = to_tensor(fit_longest(picture, 200))
    assert raw.shape == ready.shape == (3, 138, 200)
    difference = (raw - ready.float()).abs()
    assert float(difference.mean()) < 0.05
    assert float((difference > 2.5).float().mean()) < 0.005


def test_images_are_padded_with_black_before_normalisation(make_clipself) -> None:
    model = make_clipself(pad_to_square=True)
    batch = model.preprocess_images([torch.full((3, 40, 60), 200, dtype=torch.uint8)])
    assert batch.shape == (1, 3, 64, 64)
    black = (-model.pixel_mean / model.pixel_std)[:, 0, 0]
    torch.testing.assert_close(batch[0, :, 63, 63], black)
    torch.testing.assert_close(batch[0, :, 39, 60], black)


def test_a_batch_is_padded_to_its_largest_image_and_to_the_patch(make_clipself) -> None:
    sizes = [(3, 33, 40), (3, 20, 50)]
    batch = make_clipself().preprocess_images([torch.zeros(s, dtype=torch.uint8) for s in sizes])
    assert batch.shape == (2, 3, 40, 56)


def test_the_mixture_is_linear_in_alpha(make_clipself) -> None:
    model = make_clipself()
    with torch.no_grad():
        model.student.visual.class_embedding += 1.0
    key = "visual.class_embedding"
    mixed = model.student_state_dict(0.25)[key]
    torch.testing.assert_close(mixed, model.teacher.visual.class_embedding + 0.25)
    for share, tower in ((1.0, model.student), (0.0, model.teacher)):
        assert torch.equal(model.student_state_dict(share)[key], tower.state_dict()[key])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_what_the_student_alone_has_is_not_mixed(make_clipself, share: float) -> None:
    model = make_clipself()
    model.student.set_dense_form("denserc")
    with torch.no_grad():
        model.student.gate.bias.fill_(3.0)
    assert (model.student_state_dict(share)["visual.dense_gate.bias"] == 3.0).all()
