"""The panoptic model: what learns, what comes out, and words that change."""

import copy

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model

from clipself_d2.engine.evaluate import vocabulary_of
from clipself_d2.engine.trainer import Trainer

SMALL = ["MODEL.OV_PANOPTIC.NUM_QUERIES", 8, "MODEL.OV_PANOPTIC.NUM_POINTS", 64]


@pytest.fixture
def make(emoji_cfg):
    def build(*overrides):
        torch.manual_seed(0)
        cfg = emoji_cfg("ov_panoptic_untouched", *SMALL, *overrides)
        return cfg, build_model(cfg)

    return build


def batch(cfg):
    return next(iter(Trainer.build_train_loader(cfg)))


@pytest.mark.parametrize("layers", [0, 1])
def test_all_that_is_trained_gets_a_gradient(layers, make):
    cfg, model = make("MODEL.OV_PANOPTIC.PIXEL_ATTENTION_LAYERS", layers)
    losses = model.train()(batch(cfg))
    assert len(losses) == 3 * (cfg.MODEL.OV_PANOPTIC.NUM_LAYERS + 1)
    sum(losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == []
    assert not any(p.requires_grad for p in model.backbone.bottom_up.parameters())


def test_novel_classes_and_pictures_without_segments_leave_no_trace_in_the_loss(make):
    cfg, model = make()
    items = batch(cfg)
    base = model.classifier.base_mask
    assert all(bool(base[item["instances"].gt_classes].all()) for item in items)
    changed = copy.deepcopy(items)
    novel = int((~base).nonzero()[0])
    for item in changed:
        item["instances"].gt_classes[:] = novel
    empty = copy.deepcopy(items)
    for item in empty:
        item["instances"] = item["instances"][torch.zeros(len(item["instances"]), dtype=bool)]
    model.train()
    got, wanted = model(changed), model(empty)
    for name, value in wanted.items():
        torch.testing.assert_close(got[name], value)
        assert value.isfinite()


def test_outputs_have_the_pictures_size(make):
    cfg, model = make()
    model.eval()
    loader = build_detection_test_loader(cfg, "emoji_ov_panoptic_val")
    items = [next(iter(loader))[0]]
    items[0]["height"], items[0]["width"] = 50, 70
    with torch.no_grad():
        output = model(items)[0]
    ids, segments = output["panoptic_seg"]
    assert ids.shape == (50, 70)
    assert {int(value) for value in ids.unique()} - {0} == {row["id"] for row in segments}
    assert output["sem_seg"].shape == (model.classifier.num_classes, 50, 70)
    assert output["instances"].image_size == (50, 70)


@pytest.mark.parametrize("pooling", ["hard", "soft", "tokens"])
def test_a_mask_of_the_whole_picture_is_embedded_as_its_mean(pooling, make):
    _, model = make("MODEL.OV_PANOPTIC.POOLING", pooling)
    image = torch.randn(3, 64, 96)
    with torch.no_grad():
        dense = model.backbone.bottom_up(image[None])["clip"][0]
        masks = torch.stack([torch.full((64, 96), 50.0), torch.full((64, 96), -50.0)])
        embedding, seen = model.embed_masks(dense, image, masks)
        wanted = dense.mean((1, 2))
        if pooling == "tokens":
            wanted = model.backbone.bottom_up.tower.forward_image(image[None])[0]
    torch.testing.assert_close(embedding[0], wanted, rtol=1e-4, atol=1e-5)
    assert seen.tolist() == [True, False]


def test_other_words_change_the_outputs_and_come_back(make):
    cfg, model = make()
    before = model.classifier.get_embeddings()[0], model.classifier.get_words()[0]
    with vocabulary_of(cfg, model, "emoji_ov_panoptic_val"):
        assert not model.classifier.base_mask.all()
        assert model.classifier.thing_mask.sum() == 80
    assert torch.equal(before[0], model.classifier.get_embeddings()[0])
    assert torch.equal(before[1], model.classifier.get_words()[0])


def test_unknown_options_are_refused(make):
    with pytest.raises(ValueError, match="pooling is 'mean'"):
        make("MODEL.OV_PANOPTIC.POOLING", "mean")
    with pytest.raises(ValueError, match="TASKS"):
        make("MODEL.OV_PANOPTIC.TASKS", ["things"])
    with pytest.raises(ValueError, match="takes four"):
        make("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3"])


def test_bf16_autocast_takes_a_step(make):
    cfg, model = make()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train()(batch(cfg))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_state_with_a_missing_or_a_foreign_name_does_not_load(make):
    _, model = make()
    state = model.state_dict()
    assert not any("embeddings" in name for name in state)
    name = next(iter(state))
    with pytest.raises(RuntimeError, match=f"Missing key.*{name}"):
        model.load_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(RuntimeError, match="Unexpected key.*stranger"):
        model.load_state_dict({**state, "stranger": state[name]})


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(emoji_cfg, tmp_path):
    def run(*, resume: bool = False) -> dict[str, torch.Tensor]:
        few = ["SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.IMS_PER_BATCH", 2]
        cfg = emoji_cfg("ov_panoptic_untouched", *SMALL, *few, "OUTPUT_DIR", str(tmp_path / "run"))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return {name: value.clone() for name, value in trainer.model.state_dict().items()}

    whole = run()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    again = run(resume=True)
    assert set(whole) == set(again)
    for name, value in whole.items():
        assert torch.equal(value, again[name]), name
