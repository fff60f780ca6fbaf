import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from clipself_d2.clip import load_tower
from clipself_d2.distillation.regionclip_losses import (
    concept_contrastive,
    image_text_contrastive,
    pseudo_labels,
    region_distillation,
)
from clipself_d2.distillation.regions import RegionFeatures
from clipself_d2.engine.accumulation import AccumulatingModel
from clipself_d2.layers import resize_longest

CROP = {"teacher_regions": "crop"}
ALL = {"loss_region_distill", "loss_concept", "loss_image_text"}


class CornerRPN(torch.nn.Module):
    """Proposes four boxes in every picture, in a fixed order."""

    boxes = torch.tensor([[0.0, 0, 20, 20], [20, 0, 50, 30], [5, 5, 40, 40], [0, 0, 64, 48]])

    def forward(self, images):
        return [
            Instances(image.shape[1:], proposal_boxes=Boxes(self.boxes.clone())) for image in images
        ]


@pytest.fixture
def batch(make_item):
    return [make_item(0), make_item(1, regions=2, size=(64, 40))]


def plain(item, *keys):
    return {key: value for key, value in item.items() if key not in keys}


def test_losses_are_those_of_the_towers_features(make_regionclip, batch) -> None:
    model = make_regionclip().train()
    losses = model(batch)
    with torch.no_grad():
        images = model.preprocess_images([item["image"] for item in batch])
        student = RegionFeatures.extract(model.student, images)
        boxes = [item["boxes"] for item in batch]
        teacher = RegionFeatures.extract(model.teacher, images).pool(boxes)
        labels = pseudo_labels(teacher, model.concepts_CD, threshold=0.0)
        regions = student.pool(boxes)
        frames = [torch.tensor([[0.0, 0, 64, 48]]), torch.tensor([[0.0, 0, 40, 64]])]
        text = model.text.encode([item["caption"] for item in batch])
        expected = {
            "loss_region_distill": region_distillation(
                regions, model.concepts_CD, labels.log_probs
            ).mean(),
            "loss_concept": concept_contrastive(regions, model.concepts_CD, labels.targets).mean(),
            "loss_image_text": image_text_contrastive(student.pool(frames), text),
        }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].detach(), value, rtol=1e-4, atol=1e-5)


def test_the_untrained_student_already_sees_what_its_own_copy_sees(make_regionclip, batch) -> None:
    losses = make_regionclip().train()(batch)
    assert float(losses["loss_region_distill"].detach()) == pytest.approx(0.0, abs=1e-4)
    assert float(make_regionclip(**CROP).train()(batch)["loss_region_distill"].detach()) > 0.1


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, ALL),
        ({"image_text": 0.0}, ALL - {"loss_image_text"}),
        ({"contrastive": 0.0}, ALL - {"loss_concept"}),
        ({"distill": 0.0}, ALL - {"loss_region_distill"}),
        ({"distill": 0.0, "contrastive": 0.0}, {"loss_image_text"}),
    ],
)
def test_a_weight_of_zero_switches_a_loss_off(make_regionclip, batch, options, names) -> None:
    assert set(make_regionclip(**options).train()(batch)) == names


def test_weights_multiply_their_losses(make_regionclip, batch) -> None:
    single = make_regionclip(**CROP).train()(batch)
    weights = {"distill": 2.0, "contrastive": 3.0, "image_text": 0.5}
    weighted = make_regionclip(**CROP, **weights).train()(batch)
    for name, factor in zip(single, (2.0, 3.0, 0.5), strict=True):
        torch.testing.assert_close(weighted[name], factor * single[name])


def test_regions_below_the_threshold_take_no_part(make_regionclip, batch) -> None:
    model = make_regionclip(**CROP).train()
    with torch.no_grad():
        teacher = F.normalize(model.embed_crops(batch), dim=1)
    best = (teacher @ model.teacher_concepts_CD.T / 0.1).softmax(1).amax(1)
    lower, upper = best.sort().values[-3:-1].tolist()
    threshold = (lower + upper) / 2
    model = make_regionclip(**CROP, concept_threshold=threshold, temperature=0.1).train()
    items = model._complete(batch, model.preprocess_images([i["image"] for i in batch]))
    student = torch.randn(len(best), 128, generator=torch.Generator().manual_seed(0))
    kept = best > threshold
    assert int(kept.sum()) == 2
    losses = model.compute_losses(items, student)
    assert losses == model.compute_losses(items, torch.where(kept[:, None], student, -student))
    assert losses != model.compute_losses(items, torch.where(kept[:, None], -student, student))


