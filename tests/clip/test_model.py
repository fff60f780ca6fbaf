import logging

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from clipself_d2.clip import registry
from clipself_d2.clip.model import build_tower, load_clip, load_tower
from clipself_d2.clip.towers.eva import EvaTower
from clipself_d2.clip.towers.vit import OpenClipViTTower

NAME = "ViT-Ti-8-emoji"


@pytest.fixture
def weights(tmp_path):
    """A file with random weights of the embedded model, as published: half precision."""
    torch.manual_seed(3)
    state = load_clip(NAME).open_clip_state_dict()
    path = tmp_path / "clip.safetensors"
    save_file({key: value.half() for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize(("kind", "tower"), [("vit", OpenClipViTTower), ("eva", EvaTower)])
def test_tower_follows_the_module(new_clip, kind, tower):
    assert type(new_clip(kind).tower) is tower


def test_other_image_towers_are_refused():
    settings = {"name": "a-net", "pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1.0, 1.0, 1.0)}
    with pytest.raises(ValueError, match="a-net has an image tower of type Conv2d"):
        build_tower(torch.nn.Conv2d(3, 8, 16), **settings)


def test_embedded_model_has_its_sizes():
    model = load_clip(NAME)
    tower = model.tower
    sizes = (tower.embed_dim, tower.width, tower.patch_size, tower.num_blocks, tower.image_size)
    assert sizes == (128, 128, 8, 6, 64)
    assert (model.text.embed_dim, model.text.context_length) == (128, 24)
    assert model.logit_scale == pytest.approx(1 / 0.07)


def test_models_come_in_eval_mode_with_clips_pixel_statistics():
    model = load_clip(NAME)
    assert not any(module.training for module in model.modules())
    expected = [255 * value for value in open_clip.OPENAI_DATASET_MEAN]
    assert model.tower.pixel_mean == pytest.approx(expected)
    assert model.tower.pixel_std == pytest.approx([255 * v for v in open_clip.OPENAI_DATASET_STD])


def test_file_has_the_pixel_statistics_that_all_weights_of_the_model_share(weights, monkeypatch):
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    settings = {"one": half, "two": dict(half)}
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: list(settings))
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: settings.get(tag, {}))
    assert load_tower(NAME, str(weights)).pixel_mean == (127.5, 127.5, 127.5)
    assert load_tower(NAME, str(weights)).pixel_std == (127.5, 127.5, 127.5)
    settings["two"] = {}
    openai = pytest.approx([255 * value for value in open_clip.OPENAI_DATASET_MEAN])
    assert load_tower(NAME, str(weights)).pixel_mean == openai


def test_each_weight_has_one_owner():
    model = load_clip(NAME)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len({id(p) for p in model.parameters()})
    assert not any("visual" in name for name in names if name.startswith("text."))


@torch.no_grad()
def test_file_gives_the_same_features_as_open_clip(weights):
    model = load_clip(NAME, str(weights))
    plain = open_clip.create_model(NAME, pretrained=str(weights)).eval()
    images, texts = torch.randn(2, 3, 64, 64), ["a dog.", "a cat."]
    got, expected = model.tower.forward_image(images), plain.encode_image(images)
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-5)
    tokens = open_clip.get_tokenizer(NAME)(texts)
    expected = plain.encode_text(tokens, normalize=True)
    torch.testing.assert_close(model.text.encode(texts), expected, rtol=0.0, atol=1e-5)


def test_tower_alone_equals_the_tower_of_the_whole(weights):
    whole, tower = load_clip(NAME, str(weights)).tower, load_tower(NAME, str(weights))
    for name, value in whole.state_dict().items():
        assert torch.equal(tower.state_dict()[name], value)


def test_project_tag_loads_its_file(weights, monkeypatch):
    monkeypatch.setitem(registry.PROJECT_WEIGHTS, (NAME, "emoji"), weights)
    tagged, named = load_clip(NAME, "emoji"), load_clip(NAME, str(weights))
    assert torch.equal(tagged.tower.visual.proj, named.tower.visual.proj)
    assert torch.equal(load_tower(NAME, "emoji").visual.proj, named.tower.visual.proj)


def test_tag_of_open_clip_brings_its_pixel_statistics(weights, monkeypatch):
    settings = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: settings)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(weights))
    model, named = load_clip(NAME, "web"), load_clip(NAME)
    assert model.tower.pixel_mean == pytest.approx((127.5, 102.0, 76.5))
    assert model.tower.pixel_std == pytest.approx((51.0, 51.0, 25.5))
    expected = load_tower(NAME, "web").visual.proj
    assert torch.equal(model.tower.visual.proj, expected)
    assert not torch.equal(named.tower.visual.proj, expected)


def test_loading_is_quiet_on_the_root_logger(weights, caplog):
    with caplog.at_level(logging.WARNING):
        load_clip(NAME, str(weights))
    assert caplog.records == []


def test_precision_is_checked_when_building(new_open_clip):
    assert load_tower(NAME, precision="bf16").precision == "bf16"
    with pytest.raises(ValueError, match="precision is"):
        load_clip(NAME, precision="half")
    mean = (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="precision is"):
        build_tower(
            new_open_clip("vit").visual, name="x", pixel_mean=mean, pixel_std=mean, precision="8"
        )


@pytest.mark.parametrize("build", [load_clip, load_tower])
@pytest.mark.parametrize("with_file", [True, False])
def test_building_leaves_the_randomness_of_the_run_alone(build, with_file, weights) -> None:
    file = str(weights) if with_file else None
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build(NAME, file)
    assert torch.equal(torch.rand(3), expected)


def test_random_weights_follow_the_seed_of_the_run_and_not_what_it_drew() -> None:
    built = []
    for seed, drawn in ((5, 0), (5, 7), (6, 0)):
        torch.manual_seed(seed)
        torch.rand(drawn)
        built.append(load_clip(NAME).open_clip_state_dict())
    assert all(torch.equal(built[1][key], value) for key, value in built[0].items())
    assert not torch.equal(built[0]["visual.proj"], built[2]["visual.proj"])


@pytest.mark.parametrize(
    ("build", "name"),
    [(load_clip, "ViT-B-16-SigLIP"), (load_clip, "roberta-ViT-B-32")]
    + [(load_tower, "roberta-ViT-B-32")],
)
def test_a_text_tower_of_a_library_that_is_missing_names_the_extra(build, name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"text tower of {name} needs .*\[transformers\]"):
        build(name)
