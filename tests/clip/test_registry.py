import json
import socket
import urllib.request

import open_clip
import pytest
import torch
from huggingface_hub import constants

from clipself_d2.clip import load_clip, registry


def test_project_models_are_models_of_open_clip():
    assert "ViT-Ti-8-emoji" in registry.project_models()
    assert set(registry.project_models()) <= set(open_clip.list_models())


@pytest.mark.parametrize("name", registry.project_models())
def test_tokenizer_and_text_tower_share_a_vocabulary(name):
    config = open_clip.get_model_config(name)["text_cfg"]
    tokenizer = open_clip.get_tokenizer(name)
    assert tokenizer.vocab_size == config["vocab_size"]
    assert tokenizer.context_length == config["context_length"]


def test_registration_survives_that_of_others(tmp_path):
    config = json.loads((registry.CONFIG_FOLDER / "ViT-Ti-8-emoji.json").read_text())
    path = tmp_path / "ViT-of-a-user.json"
    path.write_text(json.dumps(config))
    known = dict.fromkeys(open_clip.list_models())
    open_clip.add_model_config(path)
    try:
        assert set(open_clip.list_models()) == {*known, "ViT-of-a-user"}
        assert (
            open_clip.get_tokenizer("ViT-Ti-8-emoji").vocab_size == config["text_cfg"]["vocab_size"]
        )
    finally:
        open_clip.factory._MODEL_CONFIGS.pop("ViT-of-a-user")
        open_clip.factory._MODEL_CONFIG_PATHS.remove(path)


def test_unknown_name_lists_near_ones():
    with pytest.raises(ValueError, match=r"'ViT-B16' is no model.*near: ViT-B-16"):
        registry.check_name("ViT-B16")


def test_unknown_tag_lists_tags_and_near_ones():
    with pytest.raises(
        ValueError, match="tags of ViT-Ti-8-emoji: emoji, emoji_clipself; near: emoji"
    ):
        registry.find_weights("ViT-Ti-8-emoji", "emoij")
    with pytest.raises(ValueError, match="merged2b_s8b_b131k"):
        registry.find_weights("EVA02-B-16", "merged2b_s8b_b131")


def test_project_tag_is_a_file_beside_the_code():
    tag, path = registry.find_weights("ViT-Ti-8-emoji", "emoji")
    assert tag is None
    assert path.name == "ViT-Ti-8-emoji.safetensors"


def test_project_tag_belongs_to_its_model_only():
    with pytest.raises(ValueError, match="pretrained weights of ViT-B-16"):
        registry.find_weights("ViT-B-16", "emoji")


def test_file_is_taken_as_it_is(tmp_path):
    path = tmp_path / "weights.pt"
    path.touch()
    assert registry.find_weights("ViT-B-16", str(path)) == (None, path)


def test_tag_of_open_clip_is_found():
    assert registry.find_weights("ViT-B-16-quickgelu", "openai") == ("openai", None)
    assert registry.find_weights("ViT-B-16", "laion2b_s34b_b88k") == ("laion2b_s34b_b88k", None)


@pytest.mark.parametrize(
    ("name", "tag", "better"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14-336", "openai", "ViT-L-14-336-quickgelu"),
    ],
)
def test_weights_of_the_other_activation_are_refused(name, tag, better):
    with pytest.raises(ValueError, match=f"silently wrong; use {better}"):
        registry.find_weights(name, tag)


@pytest.fixture
def hub(hub_folder, monkeypatch):
    """The cache of the Hugging Face hub with one tiny CLIP, and no network."""
    (hub_folder.parents[1] / "refs").mkdir()
    (hub_folder.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub_folder.parents[2]))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return hub_folder


