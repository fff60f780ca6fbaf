"""What is known of every model, and one tower of each family at its real size."""

import open_clip
import pytest
import torch
import torch.nn.functional as F
from open_clip.model import _build_vision_tower

from clipself_d2.clip import catalog
from clipself_d2.clip.model import build_tower, load_tower

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
# Model, its path's first words, patch, embedding and native size.
FAMILIES = [
    ("ViT-S-32-alt", "class-token", 32, 256, 224),
    ("ViT-B-16-quickgelu", "class-token", 16, 512, 224),
    ("ViT-L-14-CLIPA", "averaging", 14, 768, 224),
    ("EVA02-B-16", "class-token", 16, 512, 224),
    ("EVA01-g-14", "class-token", 14, 1024, 224),
    ("EVA02-E-14", "class-token", 14, 1024, 224),
    ("PE-Core-T-16-384", "attention-pooled", 16, 512, 384),
    ("PE-Core-bigG-14-448", "attention-pooled", 14, 1280, 448),
    ("ViT-B-16-SigLIP", "attention-pooled", 16, 768, 224),
    ("ViT-B-32-SigLIP2-256", "attention-pooled", 32, 768, 256),
    ("ViT-SO400M-14-SigLIP-384", "attention-pooled", 14, 1152, 378),
    ("ViTamin-S", "averaging", 16, 384, 224),
    ("ViTamin-XL-384", "averaging", 16, 1152, 384),
    ("vit_medium_patch16_gap_256", "averaging", 16, 512, 256),
    ("MobileCLIP-B", "class-token", 16, 512, 224),
    ("convnext_tiny", "ConvNeXt", 32, 1024, 224),
    ("convnext_large_d_320", "ConvNeXt", 32, 768, 320),
    ("RN50-quickgelu", "ResNet", 32, 1024, 224),
    ("RN50x4-quickgelu", "ResNet", 32, 640, 288),
]
REFUSED = [
    ("coca_ViT-B-32", "CoCa"),
    ("coca_base", "CoCa"),
    ("swin_base_patch4_window7_224", "SwinTransformer"),
    ("vit_relpos_medium_patch16_cls_224", "VisionTransformerRelPos"),
    ("MobileCLIP2-S0", "FastVit"),
]
DEEP = {"EVA01-g-14", "EVA02-E-14", "PE-Core-bigG-14-448", "ViTamin-XL-384", "convnext_large_d_320"}
# Small enough to be built with weights, or cut in depth.
BUILT = ["ViT-S-32-alt", "ViT-L-14-CLIPA", "EVA02-B-16", "PE-Core-T-16-384", "ViTamin-S"]
BUILT += ["ViT-B-32-SigLIP2-256", "vit_medium_patch16_gap_256", "MobileCLIP-B", "convnext_tiny"]
CUT = {"ViT-L-14-CLIPA": 2}


@pytest.mark.parametrize(
    ("name", "path", "patch", "embed_dim", "size"),
    [pytest.param(*f, marks=[pytest.mark.slow] if f[0] in DEEP else []) for f in FAMILIES],
)
def test_supported_families(name, path, patch, embed_dim, size):
    entry = catalog.describe(name)
    assert entry.supported
    assert entry.note.startswith(path)
    assert (entry.patch_size, entry.embed_dim, entry.image_size) == (patch, embed_dim, size)


@pytest.mark.parametrize(("name", "reason"), REFUSED)
def test_others_are_refused_with_a_reason(name, reason):
    entry = catalog.describe(name)
    assert not entry.supported
    assert reason in entry.note


@pytest.mark.parametrize(
    ("name", "reason"),
    [pytest.param(*r, marks=[] if r[1] == "CoCa" else [pytest.mark.slow]) for r in REFUSED],
)
def test_refused_models_do_not_load(name, reason):
    with pytest.raises(ValueError, match=f"{name} .*{reason}"):
        load_tower(name)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'ViT-Z' is no model"):
        catalog.describe("ViT-Z")


def test_the_projects_own_models_are_not_among_open_clips():
    assert set(catalog.known_models()) <= set(open_clip.list_models())
    assert "ViT-Ti-8-emoji" not in catalog.known_models()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", BUILT)
def test_family_has_open_clips_embedding_and_a_consistent_map(name):
    torch.manual_seed(0)
    config = open_clip.get_model_config(name)
    vision = dict(config["vision_cfg"])
    if name in CUT:
        vision["layers"] = CUT[name]
    visual = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))
    blank = (0.0, 0.0, 0.0)
    tower = build_tower(visual, name=name, pixel_mean=blank, pixel_std=blank).eval()
    images = torch.randn(1, 3, tower.image_size, tower.image_size)
    torch.testing.assert_close(tower.forward_image(images), visual(images), **TOLERANCE)

    dense = tower.forward_dense(images, form="attention").embedding
    cells = tower.image_size // tower.patch_size
    assert dense.shape == (1, tower.embed_dim, cells, cells)
    if getattr(tower, "num_prefix", 0) == 0:
        # A picture of one cell: what is pooled is what is projected.
        small = images[..., : tower.patch_size, : tower.patch_size]
        cell = tower.forward_dense(small, form="attention").embedding[..., 0, 0]
        expected = F.normalize(tower.forward_image(small), dim=1)
        torch.testing.assert_close(cell, expected, **TOLERANCE)
    else:
        tokens, rotary = tower.embed(images)
        for block in tower.block_modules:
            tokens = tower.run_block(block, tokens, rotary)
        torch.testing.assert_close(tower.pool(tokens), visual(images), **TOLERANCE)
        expected = F.normalize(tower.project(tokens[:, 1:]), dim=-1)
        torch.testing.assert_close(dense.flatten(2).transpose(1, 2), expected, **TOLERANCE)
    if name != "convnext_tiny":
        value = tower.forward_dense(images).embedding
        tower.set_attention(window_size=cells)
        torch.testing.assert_close(tower.forward_dense(images).embedding, value, **TOLERANCE)
    rectangle = torch.randn(1, 3, 2 * tower.patch_size, 3 * tower.patch_size - 1)
    assert tower.forward_dense(rectangle).embedding.shape[2:] == (2, 3)
