"""Files of CLIP weights from one layout to another."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clipself_d2.clip import load_clip
from clipself_d2.clip.weights import convert
from clipself_d2.clip.weights.convert import LAYOUTS, convert_checkpoint
from clipself_d2.clip.weights.loading import read_checkpoint

ROOT = Path(__file__).parents[3]
NAME = "ViT-Ti-8-emoji"
EMOJI = ROOT / "clipself_d2" / "clip" / "pretrained" / f"{NAME}.safetensors"


def assert_same(got, expected) -> None:
    assert set(got) == set(expected)
    for key, value in expected.items():
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value), key


def output_of(layout: str, folder: Path) -> Path:
    return folder / (f"{layout}.safetensors" if layout == "safetensors" else f"{layout}.pt")


def eva_state() -> dict[str, torch.Tensor]:
    """What an EVA02 of two heads with 64 channels has, two blocks and half precision among it."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "logit_scale": (),
        "text.positional_embedding": (16, 8),
        "text.transformer.resblocks.0.attn.in_proj_weight": (24, 8),
        "visual.trunk.cls_token": (1, 1, 128),
        "visual.trunk.pos_embed": (1, 10, 128),
        "visual.trunk.head.bias": (8,),
    }
    for block in range(2):
        part = f"visual.trunk.blocks.{block}"
        shapes |= {
            f"{part}.{name}": (128,)
            for name in ("attn.q_proj.bias", "attn.v_proj.bias", "attn.norm.bias", "norm1.bias")
        }
        shapes |= {f"{part}.mlp.{name}.weight": (4, 128) for name in ("fc1_g", "fc1_x", "fc2")}
    state = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    return state | {"visual.trunk.head.weight": torch.ones(8, 128).half()}


