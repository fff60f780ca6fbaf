"""Files of text embeddings from the command line."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.apps.files.text_embeddings import (
    build_embedding_file,
    convert_embedding_file,
    resolve_vocabulary,
)
from clipself_d2.clip import load_clip
from clipself_d2.data.datasets.lvis_ov import lvis_metadata
from clipself_d2.parts.text_embeddings import training_embeddings
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, fill_templates, get_templates

ROOT = Path(__file__).parents[3]
CLIP = "ViT-Ti-8-emoji"
WIDTH = 128
PETS = Vocabulary.from_names(["cat", "dog", "owl"], novel=["owl"])


def build(output: Path, vocabulary: Vocabulary = PETS, **options: object):
    return build_embedding_file(
        vocabulary, output, **{"clip": CLIP, "templates": "emoji", **options}
    )


def test_file_holds_the_mean_of_the_prompts(tmp_path: Path) -> None:
    report = build(tmp_path / "deep" / "text.pt", templates="vild63", batch_size=7)
    found = TextEmbeddings.load(tmp_path / "deep" / "text.pt")
    encoder = load_clip(CLIP, "emoji").text
    for row, name in enumerate([*PETS.names, "background"]):
        mean = encoder.encode(fill_templates(name, get_templates("vild"))).mean(0)
        got = found.background_D if row == 3 else found.embeddings_KD[row]
        torch.testing.assert_close(got, F.normalize(mean, dim=0), rtol=0, atol=1e-5)
    assert (found.vocabulary, found.clip) == (PETS, CLIP)
    assert (found.weights, found.templates) == ("emoji", "vild")
    assert torch.equal(report.embeddings.embeddings_KD, found.embeddings_KD)
    assert (report.num_templates, report.num_sentences) == (63, 4 * 63)


def test_file_made_of_the_same_is_kept(tmp_path: Path) -> None:
    output = tmp_path / "text.pt"
    assert build(output).num_sentences == 4 * 8
    before = output.stat().st_mtime_ns
    assert build(output).num_sentences == 0
    assert output.stat().st_mtime_ns == before
    for options in ({"templates": "single"}, {"vocabulary": Vocabulary.from_names(["cat"])}):
        with pytest.raises(ValueError, match=r"text\.pt exists and is of something else"):
            build(output, **options)
        assert build(tmp_path / "other.pt", force=True, **options).num_sentences > 0
    assert build(output, templates="single", force=True).num_sentences == 4


def test_weights_that_changed_make_a_kept_file_stale(tmp_path: Path) -> None:
    source = ROOT / "clipself_d2" / "clip" / "pretrained" / f"{CLIP}.safetensors"
    weights, output = tmp_path / "clip.safetensors", tmp_path / "text.pt"
    weights.write_bytes(source.read_bytes())
    os.utime(weights, (0, 0))
    build(output, weights=str(weights))
    assert build(output, weights=str(weights)).num_sentences == 0
    os.utime(weights)
    os.utime(output, (1, 1))
    assert build(output, weights=str(weights), force=True).num_sentences > 0


def test_cache_folder_saves_the_encoding(tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    assert build(tmp_path / "a.pt", cache_dir=cache).num_sentences > 0
    assert build(tmp_path / "b.pt", cache_dir=cache).num_sentences == 0
    first, second = (TextEmbeddings.load(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert torch.equal(first.embeddings_KD, second.embeddings_KD)


def test_progress_goes_to_stderr(tmp_path: Path, capsys) -> None:
    build(tmp_path / "a.pt")
    captured = capsys.readouterr()
    assert "32/32" in captured.err
    assert captured.out == ""


def test_detector_takes_the_file(tmp_path: Path, emoji_cfg) -> None:
    output = tmp_path / "text.pt"
    build(output, resolve_vocabulary("emoji"))
    cfg = emoji_cfg("fvit_clipself", "MODEL.VOCABULARY.EMBEDDINGS", str(output))
    found = training_embeddings(cfg)
    assert torch.equal(found.embeddings_KD, TextEmbeddings.load(output).embeddings_KD)


def test_vocabularies_of_the_command_line(tmp_path: Path, emoji_data: Path) -> None:
    lvis = resolve_vocabulary("lvis_v1")
    assert list(lvis.names) == lvis_metadata()["thing_classes"]
    assert (lvis.num_classes, len(lvis.novel_names)) == (1203, 337)
    assert lvis.frequency.count("r") == 337
    coco = resolve_vocabulary("coco")
    assert (coco.num_classes, coco.names[0], coco.names[-1]) == (80, "person", "toothbrush")
    assert resolve_vocabulary("emoji") == resolve_vocabulary("emoji_ov_val")
    assert resolve_vocabulary("emoji").novel_names
    (tmp_path / "pets.txt").write_text("cat; puss\ndog\n")
    assert resolve_vocabulary(str(tmp_path / "pets.txt")).synonyms == (("puss",), ())


def test_unknown_vocabularies_are_told() -> None:
    with pytest.raises(ValueError, match="--vocabulary is 'lvis'; it is lvis_v1, coco"):
        resolve_vocabulary("lvis")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.txt does not exist"):
        resolve_vocabulary("nowhere.txt")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"clip": "ViT-B16"}, "no model of open_clip"),
        ({"clip": "ViT-B-16-quickgelu"}, "choose with --weights: openai"),
        ({"clip": "ViT-S-16"}, "ViT-S-16 has 0 pretrained weights; choose with --weights: a file"),
        ({"weights": "laion"}, "neither a file nor pretrained weights"),
        ({"templates": "vild64"}, "prompt set 'vild64' is unknown"),
        ({"device": "tpu0"}, "--device tpu0 cannot be used here"),
    ],
)
def test_wrong_requests_are_refused_before_anything_is_built(options, complaint, tmp_path) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(tmp_path / "text.pt", **options)
    assert not (tmp_path / "text.pt").exists()


def test_output_may_be_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder"):
        build(tmp_path)


def test_published_file_is_taken_over(tmp_path: Path) -> None:
    rows = torch.randn(4, WIDTH)
    torch.save(dict(zip(["owl", "cat", "dog", "background"], rows, strict=True)), tmp_path / "p.pt")
    report = convert_embedding_file(
        tmp_path / "p.pt", PETS, tmp_path / "text.pt", clip=CLIP, templates="vild63"
    )
    found = TextEmbeddings.load(tmp_path / "text.pt")
    torch.testing.assert_close(found.embeddings_KD, F.normalize(rows[[1, 2, 0]], dim=1))
    torch.testing.assert_close(found.background_D, F.normalize(rows[3], dim=0))
    assert (found.clip, found.templates, found.vocabulary) == (CLIP, "vild", PETS)
    assert (report.num_templates, report.num_sentences) == (0, 0)
    with pytest.raises(ValueError, match="give --force"):
        convert_embedding_file(tmp_path / "p.pt", PETS, tmp_path / "text.pt", clip=CLIP)


def test_published_file_of_another_width_is_refused(tmp_path: Path) -> None:
    torch.save(torch.randn(3, 512), tmp_path / "p.pth")
    with pytest.raises(ValueError, match=r"512-d vectors but ViT-Ti-8-emoji embeds into 128"):
        convert_embedding_file(tmp_path / "p.pth", PETS, tmp_path / "text.pt", clip=CLIP)
    assert not (tmp_path / "text.pt").exists()


@pytest.mark.slow
def test_command_tells_classes_prompts_width_and_time(python: str, tmp_path: Path) -> None:
    (tmp_path / "pets.txt").write_text("cat\ndog\n")
    command = [python, str(ROOT / "tools" / "build_text_embeddings.py"), "--clip", CLIP]
    command += ["--vocabulary", str(tmp_path / "pets.txt"), "--templates", "vild63"]
    command += ["--output", str(tmp_path / "text.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "text.pt: 2 classes x 63 prompts and the background" in done.stdout
    assert f"{WIDTH}-d, 189 encoded, " in done.stdout
