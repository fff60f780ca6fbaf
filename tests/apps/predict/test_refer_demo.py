import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.apps.predict import refer_demo
from clipself_d2.apps.predict.refer_demo import ReferringPredictor, draw_mask, run_refer_demo
from clipself_d2.engine.trainer import Trainer

SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 1, "INPUT.REFER_SIZE", 32]


@pytest.fixture
def cfg(emoji_cfg, tmp_path: Path):
    cfg = emoji_cfg("cris", *SMALL)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    return cfg


def test_every_expression_is_drawn_for_every_picture(cfg, emoji_root, tmp_path, caplog):
    pictures = sorted((emoji_root / "emoji" / "val").glob("*.jpg"))[:2]
    texts = ["the dog on the left", "the wombat"]
    cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS = 0
    with caplog.at_level("WARNING", logger="clipself_d2"):
        written = run_refer_demo(cfg, pictures, tmp_path / "drawn", texts)
    expected = [f"{picture.stem}_{number}.png" for picture in pictures for number in (0, 1)]
    assert [path.name for path in written] == expected
    assert np.asarray(Image.open(written[0])).shape[1] >= 640
    assert "wombat" in caplog.text
    assert "dog" not in caplog.text


def test_pictures_are_decoded_one_at_a_time(cfg, emoji_root, tmp_path, monkeypatch):
    pictures = sorted((emoji_root / "emoji" / "val").glob("*.jpg"))[:2]
    events, read = [], refer_demo.read_picture

    def watched(path):
        events.append(path.stem)
        return read(path)

    class Predictor(ReferringPredictor):
        def __call__(self, image, expressions):
            events.append("segmented")
            return super().__call__(image, expressions)

    monkeypatch.setattr(refer_demo, "read_picture", watched)
    monkeypatch.setattr(refer_demo, "ReferringPredictor", Predictor)
    run_refer_demo(cfg, pictures, tmp_path / "drawn", ["the dog"])
    assert events == [pictures[0].stem, "segmented", pictures[1].stem, "segmented"]


def test_a_file_that_is_no_picture_stops_before_anything_is_written(cfg, emoji_root, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    picture = next((emoji_root / "emoji" / "val").glob("*.jpg"))
    with pytest.raises(ValueError, match=r"bad\.jpg"):
        run_refer_demo(cfg, [picture, tmp_path / "bad.jpg"], tmp_path / "drawn", ["the dog"])
    assert not (tmp_path / "drawn").exists()


def test_words_of_a_trained_text_tower_are_not_warned_of(cfg, caplog):
    assert cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS == -1
    with caplog.at_level("WARNING", logger="clipself_d2"):
        ReferringPredictor(cfg)(np.zeros((20, 30, 3), np.uint8), ["the wombat"])
    assert "wombat" not in caplog.text


def test_pictures_of_one_name_do_not_overwrite_each_other(cfg, emoji_root, tmp_path):
    picture = sorted((emoji_root / "emoji" / "val").glob("*.jpg"))[0]
    other = tmp_path / "other" / picture.name
    other.parent.mkdir()
    shutil.copy(picture, other)
    written = run_refer_demo(cfg, [picture, other], tmp_path / "drawn", ["the dog"])
    assert [path.name for path in written] == [f"{picture.stem}_0.png", f"{picture.stem}_2_0.png"]


def test_the_predictor_segments_and_refuses_a_blank(cfg):
    predictor = ReferringPredictor(cfg)
    first, second = predictor(np.zeros((20, 30, 3), np.uint8), ["the dog", "the cat"])
    assert first["ref_mask"].shape == second["ref_mask"].shape == (20, 30)
    assert not torch.equal(first["ref_mask_prob"], second["ref_mask_prob"])
    with pytest.raises(ValueError, match="expression is blank"):
        predictor(np.zeros((20, 30, 3), np.uint8), [""])


def test_the_mask_is_red_and_the_rest_as_it_was():
    image = np.full((48, 640, 3), 200, np.uint8)
    mask = np.zeros((48, 640), np.bool_)
    mask[30:, :100] = True
    drawn = draw_mask(image, mask, "x")
    assert drawn.shape == image.shape
    red, green, _ = drawn[40, 50].astype(int)
    assert red > green + 50
    assert (drawn[40, 400] == 200).all()
    assert (draw_mask(image, np.zeros_like(mask), "x")[40] == 200).all()


def test_faults_are_named(cfg, emoji_cfg, tmp_path):
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(picture)
    with pytest.raises(ValueError, match="needs MODEL.META_ARCHITECTURE CRIS, not GeneralizedRCNN"):
        run_refer_demo(emoji_cfg("fvit_untouched"), [picture], tmp_path, ["a"])
    with pytest.raises(ValueError, match="expression is blank"):
        run_refer_demo(cfg, [], tmp_path, ["a", " "])
    with pytest.raises(ValueError, match="there is no picture; give --input"):
        run_refer_demo(cfg, [], tmp_path, ["a"])
    with pytest.raises(FileNotFoundError, match="gone"):
        run_refer_demo(cfg, [tmp_path / "gone.jpg"], tmp_path, ["a"])
    cfg.MODEL.WEIGHTS = str(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match=r"MODEL\.WEIGHTS .*none\.pth does not exist"):
        run_refer_demo(cfg, [picture], tmp_path, ["a"])
    cfg.MODEL.WEIGHTS = ""
    with pytest.raises(ValueError, match="MODEL.WEIGHTS is empty"):
        run_refer_demo(cfg, [picture], tmp_path, ["a"])


def test_expressions_longer_than_the_text_tower_reads_are_warned_of(cfg, caplog):
    predictor = ReferringPredictor(cfg)
    picture = np.zeros((20, 20, 3), np.uint8)
    predictor(picture, ["the dog on the left"])
    assert "longer than" not in caplog.text
    predictor(picture, ["the dog on the left " * 10])
    assert f"longer than the {predictor.model.word_length} tokens" in caplog.text
