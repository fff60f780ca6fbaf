from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from open_clip.model import CLIP
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import nn

from clipself_d2.clip.model import ClipModel, build_tower, load_clip, load_tower
from clipself_d2.clip.text import TextEncoder
from clipself_d2.clip.towers.resnet import (
    DenseAttentionPool,
    ResNetTower,
    attend_cells,
    attend_mean,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "cris"
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
ZERO = (0.0, 0.0, 0.0)
ONE = (1.0, 1.0, 1.0)


def read(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}
    own = {k.removeprefix("param/"): v for k, v in arrays.items() if k.startswith("param/")}
    return arrays, own


def make_visual(image_size=64, width=8):
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 2, 1], 24, 4, image_size=image_size, width=width)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    return visual.eval()


def make_tower(visual=None):
    visual = make_visual() if visual is None else visual
    return build_tower(visual, name="tiny", pixel_mean=ZERO, pixel_std=ONE)


@pytest.fixture(scope="module")
def golden_clip():
    """The tiny CLIP of the released code of CRIS, and its residual branch."""
    arrays, own = read("clip_rn_encoder")
    vision = {"layers": [1, 1, 2, 1], "width": 8, "head_width": 64, "image_size": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2}
    clip = CLIP(24, vision, text, quick_gelu=True)
    connect = {k.split("attnpool.connect.")[1]: v for k, v in own.items() if ".connect." in k}
    state = {k: v for k, v in own.items() if ".connect." not in k}
    table = torch.zeros(49408, 64)
    table[arrays["token_ids"]] = arrays["token_rows"]
    clip.load_state_dict({**state, "token_embedding.weight": table})
    visual = clip.visual
    del clip.visual
    encoder = TextEncoder(clip=clip, tokenizer=open_clip.tokenizer.SimpleTokenizer(), embed_dim=24)
    branch = DenseAttentionPool(256, 24)
    branch.connect.load_state_dict(connect)
    model = ClipModel(name="tiny", tower=make_tower(visual), text=encoder)
    return model.eval(), branch.eval(), arrays


@torch.no_grad()
def test_levels_are_those_of_the_released_code_of_cris(golden_clip):
    model, branch, arrays = golden_clip
    stages = model.tower.forward_stages(arrays["image"])
    torch.testing.assert_close(stages["res3"], arrays["C3"], **TOLERANCE)
    torch.testing.assert_close(stages["res4"], arrays["C4"], **TOLERANCE)
    got = branch(stages["res5"], model.tower.pool_dense(stages["res5"]))
    torch.testing.assert_close(got, arrays["C5"], **TOLERANCE)


@torch.no_grad()
def test_words_and_sentence_are_those_of_the_released_code_of_cris(golden_clip):
    model, _, arrays = golden_clip
    words, state = model.text.word_features(arrays["word"])
    torch.testing.assert_close(words, arrays["word_feat"], **TOLERANCE)
    torch.testing.assert_close(state, arrays["state_feat"], **TOLERANCE)


@torch.no_grad()
def test_dense_pool_on_a_rectangle_is_that_of_the_released_code_of_cris():
    arrays, own = read("attnpool_dense")
    pool = AttentionPool2d(4, 32, 4, 24)
    pool.load_state_dict({k: v for k, v in own.items() if not k.startswith("connect.")})
    branch = DenseAttentionPool(32, 24).eval()
    branch.load_state_dict({k: v for k, v in own.items() if k.startswith("connect.")})
    got = branch(arrays["x"], attend_cells(arrays["x"], pool))
    torch.testing.assert_close(got, arrays["y"], **TOLERANCE)


@torch.no_grad()
def test_native_pictures_are_embedded_as_by_open_clip():
    visual = make_visual()
    pictures = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(make_tower(visual).forward_image(pictures), visual(pictures))


