import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipself_d2.clip.weights.loading import load_clip_weights, load_tower_weights, read_checkpoint

# One layout of whole-CLIP files for each row: how the file differs from open_clip's state dict.
WRAPPERS = {
    "plain": lambda state: state,
    "open_clip training": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {}},
    "distributed": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "detectron2": lambda state: {"model": state, "iteration": 7, "optimizer": {"state": {}}},
    "half": lambda state: {k: v.half() for k, v in state.items()},
    "openai": lambda state: {**state, "input_resolution": torch.tensor(64)},
}


def save(state, path):
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def scrambled(model, seed=5):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def assert_same(got, expected, tolerance=0.0):
    assert set(got) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_whole_clip_survives_every_wrapping(new_clip, tmp_path, kind, wrapper):
    source, target = scrambled(new_clip(kind)), new_clip(kind)
    path = save(WRAPPERS[wrapper](source.open_clip_state_dict()), tmp_path / "clip.pt")
    report = load_clip_weights(target, path)
    expected = source.open_clip_state_dict()
    assert_same(target.open_clip_state_dict(), expected, 1e-3 if wrapper == "half" else 0.0)
    assert len(report.tensors) == len(expected)
    ignored = ("input_resolution",) if wrapper == "openai" else ()
    assert (report.layout, report.ignored) == ("open_clip", ignored)
    assert all(p.dtype == torch.float32 for p in target.parameters())


@pytest.mark.parametrize("kind", ["vit", "eva"])
@pytest.mark.parametrize("name", ["tower.pt", "tower.safetensors"])
@pytest.mark.parametrize("bare", [False, True])
def test_tower_alone_survives_with_and_without_prefix(new_clip, tmp_path, kind, name, bare):
    source, target = scrambled(new_clip(kind)).tower, new_clip(kind).tower
    state = source.state_dict()
    if bare:
        state = {key.removeprefix("visual."): value for key, value in state.items()}
    report = load_tower_weights(target, save(state, tmp_path / name))
    assert_same(target.state_dict(), source.state_dict())
    assert len(report.tensors) == len(state)


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_tower_is_read_out_of_a_whole_clip(new_clip, tmp_path, kind):
    source, target = scrambled(new_clip(kind)), new_clip(kind).tower
    report = load_tower_weights(target, save(source.open_clip_state_dict(), tmp_path / "clip.pt"))
    assert_same(target.state_dict(), source.tower.state_dict())
    assert set(report.ignored) == set(source.text.clip.state_dict())


@pytest.mark.parametrize("kind", ["vit", "eva"])
def test_text_tower_is_found_at_the_root_and_nested(new_clip, tmp_path, kind):
    """The text tower of ViT models lies at the root of the file, that of EVA02 under text."""
    source, target = scrambled(new_clip(kind)), new_clip(kind)
    state = source.open_clip_state_dict()
    nested = any(key.startswith("text.") for key in state)
    moved = {}
    for key, value in state.items():
        outside = key.startswith("visual.") or key == "logit_scale"
        moved[key if outside else key.removeprefix("text.") if nested else f"text.{key}"] = value
    assert set(moved) != set(state)
    load_clip_weights(target, save(moved, tmp_path / "clip.pt"))
    assert_same(target.open_clip_state_dict(), state)


def test_logit_scale_may_be_a_vector_of_one(new_clip, tmp_path):
    source, target = scrambled(new_clip("vit")), new_clip("vit")
    state = source.open_clip_state_dict()
    state["logit_scale"] = state["logit_scale"].reshape(1)
    load_clip_weights(target, save(state, tmp_path / "clip.pt"))
    assert target.logit_scale == source.logit_scale


@pytest.mark.parametrize("content", [[torch.zeros(1)], {}, {"a": torch.zeros(1), "b": 3}])
def test_file_without_named_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match="odd.pt holds"):
        read_checkpoint(tmp_path / "odd.pt")


@pytest.mark.parametrize(("kind", "other"), [("vit", "eva"), ("eva", "vit")])
def test_another_tower_is_named_and_nothing_is_changed(new_clip, tmp_path, kind, other):
    path = save(new_clip(kind).open_clip_state_dict(), tmp_path / "clip.pt")
    target = scrambled(new_clip(other)).tower
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=f"clip.pt does not fit the image tower of tiny-{other}"):
        load_tower_weights(target, path)
    assert_same(target.state_dict(), before)