@pytest.mark.parametrize("teacher_regions", ["roi", "crop"])
def test_an_rpn_gives_the_regions(make_regionclip, make_item, teacher_regions) -> None:
    rpn = CornerRPN()
    model = make_regionclip(rpn=rpn, teacher_regions=teacher_regions, max_regions=3).train()
    given = [plain(make_item(seed), "boxes", "crops") for seed in (0, 1)]
    items = model._complete(given, model.preprocess_images([item["image"] for item in given]))
    known = {tuple(box) for box in rpn.boxes.tolist()}
    for item in items:
        drawn = {tuple(box) for box in item["boxes"].tolist()}
        assert len(drawn) == 3
        assert drawn < known
        assert item["teacher_regions"].shape == (3, 128)
    assert set(model(given)) == ALL


def test_a_picture_without_a_proposal_is_a_region_itself(make_regionclip, make_item) -> None:
    rpn = CornerRPN()
    rpn.boxes = torch.zeros(0, 4)
    model = make_regionclip(rpn=rpn, **CROP).train()
    given = [plain(make_item(0), "boxes", "crops")]
    items = model._complete(given, model.preprocess_images([given[0]["image"]]))
    assert items[0]["boxes"].tolist() == [[0.0, 0.0, 64.0, 48.0]]


@pytest.mark.parametrize("other_teacher", [False, True])
def test_a_resnet_student_learns_all_but_its_first_stages(
    make_regionclip, batch, other_teacher
) -> None:
    model = make_regionclip(resnet=True, other_teacher=other_teacher).train()
    sum(model(batch).values()).backward()
    for name, parameter in model.student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    with_gradient = {
        n.split(".")[1] for n, p in model.student.named_parameters() if p.grad is not None
    }
    assert with_gradient == {"layer2", "layer3", "layer4", "attnpool"}
    frozen = [*model.teacher.parameters(), *model.text.parameters()]
    assert all(parameter.grad is None for parameter in frozen)


def test_every_trained_parameter_of_a_vit_has_a_gradient(make_regionclip, batch) -> None:
    model = make_regionclip(**CROP).train()
    sum(model(batch).values()).backward()
    for name, parameter in model.student.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_regions_are_embedded_outside_training(make_regionclip, batch) -> None:
    model = make_regionclip().eval()
    with torch.no_grad():
        rows = model(batch)
    assert [row["roi"].shape for row in rows] == [(3, 128), (2, 128)]
    norms = torch.cat([row["roi"] for row in rows]).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(5))
    assert all("crop" in row for row in rows)


def test_masks_of_a_resnet_are_pooled_from_its_dense_map(make_regionclip, make_item) -> None:
    model = make_regionclip(resnet=True).eval()
    item = {**make_item(0, regions=1, size=(64, 64)), "masks": torch.tensor([[[0.0, 1], [0, 0]]])}
    with torch.no_grad():
        (row,) = model([item])
        images = model.preprocess_images([item["image"]])
        dense = model.student.pool_dense(model.student.forward_stages(images)["res5"])
    torch.testing.assert_close(row["mask"][0], F.normalize(dense[0, :, 0, 1], dim=0))


def test_a_teacher_of_another_clip_is_not_scored_against_the_students_text(
    make_regionclip, batch
) -> None:
    """Its embeddings have the width of the student's here, but nothing else in common."""
    torch.manual_seed(5)
    other = load_tower("ViT-Ti-8-emoji")
    concepts = torch.randn(10, other.embed_dim)
    model = make_regionclip(
        towers_={"teacher": other}, parts_={"teacher_concepts_CD": concepts}
    ).eval()
    with torch.no_grad():
        rows = model(batch)
    assert all(set(row) == {"roi"} for row in rows)


@pytest.mark.parametrize("same_name", [True, False])
def test_a_student_is_mixed_with_a_teacher_of_its_own_clip_alone(
    make_regionclip, same_name
) -> None:
    model = make_regionclip()
    model.check_share(0.5)
    if same_name:
        other = make_regionclip(parts_={"teacher_concepts_CD": torch.ones(10, 128)})
    else:
        other = make_regionclip(other_teacher=True)
    other.check_share(1.0)
    with pytest.raises(ValueError, match=r"STUDENT_SHARE is 0\.5.*another CLIP"):
        other.check_share(0.5)


def test_a_teacher_of_another_width_is_not_scored(make_regionclip, batch) -> None:
    with torch.no_grad():
        rows = make_regionclip(other_teacher=True).eval()(batch)
    assert all(set(row) == {"roi"} for row in rows)


