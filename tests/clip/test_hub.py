"""A student as a model of the hub: written, read back by us and by open_clip, uploaded."""

from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch

from clipself_d2.clip import ClipModel, load_clip, load_tower, push, registry, save_pretrained

CARD = {"CLIP": "tiny", "recipe": "a.yaml", "data": "scenes", "figures": "macc1 65.6"}


@pytest.fixture
def student(hub_folder: Path) -> ClipModel:
    """A CLIP whose tower has learned something."""
    model = load_clip(f"local-dir:{hub_folder}")
    with torch.no_grad():
        next(model.tower.parameters()).add_(1)
    return model


def test_a_saved_student_is_read_back_bit_for_bit(student: ClipModel, tmp_path: Path) -> None:
    folder = save_pretrained(student, tmp_path / "saved", title="tiny", card=CARD)
    again = load_clip(f"local-dir:{folder}")
    expected = student.open_clip_state_dict()
    found = again.open_clip_state_dict()
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert again.tower.pixel_mean == pytest.approx((127.5, 63.75, 31.875))
    tower = load_tower(f"local-dir:{folder}")
    assert all(
        torch.equal(a, b)
        for a, b in zip(tower.parameters(), student.tower.parameters(), strict=True)
    )


def test_open_clip_reads_it_and_the_card_tells_what_it_is(
    student: ClipModel, tmp_path: Path
) -> None:
    folder = save_pretrained(student, tmp_path / "saved", title="tiny", card=CARD)
    model = open_clip.create_model(f"local-dir:{folder}")
    name, value = next(iter(student.tower.state_dict().items()))
    assert torch.equal(model.state_dict()[name], value)
    text = (folder / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: open_clip\n")
    for key, row in CARD.items():
        assert f"| {key} | {row} |" in text


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no open_clip_config\.json"):
        load_clip(f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(FileNotFoundError, match=r"open_clip_model\.safetensors or"):
        registry.fetch_weights("", f"local-dir:{tmp_path}")


def test_words_of_a_file_of_this_package_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ViT-Ti-8-emoji reads words by model_configs"):
        save_pretrained(load_clip("ViT-Ti-8-emoji"), tmp_path, title="x", card={})


def test_push_makes_the_repository_and_uploads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    class Api:
        def create_repo(self, *arguments: object, **options: object) -> None:
            calls.append(("create", arguments, options))

        def upload_folder(self, **options: object) -> None:
            calls.append(("upload", (), options))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert push(tmp_path, "me/student") == "hf-hub:me/student"
    assert calls == [
        ("create", ("me/student",), {"private": True, "exist_ok": True}),
        ("upload", (), {"repo_id": "me/student", "folder_path": str(tmp_path)}),
    ]
