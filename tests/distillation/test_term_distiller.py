"""Every emoji recipe of terms learns two pictures by heart; one term is CLIPSelf."""

from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from clipself_d2.data.build import build_distill_train_loader_from_cfg
from clipself_d2.distillation import CLIPSelfDistiller, TermDistiller
from clipself_d2.distillation.base import Scene
from clipself_d2.distillation.terms import AffinityTerm, CropTerm, LabelTerm, MapTerm
from clipself_d2.engine.cli import load_config

from .conftest import make_towers

FOLDER = Path(__file__).parents[2] / "configs" / "emoji"
RECIPES = ("declip", "synclip", "denserc", "sc_clipself", "densevlm")


class Fake(torch.nn.Module):
    """Features of a vision model: a fixed map of the pixels."""

    def forward(self, pixels: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pixels, grid) - 100.0


def make(*terms, form: str = "clipself", **parts) -> TermDistiller:
    towers = make_towers()
    towers.student.set_dense_form(form)
    towers.student.freeze(-1)
    return TermDistiller(towers=towers, terms=terms, vfm=Fake(), **parts).train()


def gradients(model: TermDistiller) -> dict[str, float]:
    return {
        name: float(parameter.grad.norm())
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_a_batch_by_heart(name: str, emoji_data, tmp_path) -> None:
    cfg = load_config(str(FOLDER / f"{name}.yaml"), [])
    cfg.merge_from_list(
        ["INPUT.REGIONS.IMAGE_SIZES", (96,), "INPUT.REGIONS.MAX_BOXES", 4]
        + ["INPUT.REGIONS.SOURCE", "grid", "DATALOADER.NUM_WORKERS", 0]
        + ["SOLVER.IMS_PER_BATCH", 2, "MODEL.CLIP.PRECISION", "fp32"]
    )
    for row in cfg.MODEL.DISTILL.TERMS:
        row.pop("weights", None)
        if row["loss"] == "vocabulary":
            # A teacher like the student has nothing to teach; one with random weights has.
            row["pretrained"] = ""
        if "threshold" in row:
            row["threshold"] = 0.0
    torch.manual_seed(0)
    model = build_model(cfg).train()
    batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
    learned = [p for p in model.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=3e-4)
    totals = []
    for _ in range(6):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        # Every trained parameter is reached, so that several processes do not wait for one.
        assert all(parameter.grad is not None for parameter in learned)
        optimizer.step()
        totals.append(float(loss.detach()))
    assert np.isfinite(totals).all()
    assert totals[-1] < totals[0]


def test_one_crop_term_is_clipself_bit_for_bit(make_clipself, make_item) -> None:
    batch = [make_item(0), make_item(1, 5)]
    one, other = make_clipself().train(), TermDistiller(towers=make_towers(), terms=[CropTerm()])
    assert isinstance(one, CLIPSelfDistiller)
    expected, got = one(batch)["loss_cosine"], other.train()(batch)["loss_cosine"]
    assert torch.equal(got, expected)


def test_the_context_of_the_query_reaches_no_key_of_the_last_block(make_item) -> None:
    model = make(AffinityTerm(of="query"), form="declip_qq")
    model([make_item(0)])["loss_affinity"].backward()
    last = model.student.block_modules[-1].attn.in_proj_weight
    query, key, value = last.grad.chunk(3)
    assert query.any()
    assert not key.any()
    assert not value.any()


def test_a_live_teacher_learns_and_a_frozen_one_does_not(make_item) -> None:
    found = {}
    for kind in ("frozen", "live"):
        model = make(CropTerm(teacher=kind))
        model([make_item(0)])["loss_cosine"].backward()
        found[kind] = gradients(model)
        assert not any(name.startswith("teacher.") for name in found[kind])
    # The class token is read by crops alone where the last block has values only.
    attention = "student.visual.transformer.resblocks.0.attn.in_proj_weight"
    assert found["live"][attention] != pytest.approx(found["frozen"][attention], rel=1e-3)


def test_a_moving_average_follows_the_student_once_an_iteration(make_item) -> None:
    model = make(CropTerm(teacher="averaged", momentum=0.75))
    name = "visual.proj"
    before = model.averaged.state_dict()[name].clone()
    with torch.no_grad():
        model.student.state_dict()[name].add_(1.0)
    model([make_item(0)])
    torch.testing.assert_close(model.averaged.state_dict()[name], before + 0.25)


def test_what_is_in_the_padding_leaves_the_affinity_loss_as_it_is(make_item) -> None:
    model = make(AffinityTerm())
    items = [make_item(0, size=(48, 64)), make_item(1, size=(64, 48))]
    images = model.preprocess_images([item["image"] for item in items])
    boxes = [item["boxes"] for item in items]
    dense = model.student.forward_dense(images)
    sizes = [(48, 64), (64, 48)]
    student_RD = torch.zeros(6, 128)
    first = model.compute_losses(items, student_RD, Scene(images, boxes, dense, sizes))
    spoiled = images.clone()
    spoiled[0, :, 48:] = 9.0
    again = model.compute_losses(items, student_RD, Scene(spoiled, boxes, dense, sizes))
    assert torch.equal(first["loss_affinity"], again["loss_affinity"])


def test_drawn_rows_are_some_of_all(make_item) -> None:
    whole = make(AffinityTerm())([make_item(0)])["loss_affinity"]
    some = make(AffinityTerm(rows=24))([make_item(0)])["loss_affinity"]
    every = make(AffinityTerm(rows=48))([make_item(0)])["loss_affinity"]
    assert torch.equal(whole, every)
    assert float(some) == pytest.approx(float(whole), rel=0.3)
    assert float(some) != float(whole)


def test_a_form_without_query_is_refused_for_its_context() -> None:
    with pytest.raises(ValueError, match="DENSE_FORM to declip_csa"):
        make(AffinityTerm(of="query"))


def test_the_terms_of_a_weight_of_zero_cost_nothing(make_item) -> None:
    losses = make(CropTerm(), AffinityTerm(weight=0.0))([make_item(0)])
    assert set(losses) == {"loss_cosine"}


def test_labels_pull_regions_to_their_names(make_item) -> None:
    names = torch.randn(10, 128, generator=torch.Generator().manual_seed(4))
    model = make(LabelTerm(temperature=0.1), short_KD=names)
    item = make_item(0)
    learned = [p for p in model.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4)
    totals = []
    for _ in range(8):
        loss = model([item])["loss_label"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(float(loss.detach()))
    assert totals[-1] < 0.8 * totals[0]


def test_pictures_without_labels_keep_the_graph_of_the_maps(make_item) -> None:
    names = torch.randn(10, 128, generator=torch.Generator().manual_seed(4))
    model = make(MapTerm(), short_KD=names, rich_KD=names)
    item = {**make_item(0), "image_classes": torch.zeros(0, dtype=torch.int64)}
    loss = model([item])["loss_map"]
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert model.student.visual.conv1.weight.grad is not None
    labelled = {**item, "image_classes": torch.tensor([1, 3])}
    assert float(model([labelled])["loss_map"]) > 0.1


def test_likeness_in_regions_is_that_of_the_frozen_clip_at_first(make_item) -> None:
    term = AffinityTerm(teacher="clip", region_size=3, reduction="row_l2")
    model = make(term)
    assert float(model([make_item(0)])["loss_affinity"]) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        model.student.block_modules[0].mlp.c_fc.weight *= 2.0
    assert float(model([make_item(0)])["loss_affinity"]) > 0.01


def test_a_term_whose_model_is_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="needs texts"):
        make(LabelTerm())


def test_pictures_that_the_model_resizes_are_masked_by_their_new_size(make_item) -> None:
    model = make(AffinityTerm())
    read = {**make_item(0, size=(96, 128)), "longest_side": 64}
    other = make_item(1, size=(64, 48))
    fitted = {**read, "image": model._fitted(read).round().to(torch.uint8)}
    del fitted["longest_side"]
    assert fitted["image"].shape == (3, 48, 64)
    got, expected = (model([item, other])["loss_affinity"] for item in (read, fitted))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
