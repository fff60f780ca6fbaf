"""Claims about both kinds of tower: the reference's numbers, and identities."""

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip import load_tower
from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.clip.weights.layouts import to_open_clip
from clipself_d2.layers.region_pool import mask_embeddings, roi_embeddings

TOLERANCE = {"rtol": 1e-6, "atol": 1e-5}
# Stored gradients and stepped weights are every 29th value of the tensor.
SAMPLE = 29


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, **TOLERANCE)


def our_names(golden):
    """Map the reference's names to ours."""
    numbered = {name: torch.tensor(i) for i, name in enumerate(golden.teacher)}
    names = list(golden.teacher)
    return {names[int(i)]: ours for ours, i in to_open_clip(numbered).tensors.items()}


@torch.no_grad()
def test_image_embeddings_equal_the_reference(golden, teacher, student):
    native, big = golden.inputs["img_native"], golden.inputs["img_big"]
    assert_close(
        teacher.tower.forward_image(native), golden.outputs["teacher.image_features_native"]
    )
    assert_close(teacher.tower.forward_image(big), golden.outputs["teacher.image_features_big"])
    assert_close(student.forward_image(native), golden.outputs["student.image_features_native"])


@torch.no_grad()
def test_dense_maps_equal_the_reference(golden, teacher, student):
    for role, tower in (("teacher", teacher.tower), ("student", student)):
        for size in ("native", "big"):
            dense = tower.forward_dense(golden.inputs[f"img_{size}"]).embedding
            assert_close(dense, golden.outputs[f"{role}.dense_{size}"])


@torch.no_grad()
def test_block_outputs_equal_the_reference(golden, teacher):
    features = teacher.tower.forward_dense(golden.inputs["img_big"], blocks=(0, 1, 2))
    names = ("tap_block0", "tap_block1", "tap_last_vonly")
    for got, name in zip(features.blocks, names, strict=True):
        assert_close(got, golden.outputs[f"teacher.{name}"])


@torch.no_grad()
def test_pooled_regions_equal_the_reference(golden, teacher, student):
    for role, tower in (("teacher", teacher.tower), ("student", student)):
        dense = tower.forward_dense(golden.inputs["img_big"]).embedding
        for unit, suffix in ((False, "raw"), (True, "normalized")):
            rois = roi_embeddings(dense, golden.boxes, tower.patch_size, normalize=unit)
            assert_close(rois, golden.outputs[f"{role}.roi_big_{suffix}"])
            masked = mask_embeddings(dense, golden.masks, normalize=unit)
            assert_close(masked, golden.outputs[f"{role}.maskpool_big_{suffix}"])


@torch.no_grad()
def test_text_embeddings_and_scale_equal_the_reference(golden, teacher):
    assert_close(
        teacher.text(golden.inputs["tokens"].long()), golden.outputs["teacher.text_features"]
    )
    assert teacher.logit_scale == pytest.approx(golden.outputs["clipself.logit_scale_exp"].item())


def test_one_step_of_distillation_equals_the_reference(golden, teacher, student):
    names = our_names(golden)
    student.freeze(2)
    with torch.no_grad():
        target = teacher.tower.forward_image(golden.inputs["crops"])
    dense = student.train().forward_dense(golden.inputs["img_big"]).embedding
    pooled = roi_embeddings(dense, golden.boxes, student.patch_size)
    loss = 1 - F.cosine_similarity(pooled, target).mean()
    loss.backward()
    assert_close(loss.detach(), golden.outputs["clipself.loss"])
    parameters = dict(student.named_parameters())
    trained = {name for name, parameter in parameters.items() if parameter.requires_grad}
    assert trained == {names[name] for name in golden.grad_names}
    for name, expected in golden.grads.items():
        got = parameters[names[name]].grad.flatten()[::SAMPLE]
        torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-6)

    plain = student.no_weight_decay_names() & trained
    reference_plain = {names[n] for n in golden.no_decay if n.startswith("visual.")}
    assert plain == reference_plain & trained
    vit = golden.kind != "eva"
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameters[n] for n in sorted(trained - plain)], "weight_decay": 0.1},
            {"params": [parameters[n] for n in sorted(plain)], "weight_decay": 0.0},
        ],
        lr=1e-5,
        betas=(0.9, 0.98) if vit else (0.9, 0.999),
        eps=1e-6 if vit else 1e-8,
    )
    optimizer.step()
    teacher_weights = dict(teacher.tower.named_parameters())
    for name, expected in golden.stepped.items():
        got = parameters[names[name]].detach()
        # A step is 1e-5 long, so that the usual tolerance would see nothing.
        torch.testing.assert_close(got.flatten()[::SAMPLE], expected, rtol=0.0, atol=3e-7)
        mixed = 0.7 * got + 0.3 * teacher_weights[names[name]].detach()
        sampled = mixed.flatten()[::SAMPLE]
        torch.testing.assert_close(sampled, golden.ensembled[name], rtol=0.0, atol=3e-7)