@pytest.mark.parametrize("name", ["ViT-Ti-8-emoji", "hf-hub:org/tiny.clip"])
def test_hub_id_gives_weights_and_pixel_statistics(hub, name):
    found = load_clip(name, "hf-hub:org/tiny.clip")
    expected = load_clip("ViT-Ti-8-emoji", "emoji").open_clip_state_dict()
    state = found.open_clip_state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert found.tower.pixel_mean == pytest.approx((127.5, 63.75, 31.875))
    assert registry.embed_dim(name) == registry.embed_dim("ViT-Ti-8-emoji")
    assert registry.native_image_size(name) == found.tower.image_size == 64


def test_hub_that_cannot_be_reached_is_told(hub):
    for call in (
        lambda: registry.check_name("hf-hub:org/absent"),
        lambda: registry.find_weights("ViT-B-16", "hf-hub:org/absent"),
    ):
        with pytest.raises(FileNotFoundError, match=r"org/absent is not in the cache .* network"):
            call()
    with pytest.raises(FileNotFoundError, match=r"'openai' of ViT-B-16-quickgelu .* downloaded"):
        registry.fetch_weights("ViT-B-16-quickgelu", "openai")


def test_wrong_hub_id_and_foreign_repository_are_refused(hub):
    for wrong in ("hf-hub:tiny", "hf-hub:", "hf-hub:a/b/c", "hf-hub:org/na me"):
        with pytest.raises(ValueError, match="write hf-hub:org/name"):
            registry.check_name(wrong)
    (hub / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no model_cfg"):
        registry.check_name("hf-hub:org/tiny.clip")


def test_hub_weights_of_another_model_are_refused(hub):
    with pytest.raises(ValueError, match=r"'hf-hub:org/tiny.clip' do not fit ViT-S-16"):
        load_clip("ViT-S-16", "hf-hub:org/tiny.clip")
    with pytest.raises(ValueError, match="use ViT-B-16"):
        registry.find_weights("ViT-B-16-quickgelu", "hf-hub:org/tiny.clip")


def test_tags_of_a_model_are_listed():
    # An image tower alone is no pretrained CLIP.
    assert registry.pretrained_tags("ViT-Ti-8-emoji") == ["emoji"]
    assert "openai" in registry.pretrained_tags("ViT-B-16-quickgelu")
    assert registry.pretrained_tags("hf-hub:a/b") == ["hf-hub:a/b"]


@pytest.mark.parametrize(
    ("name", "size", "width"),
    [("ViT-Ti-8-emoji", 64, 128), ("EVA02-L-14-336", 336, 768), ("RN50x4", 288, 640)],
)
def test_size_and_width_are_known_without_a_tower(name, size, width):
    assert (registry.native_image_size(name), registry.embed_dim(name)) == (size, width)
    for look_up in (registry.native_image_size, registry.embed_dim):
        with pytest.raises(ValueError, match="no model of open_clip"):
            look_up("ViT-B16")


def test_models_with_a_tokenizer_of_hugging_face_are_known():
    asking = [name for name in open_clip.list_models() if registry.needs_transformers(name)]
    assert len(asking) == 49
    assert {name for name in open_clip.list_models() if "SigLIP" in name} <= set(asking)
    assert not {"ViT-B-16-quickgelu", "ViT-B-32"} & set(asking)


def test_without_network_nothing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's own client asks six times for either of two files, for a minute in all."""

    def unknown(*_: object) -> None:
        raise socket.gaierror("Name or service not known")

    asked = []

    def download(_: object) -> str:
        asked.append(constants.HF_HUB_OFFLINE)
        raise OSError("Failed to download a.bin. Last error: An error happened")

    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(open_clip, "download_pretrained", download)
    said = r"cannot be downloaded \(Failed to download a.bin\); without network, copy the file here"
    for resolve in (unknown, lambda *_: []):
        monkeypatch.setattr(socket, "getaddrinfo", resolve)
        with pytest.raises(FileNotFoundError, match=said):
            registry.fetch_weights("ViT-B-32", "laion2b_s34b_b79k")
    assert asked == [True, False]
    assert not constants.HF_HUB_OFFLINE