def learn(model, items, steps: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """Losses and gradients of a batch worked through in parts."""
    model.zero_grad()
    wrapped = AccumulatingModel(model, steps=steps, backward=torch.Tensor.backward).train()
    losses = wrapped(items)
    sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {name: float(loss.detach()) for name, loss in losses.items()}, gradients


@pytest.mark.parametrize(
    ("with_rpn", "kind"),
    [(False, {}), (False, {"resnet": True}), (True, {}), (False, {"concept_threshold": 0.9})],
    ids=["vit", "resnet", "rpn", "no region above the threshold of a part"],
)
@pytest.mark.parametrize("steps", [2, 3])
def test_parts_of_a_batch_give_the_losses_and_gradients_of_the_whole(
    make_regionclip, make_item, with_rpn, kind, steps, caplog
) -> None:
    """Pictures of several sizes and numbers of regions, and contrasts over the whole batch."""
    sizes = [(48, 64), (64, 40), (40, 40), (64, 64), (32, 56)]
    batch = [make_item(n, regions=1 + n % 3, size=size) for n, size in enumerate(sizes)]
    if with_rpn:
        kind = {"rpn": CornerRPN(), "max_regions": 2}
        batch = [plain(item, "boxes", "crops") for item in batch]
    else:
        # Crops make the teacher see something else than the student at its start.
        kind = {**kind, **CROP}
    # At a low temperature rounding of cosines is magnified.
    model = make_regionclip(temperature=0.1, **kind)
    losses, gradients = learn(model, batch, 1)
    found, parts = learn(model, batch, steps)
    assert found == pytest.approx(losses, rel=1e-5, abs=1e-6)
    assert parts.keys() == gradients.keys()
    for name, gradient in gradients.items():
        scale = max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=1e-6 * scale, msg=name)
    assert not caplog.records, "the norms of a ResNet are frozen"


def test_the_first_pass_leaves_gradients_to_the_second_in_mixed_precision(
    make_regionclip, make_item
) -> None:
    """autocast keeps the weights it has turned to half precision, without a graph under no_grad."""
    model = make_regionclip(**CROP)
    model.student.precision = "bf16"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, gradients = learn(model, [make_item(0), make_item(1)], 2)
    trained = {n for n, p in model.student.named_parameters() if p.requires_grad}
    assert {name.removeprefix("student.") for name in gradients} == trained


@pytest.mark.parametrize("teacher_regions", ["roi", "crop"])
def test_the_teacher_sees_pixels_by_its_own_statistics(
    make_regionclip, make_item, teacher_regions
) -> None:
    """A teacher of other statistics gives what it gives alone."""
    model = make_regionclip(other_teacher=True, teacher_regions=teacher_regions).train()
    assert list(model.teacher.pixel_mean) != model.pixel_mean.flatten().tolist()
    item = make_item(0)
    (made,) = model._complete([item], model.preprocess_images([item["image"]]))
    # The statistics of the tiny ResNet are those of pixels as they are.
    if teacher_regions == "roi":
        features = RegionFeatures.extract(model.teacher, item["image"][None].float())
        expected = features.pool([item["boxes"]])
    else:
        expected = model.teacher.forward_image(item["crops"].float())
    torch.testing.assert_close(made["teacher_regions"], expected, rtol=1e-3, atol=1e-3)


def test_statistics_that_a_recipe_rounds_leave_pixels_as_they_are(make_regionclip) -> None:
    rounded = [round(value, 3) for value in make_regionclip().teacher.pixel_mean]
    model = make_regionclip(towers_={"pixel_mean": rounded})
    pixels = torch.randn(1, 3, 8, 8)
    assert torch.equal(model._for_teacher(pixels), pixels)


def test_teacher_and_text_stay_frozen_in_eval(make_regionclip) -> None:
    model = make_regionclip(resnet=True).train()
    assert not model.teacher.training
    assert not model.text.training
    assert model.student.training


def test_only_the_student_goes_into_the_checkpoint(make_regionclip) -> None:
    model = make_regionclip()
    assert all(name.startswith("visual.") for name in model.student_state_dict())
    assert not {"concepts_CD", "teacher_concepts_CD"} & set(model.state_dict())


def test_a_picture_without_caption_names_the_key(make_regionclip, make_item) -> None:
    item = {**plain(make_item(0), "caption"), "file_name": "a.jpg"}
    with pytest.raises(ValueError, match=r"a\.jpg has no caption.*last of .*LOSS_WEIGHTS to 0"):
        make_regionclip().train()([item])
    assert len(make_regionclip(image_text=0.0).train()([item])) == 2


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"distill": -1.0}, "none may be negative"),
        (
            {"distill": 0.0, "contrastive": 0.0, "image_text": 0.0},
            "one must be above 0",
        ),
    ],
)
def test_impossible_switches_are_refused(make_regionclip, options, complaint) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_regionclip(**options)


@pytest.mark.parametrize("in_parts", [False, True])
def test_pictures_as_they_were_read_are_resized_by_the_model(
    make_regionclip, make_item, in_parts: bool
) -> None:
    model = make_regionclip(**CROP).train()
    read = [{**make_item(seed, size=(96, 128)), "longest_side": 64} for seed in (0, 1)]
    fitted = [
        {**item, "image": resize_longest(item["image"], 64, torch.device("cpu"))} for item in read
    ]
    for item in fitted:
        del item["longest_side"]

    def losses(items):
        return model(model.prepare_parts([items])[0] if in_parts else items)

    expected = losses(fitted)
    for name, loss in losses(read).items():
        assert float(loss.detach()) == float(expected[name].detach())
    assert expected