@torch.no_grad()
def test_pool_of_one_cell_is_the_pool_of_a_constant_map_without_positions():
    torch.manual_seed(0)
    pool = AttentionPool2d(2, 32, 4, 24)
    pool.positional_embedding.zero_()
    cell = torch.randn(1, 32, 1, 1)
    constant = attend_mean(cell.expand(-1, -1, 3, 5), pool)
    torch.testing.assert_close(constant, attend_mean(cell, pool), **TOLERANCE)
    dense = attend_cells(cell.expand(-1, -1, 3, 5), pool)
    torch.testing.assert_close(dense, constant[:, :, None, None].expand_as(dense), **TOLERANCE)


@torch.no_grad()
def test_stages_can_be_run_one_by_one_and_on_regions():
    tower = make_tower()
    stages = tower.forward_stages(torch.randn(1, 3, 64, 96))
    sizes = {name: tuple(stage.shape) for name, stage in stages.items()}
    assert sizes == {
        "res2": (1, 32, 16, 24),
        "res3": (1, 64, 8, 12),
        "res4": (1, 128, 4, 6),
        "res5": (1, 256, 2, 3),
    }
    assert {name: shape[1] for name, shape in sizes.items()} == tower.channels
    torch.testing.assert_close(tower.forward_res5(stages["res4"]), stages["res5"])
    regions = tower.forward_res5(torch.randn(5, 128, 4, 4))
    assert tower.pool(regions).shape == (5, 24)
    assert tower.pool(tower.forward_res5(torch.zeros(0, 128, 4, 4))).shape == (0, 24)
    assert list(tower.forward_stages(torch.randn(1, 3, 64, 64), last="res4")) == [
        "res2",
        "res3",
        "res4",
    ]


def test_frozen_norms_keep_their_statistics_in_training_and_batch_norms_do_not():
    for norm, keeps in (("FrozenBN", True), ("BN", False), ("SyncBN", False)):
        tower = make_tower()
        tower.set_norm(norm)
        before = {k: v.clone() for k, v in tower.state_dict().items() if "running" in k}
        tower.train()
        tower.forward_image(torch.randn(2, 3, 64, 64)).sum().backward()
        after = tower.state_dict()
        assert all(torch.equal(before[key], after[key]) for key in before) == keeps
        assert (tower.visual.bn1.weight.grad is None) == keeps
        assert tower.visual.conv1.weight.grad is not None
        assert set(before) == {key for key in after if "running" in key}


def test_every_weight_learns_through_the_dense_pool():
    tower = make_tower()
    tower.train()
    tower.pool_dense(tower.forward_stages(torch.randn(2, 3, 64, 96))["res5"]).sum().backward()
    assert all(parameter.grad is not None for parameter in tower.parameters())
    tower.freeze()
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_sizes_of_rn50_are_read_off_the_modules():
    with torch.device("meta"):
        visual = ModifiedResNet([3, 4, 6, 3], 1024, 32, image_size=224, width=64)
    tower = make_tower(visual)
    assert (tower.embed_dim, tower.image_size) == (1024, 224)
    assert tower.channels == {"res2": 256, "res3": 512, "res4": 1024, "res5": 2048}


def test_weights_round_trip_through_a_file(tmp_path, monkeypatch):
    config = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 1, "layers": 1},
    }
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: dict(config))
    model = load_clip("tiny-resnet")
    assert isinstance(model.tower, ResNetTower)
    torch.save(model.open_clip_state_dict(), tmp_path / "clip.pt")
    tower = load_tower("tiny-resnet", str(tmp_path / "clip.pt"))
    picture = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(tower.forward_image(picture), model.tower.forward_image(picture))


def test_bad_names_are_refused():
    tower = make_tower()
    with pytest.raises(ValueError, match="norm of tiny is 'GN', expected one of"):
        tower.set_norm("GN")
    visual = make_visual()
    visual.attnpool = None
    with pytest.raises(ValueError, match="tiny has no attention pool"):
        make_tower(visual)
