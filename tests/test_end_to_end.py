"""The README's main command on a reduced budget, as a user would type it."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
KEYS = ["crop_macc", "dense_macc_before", "dense_macc_after", "minutes", "versions"]
KEYS += [
    f"ap50_{split}_{when}" for split in ("novel", "base", "all") for when in ("before", "after")
]


def run(python: str, *words: object, data_root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(data_root)}
    command = [python, *map(str, words)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def quickstart(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart")
    done = run(
        python, "tools/quickstart.py", "--output", folder / "out", "--data-root", folder / "data",
        "--train", 16, "--val", 4, "--rpn-iterations", 4, "--distill-iterations", 2,
        "--detector-iterations", 2, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0",
        "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96",
        "SOLVER.IMS_PER_BATCH", "2", "INPUT.REGIONS.MAX_BOXES", "4",
        data_root=folder / "data",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return folder


def test_the_summary_has_every_figure(quickstart: Path) -> None:
    summary = json.loads((quickstart / "out" / "summary.json").read_text())
    assert set(KEYS) <= set(summary)
    assert summary["crop_macc"] > 50
    assert summary["minutes"]["total"] == pytest.approx(
        sum(value for name, value in summary["minutes"].items() if name != "total"), abs=0.01
    )


@pytest.mark.parametrize("name", ["curves.png", "detections.png"])
def test_the_pictures_show_something(quickstart: Path, name: str) -> None:
    pixels = np.asarray(Image.open(quickstart / "out" / name).convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels[::4, ::4].reshape(-1, 3), axis=0)) > 100


def test_the_demo_takes_typed_words(python: str, quickstart: Path) -> None:
    picture = sorted((quickstart / "data" / "emoji" / "val").glob("*.jpg"))[0]
    done = run(
        python, "tools/demo.py", "--config-file", "configs/emoji/fvit_clipself.yaml",
        "--input", picture, "--output", quickstart / "drawn", "--vocabulary", "custom",
        "--custom-vocabulary", "police car,wombat", "MODEL.WEIGHTS",
        quickstart / "out" / "fvit_clipself" / "model_final.pth", data_root=quickstart / "data",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (quickstart / "drawn" / f"{picture.stem}.png").is_file()
    assert "wombat" in done.stdout + done.stderr
