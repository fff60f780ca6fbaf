import pytest
import timm
import torch

from clipself_d2.clip.vision_model import VISION_MODELS, VisionModel

DINO = "vit_small_patch14_reg4_dinov2"
TINY = {"img_size": 56, "embed_dim": 48, "depth": 2, "num_heads": 3, "init_values": 1.0}
SAM = {"img_size": 64, "embed_dim": 48, "depth": 2, "num_heads": 3, "window_size": 2}


@pytest.mark.parametrize("name", [DINO, "vit_small_patch14_dinov2"])
def test_the_map_has_the_students_grid_and_the_final_norm_without_registers(name) -> None:
    model = VisionModel(name, **TINY)
    pixels = torch.rand(2, 3, 64, 80) * 255
    got = model(pixels, (4, 5))
    assert got.shape == (2, 48, 4, 5)
    picture = torch.nn.functional.interpolate(
        (pixels - model.mean) / model.std, size=(56, 70), mode="bilinear", antialias=True
    )
    tokens = model.model.forward_features(picture)[:, model.model.num_prefix_tokens :]
    torch.testing.assert_close(got, tokens.transpose(1, 2).unflatten(2, (4, 5)))


def test_sam_is_resized_to_the_grid() -> None:
    model = VisionModel("samvit_base_patch16", **SAM, global_attn_indexes=(1,), neck_chans=32)
    assert model(torch.rand(1, 3, 96, 64) * 255, (6, 4)).shape == (1, 32, 6, 4)


def test_a_file_of_metas_layout_gives_the_same_features(tmp_path) -> None:
    source = VisionModel(DINO, **TINY)
    with torch.no_grad():
        for parameter in source.model.parameters():
            parameter.add_(0.01)
    state = dict(source.model.state_dict())
    state["register_tokens"] = state.pop("reg_token")
    # Meta's table has a place for the class token, which timm folds into the token.
    table, cls = state["pos_embed"], state["cls_token"]
    state["pos_embed"] = torch.cat([torch.full_like(cls, 0.5), table], dim=1)
    state["cls_token"] = cls - 0.5
    state["mask_token"] = torch.zeros(1, 48)
    torch.save(state, tmp_path / "meta.pth")
    loaded = VisionModel(DINO, str(tmp_path / "meta.pth"), **TINY)
    pixels = torch.rand(1, 3, 64, 64) * 255
    torch.testing.assert_close(loaded(pixels, (4, 4)), source(pixels, (4, 4)), atol=1e-4, rtol=1e-4)


def test_random_weights_are_the_same_at_every_start_and_learn_nothing() -> None:
    first, second = VisionModel("tiny"), VisionModel("tiny").train()
    pixels = torch.rand(1, 3, 32, 32, requires_grad=True) * 255
    got = first(pixels, (4, 4))
    assert torch.equal(got, second(pixels, (4, 4)))
    assert not got.requires_grad
    assert not second.model.training


def test_every_name_of_the_registry_is_timms() -> None:
    assert all(timm.is_model(name.split(".")[0]) for name, _ in VISION_MODELS.values())


def test_unknown_names_and_missing_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="no vision model 'dino9'"):
        VisionModel("dino9")
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        VisionModel("tiny", str(tmp_path / "nothing.pth"))