@torch.no_grad()
def test_image_embedding_is_that_of_open_clip_at_native_size(tower, images):
    assert_close(tower.forward_image(images), tower.visual(images))


@torch.no_grad()
def test_attention_variant_on_class_token_is_the_image_embedding(tower, images):
    """The dense path and the image path run the same blocks: their last tokens agree."""
    tokens, extra = tower.embed(images)
    for block in tower.block_modules:
        tokens = tower.run_block(block, tokens, extra)
    assert_close(tower.project(tokens)[:, 0], tower.forward_image(images))
    dense = tower.forward_dense(images, form="attention").embedding
    expected = F.normalize(tower.project(tokens)[:, 1:], dim=-1)
    assert_close(dense.flatten(2).transpose(1, 2), expected)


@torch.no_grad()
def test_value_variant_differs_from_attention_only_in_the_last_block(tower, images):
    value = tower.forward_dense(images, blocks=(0, 1, 2))
    attention = tower.forward_dense(images, blocks=(0, 1, 2), form="attention")
    assert torch.equal(value.blocks[0], attention.blocks[0])
    assert torch.equal(value.blocks[1], attention.blocks[1])
    assert not torch.allclose(value.blocks[2], attention.blocks[2], atol=1e-2)


@torch.no_grad()
def test_value_variant_keeps_every_cell_to_itself_in_the_last_block(tower, images):
    """Changing the tokens of one cell before the last block changes that cell alone."""
    tokens, _ = tower.embed(images)
    block = tower.block_modules[-1]
    changed = tokens.clone()
    changed[:, 5] += 1.0
    difference = (
        tower.finish(block, changed, tower.value(block, changed))
        - tower.finish(block, tokens, tower.value(block, tokens))
    ).abs()
    touched = difference.amax((0, 2)) > 1e-6
    assert touched.nonzero().flatten().tolist() == [5]


@torch.no_grad()
def test_cells_have_unit_norm_and_blocks_come_in_the_order_asked(tower):
    images = torch.randn(1, 3, 48, 96)
    features = tower.forward_dense(images, blocks=(2, 0))
    assert_close(features.embedding.norm(dim=1), torch.ones(1, 3, 6))
    assert features.embedding.shape == (1, 32, 3, 6)
    swapped = tower.forward_dense(images, blocks=(0, 2)).blocks
    assert torch.equal(features.blocks[0], swapped[1])
    assert torch.equal(features.blocks[1], swapped[0])


