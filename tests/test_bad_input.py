"""What a stranger sees who gets something wrong: one sentence with the file or key, exit code 1."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipself_d2.clip import load_clip
from clipself_d2.engine.cli import run_tool
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

ROOT = Path(__file__).parents[1]


def message(action, capsys: pytest.CaptureFixture[str]) -> str:
    """The single line of a failed command."""
    assert run_tool(action) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def train(cfg, trainer=Trainer):
    def action() -> None:
        trainer(cfg).train()

    return action


@pytest.fixture
def own_copy(emoji_data: Path, tmp_path: Path, reread_emoji) -> Path:
    """A copy of the tiny data set that a test may damage, registered in place of it."""
    shutil.copytree(emoji_data / "emoji", tmp_path / "data" / "emoji")
    reread_emoji(tmp_path / "data")
    return tmp_path / "data" / "emoji"


def test_missing_data_root(emoji_cfg, own_copy: Path, capsys) -> None:
    cfg = emoji_cfg("fvit_untouched")
    shutil.rmtree(own_copy)
    line = message(train(cfg), capsys)
    assert str(own_copy) in line
    assert "prepare_emoji.py" in line


def test_missing_annotation_file(emoji_cfg, own_copy: Path, capsys) -> None:
    cfg = emoji_cfg("rpn")
    (own_copy / "annotations" / "instances_train_base.json").unlink()
    assert "instances_train_base.json" in message(train(cfg), capsys)


@pytest.mark.parametrize(("text", "word"), [("no json", "JSON"), ('{"images": []}', "annotations")])
def test_broken_annotation_file(emoji_cfg, own_copy: Path, capsys, text: str, word: str) -> None:
    cfg = emoji_cfg("rpn")
    (own_copy / "annotations" / "instances_train_base.json").write_text(text)
    line = message(train(cfg), capsys)
    assert "instances_train_base.json" in line
    assert word in line or "images" in line


def test_category_outside_the_vocabulary(emoji_cfg, own_copy: Path, capsys) -> None:
    cfg = emoji_cfg("rpn")
    file = own_copy / "annotations" / "instances_train_base.json"
    content = json.loads(file.read_text())
    content["categories"][0]["name"] = "wombat"
    file.write_text(json.dumps(content))
    line = message(train(cfg), capsys)
    assert "wombat" in line
    assert file.name in line


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_image_in_distillation(emoji_cfg, own_copy: Path, capsys, workers: int) -> None:
    cfg = emoji_cfg("clipself_patches", "DATALOADER.NUM_WORKERS", workers)
    for file in (own_copy / "train").glob("*.jpg"):
        file.unlink()
    assert re.search(r"\d{6}\.jpg", message(train(cfg, DistillTrainer), capsys))


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_image(emoji_cfg, own_copy: Path, capsys, workers: int) -> None:
    for file in (own_copy / "train").glob("*.jpg"):
        file.write_bytes(file.read_bytes()[:700])
    cfg = emoji_cfg("clipself_patches", "DATALOADER.NUM_WORKERS", workers)
    line = message(train(cfg, DistillTrainer), capsys)
    assert re.search(r"\d{6}\.jpg", line)
    assert "decoded" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_missing_image_in_detection(emoji_cfg, own_copy: Path, capsys, workers: int) -> None:
    for file in (own_copy / "train").glob("*.jpg"):
        file.unlink()
    cfg = emoji_cfg("rpn", "DATALOADER.NUM_WORKERS", workers)
    assert re.search(r"\d{6}\.jpg", message(train(cfg), capsys))


def test_empty_training_set(emoji_cfg, capsys) -> None:
    cfg = emoji_cfg("clipself_patches", "DATASETS.TRAIN", ())
    assert "DATASETS.TRAIN" in message(train(cfg, DistillTrainer), capsys)


def test_weights_of_another_tower(emoji_cfg, tmp_path: Path, capsys) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": {"visual.conv1.weight": torch.zeros(768, 3, 16, 16)}}, file)
    cfg = emoji_cfg("rpn", "MODEL.CLIP.WEIGHTS", str(file))
    line = message(train(cfg), capsys)
    assert "other.pth" in line
    assert "ViT-Ti-8-emoji" in line


def test_detector_weights_given_as_a_students(emoji_cfg, tmp_path: Path, capsys) -> None:
    file = tmp_path / "student.pth"
    torch.save({"model": load_clip("ViT-Ti-8-emoji").tower.state_dict()}, file)
    cfg = emoji_cfg("fvit_untouched", "MODEL.WEIGHTS", str(file))
    line = message(lambda: Trainer.evaluate_weights(cfg), capsys)
    assert "MODEL.CLIP.WEIGHTS" in line


@pytest.mark.parametrize(("names", "width"), [(["dog", "cat"], 128), (None, 64)])
def test_text_embeddings_that_do_not_fit(
    emoji_cfg, tmp_path: Path, capsys, names: list[str] | None, width: int
) -> None:
    from clipself_d2.data.datasets.emoji_world import load_world

    vocabulary = Vocabulary.from_names(names or list(load_world().thing_names))
    rows = torch.nn.functional.normalize(torch.randn(vocabulary.num_classes, width), dim=1)
    embeddings = TextEmbeddings(
        vocabulary=vocabulary, embeddings_KD=rows, background_D=rows[0],
        clip="ViT-Ti-8-emoji", weights="emoji", templates="emoji",
    )  # fmt: skip
    embeddings.save(tmp_path / "text.pt")
    cfg = emoji_cfg("fvit_untouched", "MODEL.VOCABULARY.EMBEDDINGS", str(tmp_path / "text.pt"))
    assert "MODEL.VOCABULARY.EMBEDDINGS" in message(train(cfg), capsys)


def test_the_command_line_itself(python: str, emoji_root: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    demo = ["tools/demo.py", "--config-file", "configs/emoji/fvit_clipself.yaml"]
    demo += ["--input", str(tmp_path / "a.png"), "--output", str(tmp_path / "drawn")]
    commands = {
        "MODEL.CLIP.NAMES": ["tools/train_net.py", "MODEL.CLIP.NAMES", "x"],
        "--custom-vocabulary": [*demo, "--custom-vocabulary", ""],
        "nowhere.yaml": ["tools/distill_train_net.py", "--config-file", "nowhere.yaml"],
        "--val": ["datasets/prepare_emoji.py", "--root", str(tmp_path / "d"), "--val", "0"],
    }
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root)}
    running = {
        word: subprocess.Popen(
            [python, "-W", "ignore", *command],
            cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for word, command in commands.items()
    }  # fmt: skip
    for word, process in running.items():
        _, errors = process.communicate()
        assert process.returncode != 0, word
        last = errors.strip().splitlines()[-1]
        assert "error: " in last
        assert word in last
        assert "Traceback" not in errors
    assert not (tmp_path / "drawn").exists()
    assert not list(tmp_path.glob("d/emoji/*.json"))
