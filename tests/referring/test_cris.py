import copy

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from clipself_d2.layers.letterbox import restore_map

SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.DIM_FFN", 32, "MODEL.CRIS.NUM_LAYERS", 1]
SMALL += ["MODEL.CLIP.TRAINABLE_BLOCKS", -1, "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1]
SMALL += ["MODEL.CRIS.KERNEL_SIZE", 3]
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.fixture
def make(emoji_cfg):
    def build(*overrides):
        torch.manual_seed(0)
        return build_model(emoji_cfg("cris", *SMALL, *overrides))

    return build


@pytest.fixture
def make_resnet(emoji_cfg, monkeypatch):
    def build(*overrides, **text):
        torch.manual_seed(0)
        config = {**RESNET, "text_cfg": {**RESNET["text_cfg"], **text}}
        monkeypatch.setattr(open_clip, "get_model_config", lambda name: copy.deepcopy(config))
        monkeypatch.setattr("clipself_d2.clip.model.project_models", lambda: ())
        return build_model(emoji_cfg("cris", *SMALL, "MODEL.CLIP.NAME", "tiny", *overrides))

    return build


def pair(seed, sentence, size=64, **extra):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, size, size), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(size, size)
    mask[: seed * size // 4, : size // 2] = 1.0
    return {"image": image, "sentence": sentence, "ref_mask": mask, **extra}


PAIRS = [pair(1, "the dog on the left"), pair(2, "the largest cat")]


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_training_gives_one_loss_and_a_gradient_for_all_that_learns(kind, norm, make, make_resnet):
    model = (make if kind == "vit" else make_resnet)("MODEL.CRIS.NORM", norm).train()
    losses = model(PAIRS)
    assert list(losses) == ["loss_ref"]
    losses["loss_ref"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert any(name.startswith("text.") for name in trained)
    assert any(name.startswith("backbone.tower.visual.") for name in trained)
    assert not any("logit_" in name for name in trained)


def test_group_norm_trains_a_single_pair(make_resnet):
    model = make_resnet("MODEL.CRIS.NORM", "GN").train()
    model(PAIRS[:1])["loss_ref"].backward()


def test_batch_norm_of_a_single_pair_names_the_remedy(make):
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH.*MODEL\.CRIS\.NORM to GN"):
        make("MODEL.CRIS.NORM", "BN").train()(PAIRS[:1])


def test_loss_is_that_of_the_scores(make):
    model = make("MODEL.CRIS.NORM", "GN").train()
    pixels = model.preprocess_images([item["image"] for item in PAIRS])
    logits = model.score(pixels, [item["sentence"] for item in PAIRS])
    target = F.interpolate(torch.stack([item["ref_mask"] for item in PAIRS])[:, None], (32, 32))
    expected = F.binary_cross_entropy_with_logits(logits, target)
    torch.testing.assert_close(model(PAIRS)["loss_ref"], expected)


@torch.no_grad()
def test_masks_have_the_size_of_the_original_and_follow_the_threshold(make):
    model = make().eval()
    assert model.mask_threshold == 0.35
    model.mask_threshold = 0.5
    item = pair(1, "the dog", height=30, width=50)
    (output,) = model([item])
    logits = model.score(model.preprocess_images([item["image"]]), ["the dog"])
    canvas = F.interpolate(logits.sigmoid(), (64, 64), mode="bicubic", align_corners=True)
    expected = restore_map(canvas[0, 0].numpy(), 30, 50)
    np.testing.assert_allclose(output["ref_mask_prob"].numpy(), expected, atol=1e-6)
    assert torch.equal(output["ref_mask"], output["ref_mask_prob"] > 0.5)
    assert output["ref_mask"].shape == (30, 50)


@torch.no_grad()
def test_an_image_with_several_sentences_is_encoded_once(make):
    model = make().eval()
    size = {"height": 48, "width": 64}
    first, second = pair(1, "the dog", **size), pair(2, "the dog", **size)
    items = [first, {**first, "sentence": "the cat"}, second]
    counts = []
    model.backbone.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    together = model(items)
    assert counts == [2]
    alone = [model([item])[0] for item in items]
    for got, want in zip(together, alone, strict=True):
        torch.testing.assert_close(got["ref_mask_prob"], want["ref_mask_prob"], rtol=0.0, atol=1e-5)
    named = [{**pair(1, text, **size), "file_name": "a.jpg"} for text in ("the dog", "the cat")]
    counts.clear()
    model(named)
    assert counts == [1]


@torch.no_grad()
def test_tokens_behind_the_end_change_nothing(make):
    model = make("MODEL.CRIS.WORD_LEN", 16).eval()
    pixels = model.preprocess_images([PAIRS[0]["image"]])
    before = model.score(pixels, ["the dog"])
    model.word_length = 8
    torch.testing.assert_close(model.score(pixels, ["the dog"]), before, rtol=0.0, atol=1e-5)


def test_frozen_clip_trains_the_heads_alone(make):
    model = make("MODEL.CLIP.TRAINABLE_BLOCKS", 0, "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", 0).train()
    trained = {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"resampling", "neck", "decoder", "proj"}
    model(PAIRS)["loss_ref"].backward()


def test_the_text_tower_alone_can_be_trained(make):
    model = make("MODEL.CLIP.TRAINABLE_BLOCKS", 0).train()
    model(PAIRS)["loss_ref"].backward()
    learned = [p.grad for n, p in model.named_parameters() if n.startswith("text.")]
    assert sum(grad is not None and bool(grad.any()) for grad in learned) > 10
    assert not any(p.requires_grad for p in model.backbone.parameters())


def test_a_norm_shared_by_processes_on_a_cpu_is_refused(make, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"MODEL\.CRIS\.NORM is SyncBN.* set it to GN or BN"):
        make("MODEL.CRIS.NORM", "SyncBN")


def test_ablations_leave_decoder_and_sentence_kernel_out(make):
    model = make("MODEL.CRIS.NUM_LAYERS", 0, "MODEL.CRIS.KERNEL_SIZE", 0).train()
    assert model.decoder is None
    model(PAIRS)["loss_ref"].backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


def test_ten_steps_fit_two_pairs(make):
    model = make().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(10):
        loss = model(PAIRS)["loss_ref"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_vit_starts_from_clips_similarity_and_a_resnet_as_released(kind, make, make_resnet):
    model = make() if kind == "vit" else make_resnet()
    sentence, cell = model.neck.txt_proj[0].weight, model.neck.f1_v_proj[0].weight[:, :, 0, 0]
    assert torch.equal(sentence, cell) == (kind == "vit")
    prior = model.proj.txt.bias[-1].sigmoid().item()
    assert (prior == pytest.approx(0.03)) == (kind == "vit")


def test_registered_under_the_name_that_yaml_uses():
    assert META_ARCH_REGISTRY.get("CRIS").__name__ == "CRIS"


@pytest.mark.parametrize("sizes", [(64, 48), (40, 40)])
def test_unfit_image_sizes_name_the_key(sizes, make):
    items = [pair(1, "a", size=size, height=8, width=8) for size in sizes]
    with pytest.raises(ValueError, match=r"multiples of 16 px; change INPUT\.REFER_SIZE"):
        make().eval()(items)


def test_too_long_a_context_names_the_key(make):
    with pytest.raises(ValueError, match=r"MODEL\.CRIS\.WORD_LEN is 77.*3 to 24 tokens"):
        make("MODEL.CRIS.WORD_LEN", 77)


@pytest.mark.parametrize(
    "text",
    [
        {"pool_type": "last", "no_causal_mask": True},
        {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
        {"no_causal_mask": True},
        {"pool_type": "eos", "eos_id": 49407},
    ],
    ids=["clipa", "siglip", "mobileclip", "worldwide"],
)
def test_a_text_tower_without_an_end_token_of_the_largest_number_is_refused(text, make_resnet):
    """Word features and padding masks would be those of wrong tokens, without a word."""
    with pytest.raises(ValueError, match=r"tiny .*end token.*MODEL\.CLIP\.NAME"):
        make_resnet(**text)


def test_checkpointing_changes_no_gradient(make):
    gradients = []
    for flag in (False, True):
        model = make("MODEL.CLIP.ACTIVATION_CHECKPOINTING", flag, "MODEL.CRIS.DROPOUT", 0.0)
        assert model.backbone.tower.checkpointing is flag
        model.train()(PAIRS)["loss_ref"].backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