@torch.no_grad()
@pytest.mark.parametrize("size", [(65, 64), (50, 90), (1, 17)])
def test_sizes_between_patches_are_zero_padded_right_and_bottom(tower, size):
    images = torch.randn(1, 3, *size)
    height, width = -(-size[0] // 16), -(-size[1] // 16)
    padded = torch.zeros(1, 3, height * 16, width * 16)
    padded[:, :, : size[0], : size[1]] = images
    dense = tower.forward_dense(images).embedding
    assert dense.shape[2:] == (height, width)
    assert_close(dense, tower.forward_dense(padded).embedding)
    assert_close(tower.forward_image(images), tower.forward_image(padded))


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(tower):
    images = torch.randn(3, 3, 32, 80)
    together = tower.forward_dense(images).embedding
    assert_close(together[1:2], tower.forward_dense(images[1:2]).embedding)


@pytest.mark.parametrize("form", ["clipself", "attention"])
@pytest.mark.parametrize("num_blocks", [1, 2, 3, ALL_BLOCKS])
def test_every_trainable_parameter_gets_a_gradient(tower, num_blocks, form, check_gradients):
    tower.set_dense_form(form)
    tower.freeze(num_blocks)
    check_gradients(tower, 48, 80, form=form)


def test_projection_stays_frozen_when_everything_is_trained(tower):
    tower.freeze(ALL_BLOCKS)
    head = "visual.proj" if hasattr(tower.visual, "proj") else "visual.trunk.head.weight"
    frozen = {name for name, p in tower.named_parameters() if not p.requires_grad}
    assert head in frozen
    # Beside the projection, EVA's query and key of the last block, which no gradient reaches.
    rest = {n for n in frozen if n != head and n != "visual.trunk.head.bias"}
    idle = ("attn.q_proj.weight", "attn.q_proj.bias", "attn.k_proj.weight")
    expected = set() if head == "visual.proj" else {f"visual.trunk.blocks.2.{n}" for n in idle}
    assert rest == expected


def test_freeze_leaves_nothing_trainable_and_starts_afresh(tower):
    tower.freeze(ALL_BLOCKS)
    tower.freeze()
    assert not any(p.requires_grad for p in tower.parameters())
    tower.freeze(1)
    names = {n for n, p in tower.named_parameters() if p.requires_grad}
    assert names
    assert all("blocks.2." in name for name in names)


def test_attention_in_the_last_block_trains_its_query_and_key(tower):
    tower.set_dense_form("attention")
    tower.freeze(1)
    frozen = {n for n, p in tower.block_modules[-1].named_parameters() if not p.requires_grad}
    assert frozen == set()


def test_what_stands_behind_the_blocks_can_stay(tower):
    tower.freeze(ALL_BLOCKS, behind=False)
    behind = {id(p) for p in tower.parameters_behind()}
    assert behind
    assert not any(p.requires_grad for p in tower.parameters() if id(p) in behind)
    assert tower.trained_blocks == ALL_BLOCKS


@torch.no_grad()
def test_the_last_block_follows_the_tower_unless_told(tower, images):
    attended = tower.forward_dense(images, form="attention").embedding
    tower.set_dense_form("attention")
    assert torch.equal(tower.forward_dense(images).embedding, attended)
    assert not torch.equal(tower.forward_dense(images, form="clipself").embedding, attended)
    tower.set_dense_form("clipself")


@torch.no_grad()
def test_a_region_of_one_cell_is_that_cell(tower, images):
    region_map = tower.region_map(images)
    cells = tower.embed_cells(region_map)
    assert torch.equal(cells, tower.forward_dense(images).embedding)
    pooled = region_map[:, :, :1, :1]
    assert torch.equal(tower.embed_pooled(pooled), region_map[:, :, 0, 0])


def test_wrong_numbers_are_named(tower, images):
    with pytest.raises(ValueError, match="has 3; 0 trains none"):
        tower.freeze(4)
    with pytest.raises(ValueError, match=r"blocks 0 to 2, not \[3\]"):
        tower.forward_dense(images, blocks=(1, 3))
    with pytest.raises(ValueError, match="form is 'none'"):
        tower.forward_dense(images, form="none")


def test_state_names_are_those_of_open_clip(new_clip, new_open_clip):
    for kind in ("vit", "eva"):
        model, plain = new_clip(kind), new_open_clip(kind)
        assert set(model.open_clip_state_dict()) == set(plain.state_dict())
        assert all(name.startswith("visual.") for name in model.tower.state_dict())


@torch.no_grad()
def test_bf16_stays_near_fp32_and_returns_float32(tower, images):
    exact = tower.forward_dense(images, blocks=(1,))
    tower.precision = "bf16"
    rough = tower.forward_dense(images, blocks=(1,))
    assert rough.embedding.dtype == rough.blocks[0].dtype == torch.float32
    assert not torch.equal(rough.embedding, exact.embedding)
    assert F.cosine_similarity(rough.embedding, exact.embedding).min() > 0.99
    assert_close(rough.embedding.norm(dim=1), torch.ones(2, 4, 4))


@torch.no_grad()
def test_mixed_precision_of_a_trainer_reaches_the_tower(tower, images):
    outside = tower.forward_dense(images, blocks=(1,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = tower.forward_dense(images, blocks=(1,))
        picture = tower.forward_image(images)
    assert inside.embedding.dtype == inside.blocks[0].dtype == picture.dtype == torch.float32
    assert not torch.equal(inside.embedding, outside.embedding)
    assert F.cosine_similarity(inside.embedding, outside.embedding).min() > 0.99
    assert_close(inside.embedding.norm(dim=1), torch.ones(2, 4, 4))


def test_every_parameter_has_a_depth():
    tower = load_tower("ViT-Ti-8-emoji")
    depth = tower.parameter_depths()
    assert set(depth) == {name for name, _ in tower.named_parameters()}
    assert set(depth.values()) == set(range(tower.num_blocks + 2))


def test_depth_follows_the_way_of_an_image():
    expected = {
        "visual.conv1.weight": 0,
        "visual.class_embedding": 0,
        "visual.positional_embedding": 0,
        "visual.ln_pre.weight": 0,
        "visual.transformer.resblocks.0.ln_1.weight": 1,
        "visual.transformer.resblocks.5.mlp.c_proj.bias": 6,
        "visual.ln_post.weight": 7,
        "visual.proj": 7,
    }
    assert expected.items() <= load_tower("ViT-Ti-8-emoji").parameter_depths().items()


def test_depth_of_timm_trunks(new_clip):
    tower = new_clip("eva").tower
    depth = tower.parameter_depths()
    assert depth["visual.trunk.patch_embed.proj.weight"] == 0
    assert depth["visual.trunk.blocks.0.norm1.weight"] == 1
    last = [name for name, number in depth.items() if number == tower.num_blocks + 1]
    behind = ("visual.trunk.norm", "visual.trunk.fc_norm", "visual.trunk.head", "visual.head")
    assert last
    assert all(name.startswith(behind) for name in last)


TYPES = (torch.float16, torch.bfloat16, torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("dtype", TYPES)
def test_pictures_of_every_floating_type_are_taken(tower, images, dtype):
    got, exact = images.to(dtype), images.to(dtype).float()
    assert torch.equal(tower.forward_image(got), tower.forward_image(exact))
    assert torch.equal(tower.forward_dense(got).embedding, tower.forward_dense(exact).embedding)
    if tower.reads_class_token:
        masks = [torch.ones(1, 4, 4, dtype=torch.bool)] * 2
        regions = tower.forward_regions(exact, masks)
        assert torch.equal(tower.forward_regions(got, masks), regions)


@torch.no_grad()
@pytest.mark.parametrize("dtype", TYPES)
def test_towers_of_every_floating_type_take_float32(tower, images, dtype):
    expected = tower.forward_dense(images, blocks=[0]).embedding
    moved = tower.to(dtype)
    dense = moved.forward_dense(images, blocks=[0])
    assert {dense.embedding.dtype, dense.blocks[0].dtype} == {torch.float32}
    assert moved.forward_image(images).dtype == torch.float32
    assert F.cosine_similarity(dense.embedding, expected).min() > 0.99


def test_what_is_no_batch_of_normalised_pictures_is_told_how_to_be_one(tower, images):
    wrong = [
        (images[0], r"got \(3, 64, 64\); images\[None\] makes a batch"),
        (images[:, :1], r"got \(2, 1, 64, 64\)"),
        (images[..., :0], r"got \(2, 3, 64, 0\)"),
        (images.byte(), r"got torch.uint8; normalise by"),
        (list(images), r"got a list; torch.stack"),
        (images.numpy(), r"got a ndarray"),
    ]
    for given, complaint in wrong:
        for embed in (tower.forward_image, tower.forward_dense, tower.region_map):
            with pytest.raises(ValueError, match=complaint):
                embed(given)


def test_no_picture_gives_no_row(tower, images):
    assert tower.forward_image(images[:0]).shape == (0, 32)
    dense = tower.forward_dense(images[:0], blocks=[0])
    assert dense.embedding.shape == (0, 32, 4, 4)
    assert dense.blocks[0].shape == (0, 96, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 900), (900, 1), (1, 1)])
def test_pictures_of_extreme_shape_have_their_cells(tower, size):
    cells = tower.forward_dense(torch.zeros(1, 3, *size)).embedding
    assert cells.shape[2:] == (-(-size[0] // 16), -(-size[1] // 16))
    assert cells.isfinite().all()
