import json

import open_clip
import pytest

from clipself_d2.clip import registry


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
    with pytest.raises(ValueError, match=r"MODEL.CLIP.NAME 'ViT-B16'.*near: ViT-B-16"):
        registry.check_name("ViT-B16")


def test_unknown_tag_lists_tags_and_near_ones():
    with pytest.raises(ValueError, match="tags of ViT-Ti-8-emoji: emoji; near: emoji"):
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
