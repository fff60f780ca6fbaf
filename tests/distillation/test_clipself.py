import pytest
import torch
from detectron2.config import LazyCall, instantiate
from detectron2.utils.events import EventStorage
from torch.testing import assert_close

from clipself_d2.clip import load_tower
from clipself_d2.clip.towers.compiling import Compiler
from clipself_d2.distillation import CLIPSelfDistiller, Towers, terms
from clipself_d2.distillation.build import towers_from_config
from clipself_d2.distillation.terms import CropTerm

from .conftest import make_towers


def test_the_loss_is_the_mean_over_all_regions_of_the_batch(make_clipself, make_item) -> None:
    model = make_clipself().train()
    few, many = make_item(0, 1), make_item(1, 5)
    single = [float(model([item])["loss_cosine"]) for item in (few, many)]
    joined = float(model([few, many])["loss_cosine"])
    assert joined == pytest.approx((single[0] + 5 * single[1]) / 6, abs=1e-5)


def test_the_weights_of_parts_make_the_loss_of_the_whole(make_clipself, make_item) -> None:
    model = make_clipself().train()
    parts = [[make_item(0, 1)], [make_item(1, 5), make_item(2, 2)]]
    weights = [model.loss_weight(part) for part in parts]
    assert weights == [1.0, 7.0]
    losses = [float(model(part)["loss_cosine"]) for part in parts]
    whole = float(model([*parts[0], *parts[1]])["loss_cosine"])
    assert whole == pytest.approx((losses[0] + 7 * losses[1]) / 8, abs=1e-5)


def test_the_image_loss_starts_at_zero_and_its_gradient_keeps_the_student_in_place(
    make_clipself, make_item
) -> None:
    model = make_clipself(image_loss_weight=2.0).train()
    losses = model([make_item(0), make_item(1)])
    assert set(losses) == {"loss_cosine", "loss_image"}
    assert float(losses["loss_image"]) == pytest.approx(0.0, abs=1e-5)
    with torch.no_grad():
        for parameter in model.student.block_modules[0].parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    moved = model([make_item(0), make_item(1)])["loss_image"]
    assert float(moved) > 0.05
    moved.backward()
    assert model.student.block_modules[0].mlp.c_fc.weight.grad.any()


def test_the_image_loss_is_scaled_by_its_weight(make_clipself, make_item) -> None:
    values = []
    for weight in (1.0, 3.0):
        model = make_clipself(image_loss_weight=weight).train()
        with torch.no_grad():
            model.student.block_modules[0].mlp.c_fc.weight *= 2.0
        values.append(float(model([make_item(0)])["loss_image"]))
    assert values[1] == pytest.approx(3 * values[0], rel=1e-4)


def test_items_without_crops_name_the_key_to_change(make_clipself, make_item) -> None:
    model = make_clipself().train()
    item = make_item(0)
    del item["crops"]
    with pytest.raises(ValueError, match=r"INPUT\.REGIONS\.SOURCE"):
        model([item])


def test_a_lazy_config_builds_one(make_item) -> None:
    tower = LazyCall(load_tower)(name="ViT-Ti-8-emoji")
    config = LazyCall(CLIPSelfDistiller)(
        towers=LazyCall(Towers)(
            student=tower, teacher=tower, pixel_mean=[0.0] * 3, pixel_std=[255.0] * 3
        ),
        image_loss_weight=0.5,
    )
    model = instantiate(config).train()
    assert model.student is not model.teacher
    assert set(model([make_item(0)])) == {"loss_cosine", "loss_image"}


def test_crops_as_they_were_cut_get_the_teachers_native_size(make_clipself) -> None:
    piece = torch.zeros(3, 20, 10, dtype=torch.uint8)
    pixels = make_clipself().preprocess_crops([{"crops": [piece]}], "crops")
    assert pixels.shape == (1, 3, 64, 64)


def short_towers(**options: int) -> Towers:
    """Towers of two blocks."""
    towers = make_towers(**options)
    for tower in (towers.student, towers.teacher):
        del tower.visual.transformer.resblocks[2:]
        tower.read_visual()
    towers.student.freeze(-1)
    return towers


def run(model, items) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(items)["loss_cosine"]
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss), found


@pytest.mark.parametrize("raw", [False, True])
def test_regions_that_fill_up_a_batch_change_neither_loss_nor_gradients(
    make_item, raw: bool
) -> None:
    items = [make_item(0, 3), make_item(1, 5)]
    plain, filled = (
        CLIPSelfDistiller(towers=short_towers(region_slots=slots)).train() for slots in (0, 9)
    )
    for model in (plain, filled):
        model.terms = (CropTerm(raw=raw),)
        with torch.no_grad():
            model.student.block_modules[0].mlp.c_fc.weight *= 2.0
    loss, expected = run(plain, items)
    got_loss, got = run(filled, items)
    assert loss > 0.01
    assert got_loss == pytest.approx(loss, abs=1e-6)
    assert got.keys() == expected.keys()
    for name, gradient in got.items():
        assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_shapes_and_graphs_of_a_compiled_step_are_those_of_any_number_of_regions(
    make_item, monkeypatch
) -> None:
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    towers = short_towers(region_slots=8)
    for tower in (towers.student, towers.teacher):
        tower.set_compile("step")
        tower.compiler = Compiler(backend)
    model = CLIPSelfDistiller(towers=towers).train()
    shapes = set()
    distances = terms.cosine_distances
    monkeypatch.setattr(
        terms,
        "cosine_distances",
        lambda student, teacher: shapes.add(student.shape) or distances(student, teacher),
    )
    for counts in ((3, 5), (1, 2), (8, 8)):
        items = [make_item(number, count) for number, count in enumerate(counts)]
        model(items)["loss_cosine"].backward()
    torch._dynamo.reset()
    assert not model.student.compiler.failed
    # The student's and the teacher's.
    assert len(graphs) == 2
    assert shapes == {(16, model.student.embed_dim)}


@pytest.mark.parametrize(("mode", "source", "slots"), [("off", "grid", 0), ("step", "both", 8)])
def test_the_config_names_the_most_regions_of_an_image(emoji_cfg, mode, source, slots) -> None:
    overrides = ["MODEL.CLIP.COMPILE", mode, "INPUT.REGIONS.SOURCE", source]
    cfg = emoji_cfg("clipself_patches", *overrides, "INPUT.REGIONS.MAX_BOXES", 4)
    assert towers_from_config(cfg).region_slots == slots


def test_the_yardstick_waits_for_the_device_only_where_it_is_written(make_clipself, make_item):
    model, items = make_clipself().train(), [make_item(0, 3), make_item(1, 2)]
    with EventStorage(18) as storage:
        model(items)
        assert storage.latest()["distill/num_regions"] == (5.0, 18)
        assert "distill/constant_loss" not in storage.latest()
        storage.step()
        model(items)
        assert 0.0 < storage.latest()["distill/constant_loss"][0] < 1.0