def test_missing_extra_and_misshapen_weights_are_counted(new_clip, tmp_path):
    source = scrambled(new_clip("vit")).tower
    state = source.state_dict()
    del state["visual.ln_post.bias"]
    state["visual.extra"] = torch.zeros(1)
    state["visual.positional_embedding"] = torch.zeros(5, 96)
    target = new_clip("vit").tower
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit") as caught:
        load_tower_weights(target, save(state, tmp_path / "tower.pt"))
    message = str(caught.value)
    assert "1 missing: visual.ln_post.bias" in message
    assert "1 unknown: visual.extra" in message
    assert "visual.positional_embedding (5, 96) instead of (17, 96)" in message
    assert_same(target.state_dict(), before)


def test_tower_alone_is_no_whole_clip(new_clip, tmp_path):
    model = new_clip("vit")
    path = save(model.tower.state_dict(), tmp_path / "tower.pt")
    with pytest.raises(ValueError, match="no text tower, expected the whole"):
        load_clip_weights(model, path)


def test_text_tower_alone_is_no_image_tower(new_clip, tmp_path):
    model = new_clip("vit")
    path = save(model.text.clip.state_dict(), tmp_path / "text.pt")
    with pytest.raises(ValueError, match="missing: visual"):
        load_tower_weights(model.tower, path)


def jit_archive(state, path):
    """Write tensors as a TorchScript archive of the module tree that their names tell."""
    root = torch.nn.Module()
    for name, value in state.items():
        *parents, leaf = name.split(".")
        module = root
        for parent in parents:
            if parent not in dict(module.named_children()):
                module.add_module(parent, torch.nn.Module())
            module = module.get_submodule(parent)
        module.register_buffer(leaf, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))
    return path


def test_openai_archive_gives_its_weights(new_clip, tmp_path):
    source, target = scrambled(new_clip("vit")), new_clip("vit")
    expected = source.open_clip_state_dict()
    stored = {key: value.half() for key, value in expected.items()}
    settings = {"input_resolution": torch.tensor(64), "vocab_size": torch.tensor(200)}
    report = load_clip_weights(target, jit_archive({**stored, **settings}, tmp_path / "openai.pt"))
    assert_same(
        target.open_clip_state_dict(), {key: value.float() for key, value in stored.items()}
    )
    assert report.ignored == ("input_resolution", "vocab_size")


def test_name_that_no_layout_knows_is_refused(new_clip, tmp_path):
    model = new_clip("vit")
    for prefix in ("", "backbone."):
        state = {f"{prefix}{k}": v for k, v in model.tower.state_dict().items()}
        state["other_head.weight"] = torch.zeros(1)
        with pytest.raises(ValueError, match=r"1 unknown: other_head\.weight"):
            load_tower_weights(model.tower, save(state, tmp_path / "tower.pt"))


def test_training_state_with_a_class_of_its_own_is_refused_by_name(new_clip, tmp_path):
    """Numbers of numpy, as some trainers write them, are plain data; other classes are not."""
    model = new_clip("vit")
    state = {"state_dict": model.open_clip_state_dict(), "best": np.float64(1)}
    torch.save(state, tmp_path / "training.pth")
    assert_same(read_checkpoint(tmp_path / "training.pth"), model.open_clip_state_dict())
    torch.save({**state, "why": Fraction(1)}, tmp_path / "training.pth")
    with pytest.raises(ValueError, match=r"asks for fractions\.Fraction, which could") as caught:
        read_checkpoint(tmp_path / "training.pth")
    assert "weights_only" not in str(caught.value)


def test_code_in_a_file_does_not_run(tmp_path):
    class Planted:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "planted",))

    torch.save({"visual.proj": Planted()}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt cannot be read"):
        read_checkpoint(tmp_path / "bad.pt")
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("content", [b"", b"asdfasdf" * 20, b"\x80\x02]q\x00.", b"PK\x03\x04abc"])
def test_garbage_is_named(tmp_path, content):
    (tmp_path / "garbage.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"garbage\.pt (cannot be read|holds)"):
        read_checkpoint(tmp_path / "garbage.pt")
