from pathlib import Path

import pytest
import torch

from clipself_d2.apps.analysis.tower_spec import TowerSpec, choose_device, default_templates
from clipself_d2.clip import load_clip, load_tower
from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

EMOJI = "ViT-Ti-8-emoji:emoji"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (EMOJI, ("ViT-Ti-8-emoji emoji", "ViT-Ti-8-emoji", "emoji", "")),
        ("A:t:/x/run/final.pth", ("A run/final", "A", "t", "/x/run/final.pth")),
        ("A:/x/clip.safetensors", ("A x/clip", "A", "/x/clip.safetensors", "")),
        ("my student = A : t : s.pth", ("my student", "A", "t", "s.pth")),
        ("A:t:/x/lr=1/s.pth", ("A lr=1/s", "A", "t", "/x/lr=1/s.pth")),
        ("A:hf-hub:org/clip", ("A hf-hub:org/clip", "A", "hf-hub:org/clip", "")),
        ("b=hf-hub:org/clip:t", ("b", "hf-hub:org/clip", "t", "")),
    ],
)
def test_a_specification_is_read(text: str, expected: tuple[str, ...]) -> None:
    spec = TowerSpec.parse(text)
    assert (spec.label, spec.name, spec.weights, spec.tower_weights) == expected


@pytest.mark.parametrize("text", ["", "A", "A:", ":t", "A::s.pth", "A:t:", "A:t:s:more", "a=b"])
def test_a_specification_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be read; write \[LABEL=\]NAME:TAG_OR_FILE"):
        TowerSpec.parse(text)


def test_the_third_part_replaces_the_tower_alone(tmp_path: Path) -> None:
    student = load_tower("ViT-Ti-8-emoji", "emoji")
    with torch.no_grad():
        student.visual.conv1.weight.mul_(2)
    file = tmp_path / "student.pth"
    torch.save({"model": student.state_dict()}, file)
    spec = TowerSpec.parse(f"{EMOJI}:{file}")
    plain = TowerSpec.parse(EMOJI)
    tower = spec.load()
    torch.testing.assert_close(tower.visual.conv1.weight, 2 * plain.load().visual.conv1.weight)
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    torch.testing.assert_close(
        spec.embed(["dog"]).embeddings_KD, plain.embed(["dog"]).embeddings_KD
    )


def test_embeddings_are_those_of_the_vocabulary() -> None:
    names = ["dog", "police car"]
    expected = TextEmbeddings.load_or_build(
        Vocabulary.from_names(names), clip="ViT-Ti-8-emoji", weights="emoji", templates="emoji"
    )
    embeddings = TowerSpec.parse(EMOJI).embed(names)
    torch.testing.assert_close(embeddings.embeddings_KD, expected.embeddings_KD)
    assert embeddings.templates == "emoji"
    single = TowerSpec.parse(EMOJI).embed(names, templates="single")
    assert not torch.allclose(single.embeddings_KD, expected.embeddings_KD)


def test_a_clip_of_web_text_is_prompted_as_published() -> None:
    text = load_clip("ViT-Ti-8-emoji").text
    assert default_templates(text) == "emoji"
    text.closed_words = False
    assert default_templates(text) == "vild"


def test_words_that_the_clip_never_read_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="clipself_d2"):
        TowerSpec.parse(EMOJI).embed(["dog", "wombat"])
    assert "never read the words wombat" in caplog.text


def test_an_unknown_device_names_the_flag() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert isinstance(choose_device(""), torch.device)
    for name in ("mars", "cuda:999"):
        with pytest.raises(ValueError, match=f"--device {name} cannot be used here"):
            choose_device(name)


def test_a_tower_takes_the_form_that_its_file_tells_unless_told(tmp_path) -> None:
    student = load_tower("ViT-Ti-8-emoji", "emoji")
    form = {"": {"MODEL.CLIP.DENSE_FORM": "declip_qq"}}
    torch.save({"model": student.state_dict(), FORM_KEY: form}, tmp_path / "student.pth")
    spec = TowerSpec("one", "ViT-Ti-8-emoji", "emoji", str(tmp_path / "student.pth"))
    assert str(spec.load().dense_form) == "declip_qq"
    assert str(spec.load(form="sclip").dense_form) == "sclip"
