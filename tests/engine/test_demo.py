from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.engine.demo import choose_vocabulary, run_demo
from clipself_d2.engine.trainer import Trainer


def test_custom_names_are_split_stripped_and_unique() -> None:
    names = choose_vocabulary("custom", " police car, teddy bear ,police car,").names
    assert names == ("police car", "teddy bear")


@pytest.mark.parametrize("text", ["", " , ,"])
def test_no_custom_name_names_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match="--custom-vocabulary is empty"):
        choose_vocabulary("custom", text)


def test_a_data_set_gives_its_classes(emoji_data: Path) -> None:
    vocabulary = choose_vocabulary("emoji_ov_val", "")
    assert vocabulary.num_classes == 80
    assert len(vocabulary.novel_names) == 20


def test_a_file_gives_its_lines(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("dog\nhot dog\n")
    assert choose_vocabulary(str(tmp_path / "names.txt"), "").names == ("dog", "hot dog")


def test_an_unknown_source_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="custom, a registered data set"):
        choose_vocabulary("coco_of_mars", "")


def detector(emoji_cfg, tmp_path: Path):
    cfg = emoji_cfg("fvit_untouched", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    return cfg


def test_typed_words_are_drawn_and_the_unseen_ones_warned_of(
    emoji_cfg, emoji_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    picture = sorted((emoji_data / "emoji" / "val").glob("*.jpg"))[0]
    vocabulary = choose_vocabulary("custom", "police car,wombat")
    with caplog.at_level("WARNING", logger="clipself_d2"):
        written = run_demo(cfg, [picture], tmp_path / "drawn", vocabulary, 0.0)
    assert [path.name for path in written] == [f"{picture.stem}.png"]
    drawn = np.asarray(Image.open(written[0]))
    assert drawn.shape[1] >= 640
    assert "wombat" in caplog.text
    assert "police" not in caplog.text


def test_a_damaged_picture_stops_before_anything_is_written(
    emoji_cfg, emoji_data: Path, tmp_path: Path
) -> None:
    cfg = detector(emoji_cfg, tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    vocabulary = choose_vocabulary("custom", "dog")
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        run_demo(cfg, [tmp_path / "bad.jpg"], tmp_path / "drawn", vocabulary, 0.5)
    assert not (tmp_path / "drawn").exists()


def test_no_weights_name_the_key(emoji_cfg, tmp_path: Path) -> None:
    cfg = emoji_cfg("fvit_untouched")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        run_demo(cfg, [], tmp_path, choose_vocabulary("custom", "dog"), 0.5)
