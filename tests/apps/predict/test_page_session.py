"""What visitors ask is checked, and answered by the models behind the page."""

import logging
from pathlib import Path

import pytest
import torch

from clipself_d2.apps.predict.page_session import (
    MOST_PICTURES,
    MOST_WORDS,
    Models,
    Question,
    check_question,
    collected_warnings,
    find_examples,
)
from clipself_d2.engine.trainer import Trainer

SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 0, "INPUT.REFER_SIZE", 32]


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question(), "there is no picture; upload one"),
        (Question(files=["a"] * (MOST_PICTURES + 1)), "9 pictures; at most 8 at once"),
        (Question(files=["a"], words=["x"] * (MOST_WORDS + 1)), "101 words; at most 100"),
        (Question(files=["a"], negative=["x" * 81]), "longer than 80 letters"),
    ],
)
def test_too_much_is_refused(question: Question, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_question(question)


def test_warnings_are_collected_once_while_the_block_runs() -> None:
    log = logging.getLogger("clipself_d2.somewhere")
    with collected_warnings() as notes:
        log.warning("strange %s", "word")
        log.warning("strange word")
    log.warning("later")
    assert notes == ["strange word"]


def test_a_detector_is_asked_words_examples_and_negative_words(
    detector_cfg, weights: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = detector_cfg()
    cfg.MODEL.WEIGHTS = str(weights)
    models = Models(cfg)
    assert models.tabs == ["boxes", "heat map"]
    files = [str(path) for path in pictures[:2]]
    asked = Question(
        files,
        words=["dog", "wombat"],
        negative=["owl"],
        reference_name="mine",
        references=[files[0]],
    )
    answer = models.answer(asked)
    assert answer.names == ("dog", "wombat", "mine")
    assert [result.name for result in answer.results] == [path.name for path in pictures[:2]]
    assert any("never read the words wombat" in note for note in answer.notes)
    for result in answer.results:
        height, width = result.image.shape[:2]
        rows, columns = result.heat_Khw.shape[1:]
        assert result.heat_Khw.shape[0] == 3
        assert rows / columns == pytest.approx(height / width, abs=0.1)
        assert result.instances.pred_classes.max() <= 2
    with pytest.raises(ValueError, match="there is no class"):
        models.answer(Question(files))
    monkeypatch.setattr("clipself_d2.apps.predict.page_session.MOST_PIXELS", 1_000)
    with pytest.raises(ValueError, match="megapixels are looked at"):
        models.answer(asked)


def test_a_cris_is_asked_expressions(emoji_cfg, tmp_path: Path, pictures: list[Path]) -> None:
    cfg = emoji_cfg("cris", *SMALL)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    models = Models(cfg)
    assert models.tabs == ["expression"]
    answer = models.answer(Question([str(pictures[0])], expression="the dog"))
    assert answer.names == ("the dog",)
    assert answer.results[0].probability.shape == answer.results[0].image.shape[:2]
    with pytest.raises(ValueError, match="there is no expression"):
        models.answer(Question([str(pictures[0])]))


def test_examples_are_pictures_of_the_test_set(emoji_cfg) -> None:
    cfg = emoji_cfg("fvit_untouched", "DATASETS.TEST", ("emoji_ov_val",))
    examples = find_examples(cfg)
    assert 0 < len(examples) <= 4
    assert all(Path(file).is_file() and 0 < len(words) <= 4 for file, words in examples)
    cfg.DATASETS.TEST = ("gone",)
    assert find_examples(cfg) == []
