"""Names of weights in every layout, there and back."""

import pytest
import torch

from clipself_d2.clip.weights.layouts import is_beside_tower, place_text, to_clipself, to_open_clip

HEAD_DIM = 32


def assert_same(got, expected) -> None:
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_open_clip_to_clipself_and_back_is_bit_equal(new_clip, kind) -> None:
    state = new_clip(kind).open_clip_state_dict()
    there = to_clipself(state, head_dim=HEAD_DIM)
    back = to_open_clip(there)
    assert_same(back.tensors, state)
    assert back.layout == ("eva_clip" if kind == "eva" else "open_clip")
    assert len(back.ignored) == len(there) - len(state)


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_clipself_file_of_the_reference_comes_back_whole(load_golden, kind) -> None:
    """Every name of the reference's own file, its rotary tables too, so that it loads strictly."""
    golden = load_golden(kind).teacher
    written = to_clipself(to_open_clip(golden).tensors, head_dim=HEAD_DIM)
    assert {key: tuple(value.shape) for key, value in written.items()} == {
        key: tuple(value.shape) for key, value in golden.items()
    }
    for key, value in golden.items():
        if ".rope." in key:
            torch.testing.assert_close(written[key], value, rtol=0, atol=1e-6)
        else:
            assert torch.equal(written[key], value), key
    assert any(".rope." in key for key in written) == (kind == "eva")


def test_renaming_leaves_its_argument_alone(load_golden) -> None:
    state = dict(load_golden("eva").teacher)
    names = list(state)
    to_clipself(to_open_clip(state).tensors, head_dim=HEAD_DIM)
    assert list(state) == names


def test_image_tower_alone_is_renamed_too(new_clip) -> None:
    state = new_clip("eva").tower.state_dict()
    assert_same(to_open_clip(to_clipself(state, head_dim=HEAD_DIM)).tensors, state)


FVIT_REST = (
    "backbone.interpolate1.0.weight",
    "neck.lateral_convs.0.conv.weight",
    "rpn_head.rpn_cls.bias",
    "roi_head.bbox_head.all_embeddings",
)
OUR_REST = (
    "backbone.laterals.0.weight",
    "proposal_generator.rpn_head.conv.weight",
    "roi_heads.box_head.fc1.weight",
)


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize(
    ("prefix", "rest", "layout"),
    [
        ("backbone.", FVIT_REST, "F-ViT detector"),
        ("backbone.bottom_up.tower.", OUR_REST, "clipself_d2 detector"),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_image_tower_is_taken_out_of_a_detector(
    new_clip, kind, prefix, rest, layout, published
) -> None:
    state = new_clip(kind).tower.state_dict()
    names = to_clipself(state, head_dim=HEAD_DIM) if published else state
    detector = {f"{prefix}{key}": value for key, value in names.items()}
    detector |= {key: torch.zeros(1) for key in rest}
    found = to_open_clip(detector)
    assert_same(found.tensors, state)
    assert set(rest) <= set(found.ignored)
    naming = "eva_clip" if kind == "eva" and published else "open_clip"
    assert found.layout == f"{layout}, {naming}"


def test_parts_that_no_detector_has_are_not_passed_over(new_clip) -> None:
    state = {f"backbone.{k}": v for k, v in new_clip("vit").tower.state_dict().items()}
    found = to_open_clip({**state, "backbone.other": torch.zeros(1), "head.weight": torch.ones(1)})
    assert {"other", "head.weight"} <= set(found.tensors)
    assert found.ignored == ()


def test_settings_and_masks_are_no_weights() -> None:
    state = {
        "visual.proj": torch.zeros(1),
        "input_resolution": torch.tensor(224),
        "transformer.resblocks.0.attn_mask": torch.zeros(2, 2),
    }
    found = to_open_clip(state)
    assert set(found.tensors) == {"visual.proj"}
    assert set(found.ignored) == set(state) - {"visual.proj"}


def test_text_tower_moves_and_nothing_else_does() -> None:
    root = {"ln_final.bias": 1, "visual.transformer.x": 2, "logit_scale": 3}
    nested = {"text.ln_final.bias": 1, "visual.transformer.x": 2, "logit_scale": 3}
    assert place_text(root, nested=True) == nested
    assert place_text(nested, nested=False) == root
    assert [key for key in nested if is_beside_tower(key)] == ["text.ln_final.bias", "logit_scale"]


def test_eva_of_unknown_heads_asks_for_the_model(new_clip) -> None:
    with pytest.raises(ValueError, match="give --model"):
        to_clipself(new_clip("eva").open_clip_state_dict())


def test_towers_that_clipself_has_not_are_refused() -> None:
    siglip = {"visual.trunk.blocks.0.attn.qkv.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match="no EVA02"):
        to_clipself(siglip)
    foreign = {"visual.proj": torch.zeros(1), "text.transformer.embeddings.x": torch.zeros(1)}
    assert to_clipself(foreign).keys() == {"visual.proj", "transformer.embeddings.x"}
    with pytest.raises(ValueError, match="no text tower with text.proj"):
        to_clipself({**foreign, "text.proj.weight": torch.zeros(1)})


def test_regionclip_file_gives_tower_text_and_the_scale_it_was_trained_with() -> None:
    statistics = {"visual.bn1.running_mean": 1, "visual.bn1.running_var": 2}
    tower = {"visual.attnpool.positional_embedding": 0, **statistics}
    state = {key.replace("visual", "backbone"): torch.tensor(n) for key, n in tower.items()}
    state["lang_encoder.ln_final.bias"] = torch.tensor(5)
    rest = {"teacher_backbone.conv1.weight", "offline_backbone.fpn_lateral2.bias"}
    rest |= {"roi_heads.box_predictor.cls_score.weight"}
    found = to_open_clip({**state, **dict.fromkeys(rest, torch.zeros(1))})
    assert found.layout == "regionclip"
    assert set(found.ignored) == rest
    assert found.tensors["logit_scale"].exp().item() == pytest.approx(100.0)
    assert_same(
        {key: value for key, value in found.tensors.items() if key != "logit_scale"},
        {key: torch.tensor(n) for key, n in tower.items()}
        | {"ln_final.bias": torch.tensor(5), "visual.bn1.num_batches_tracked": torch.tensor(0)},
    )


def test_detector_on_offline_proposals_gives_its_tower_and_not_its_rpn() -> None:
    state = {
        "backbone.tower.visual.conv1.weight": torch.ones(1),
        "offline_rpn.backbone.bottom_up.stem.conv1.weight": torch.zeros(1),
        "roi_heads.box_predictor.bbox_pred.bias": torch.zeros(4),
    }
    found = to_open_clip(state)
    assert_same(found.tensors, {"visual.conv1.weight": torch.ones(1)})
    assert set(found.ignored) == set(state) - {"backbone.tower.visual.conv1.weight"}