@pytest.fixture(params=["vit", "eva"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    state = eva_state() if request.param == "eva" else load_file(EMOJI)
    torch.save(state, tmp_path / "source.pt")
    return tmp_path / "source.pt"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_there_and_back_is_bit_equal(source: Path, layout: str, tmp_path: Path) -> None:
    expected = torch.load(source, weights_only=True)
    there = output_of(layout, tmp_path)
    first = convert_checkpoint(source, there, to=layout)
    back = convert_checkpoint(there, tmp_path / "back.pt", to="open_clip")
    assert_same(torch.load(tmp_path / "back.pt", weights_only=True), expected)
    assert first.num_read == back.num_written == len(expected)
    assert first.num_written == back.num_read == len(expected) + len(first.added)
    assert set(back.left_out) == set(first.added)
    assert sorted(os.listdir(tmp_path)) == sorted(["source.pt", there.name, "back.pt"])


def test_each_layout_is_wrapped_as_its_readers_expect(source: Path, tmp_path: Path) -> None:
    for layout in LAYOUTS:
        convert_checkpoint(source, output_of(layout, tmp_path), to=layout)
    load = {layout: output_of(layout, tmp_path) for layout in LAYOUTS}
    plain = torch.load(load["open_clip"], weights_only=True)
    assert_same(torch.load(load["d2"], weights_only=True)["model"], plain)
    assert_same(load_file(load["safetensors"]), plain)
    published = torch.load(load["clipself"], weights_only=True)
    assert set(published) == {"state_dict"}
    eva = "visual.trunk.cls_token" in plain
    assert ("visual.cls_token" in published["state_dict"]) == eva
    if eva:
        tables = [key for key in published["state_dict"] if ".rope." in key]
        assert len(tables) == 2 * (1 + 2)
        assert published["state_dict"]["visual.rope.freqs_cos"].shape == (9, 64)


def test_converted_file_gives_the_same_model(tmp_path: Path) -> None:
    expected = load_clip(NAME, "emoji").open_clip_state_dict()
    for layout in LAYOUTS:
        output = output_of(layout, tmp_path)
        convert_checkpoint(EMOJI, output, to=layout, model=NAME)
        assert_same(load_clip(NAME, str(output)).open_clip_state_dict(), expected)


def test_model_decides_where_the_text_tower_lies(tmp_path: Path) -> None:
    state = load_file(EMOJI)
    beside = [k for k in state if not k.startswith("visual.") and k != "logit_scale"]
    nested = {f"text.{k}" if k in beside else k: v for k, v in state.items()}
    torch.save(nested, tmp_path / "nested.pt")
    convert_checkpoint(tmp_path / "nested.pt", tmp_path / "a.pt", to="open_clip")
    assert_same(read_checkpoint(tmp_path / "a.pt"), nested)
    convert_checkpoint(tmp_path / "nested.pt", tmp_path / "b.pt", to="open_clip", model=NAME)
    assert_same(read_checkpoint(tmp_path / "b.pt"), state)


def test_head_width_of_the_model_is_that_of_the_tables(monkeypatch, tmp_path: Path) -> None:
    """Without it the tables would have 64 channels, whatever the model."""
    torch.save(eva_state(), tmp_path / "eva.pt")
    monkeypatch.setattr(convert, "_fit_model", lambda state, source, model: (state, 32))
    convert_checkpoint(tmp_path / "eva.pt", tmp_path / "a.pt", to="clipself", model="tiny")
    assert read_checkpoint(tmp_path / "a.pt")["visual.rope.freqs_sin"].shape == (9, 32)


@pytest.mark.slow
def test_published_eva_has_every_name_of_the_reference(tmp_path: Path) -> None:
    """EVA02-CLIP-B-16 of the reference has 436 entries, 13 pairs of rotary tables among them."""
    torch.save(load_clip("EVA02-B-16").open_clip_state_dict(), tmp_path / "a.pt")
    report = convert_checkpoint(
        tmp_path / "a.pt", tmp_path / "b.pt", to="clipself", model="EVA02-B-16"
    )
    assert (report.num_written, len(report.added)) == (436, 26)
    written = read_checkpoint(tmp_path / "b.pt")
    assert written["visual.blocks.11.attn.rope.freqs_cos"].shape == (196, 64)


def test_detector_gives_its_image_tower(tmp_path: Path) -> None:
    tower = {k: v for k, v in load_file(EMOJI).items() if k.startswith("visual.")}
    state = {f"backbone.bottom_up.tower.{key}": value for key, value in tower.items()}
    torch.save({"model": {**state, "roi_heads.x": torch.zeros(1)}}, tmp_path / "detector.pth")
    report = convert_checkpoint(
        tmp_path / "detector.pth", tmp_path / "a.pt", to="open_clip", model=NAME
    )
    assert_same(read_checkpoint(tmp_path / "a.pt"), tower)
    assert report.source_layout == "clipself_d2 detector, open_clip"
    assert report.left_out == ("roi_heads.x",)


def test_wrong_requests_are_refused(tmp_path: Path) -> None:
    source, taken = tmp_path / "source.pt", tmp_path / "taken.pt"
    torch.save(load_file(EMOJI), source)
    taken.write_text("precious")
    torch.save({"resnet.conv1.weight": torch.zeros(1)}, tmp_path / "other.pt")
    cases = [
        ((source, taken, {"to": "d2"}), "give --force"),
        ((source, source, {"to": "d2", "force": True}), "is the source itself"),
        ((source, tmp_path, {"to": "d2"}), "is a folder"),
        ((source, tmp_path / "a.pt", {"to": "safetensors"}), "disagree"),
        ((source, tmp_path / "a.safetensors", {"to": "d2"}), "disagree"),
        ((source, tmp_path / "a.pt", {"to": "d2", "model": "ViT-B16"}), "no model of open_clip"),
        ((source, tmp_path / "a.pt", {"to": "d2", "model": "ViT-S-16"}), "does not fit"),
        ((tmp_path / "other.pt", tmp_path / "a.pt", {"to": "d2"}), "no CLIP image tower"),
    ]
    for (given, output, options), complaint in cases:
        with pytest.raises(ValueError, match=complaint):
            convert_checkpoint(given, output, **options)
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert_checkpoint(tmp_path / "absent.pt", tmp_path / "a.pt", to="d2")
    assert taken.read_text() == "precious"
    assert not (tmp_path / "a.pt").exists()
    convert_checkpoint(source, taken, to="d2", force=True)
    assert set(torch.load(taken, weights_only=True)) == {"model"}


def test_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "a.pt").write_text("old")

    def write_half(content: object, path: Path) -> None:
        Path(path).write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert.torch, "save", write_half)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(EMOJI, tmp_path / "a.pt", to="d2", force=True)
    assert (tmp_path / "a.pt").read_text() == "old"
    assert os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.slow
def test_command_prints_what_it_did(python: str, tmp_path: Path) -> None:
    command = [python, str(ROOT / "tools" / "convert_checkpoint.py"), str(EMOJI)]
    command += [str(tmp_path / "a.pt"), "--to", "clipself"]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "110 tensors, layout open_clip" in first.stdout
    assert "110 tensors, layout clipself" in first.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.strip().endswith("a.pt exists; give --force to overwrite it")
