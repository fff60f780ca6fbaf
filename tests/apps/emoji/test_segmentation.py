import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.apps.emoji import quickstart, segmentation
from clipself_d2.apps.emoji.quickstart import Stage
from clipself_d2.apps.emoji.segmentation import (
    PICTURE_FILE,
    SegmentationOptions,
    draw_examples,
    format_table,
    plan_runs,
    run_segmentation,
)
from clipself_d2.apps.predict.classify_masks import SCORES_FILE
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[3] / "configs" / "emoji"


@pytest.fixture
def options(tmp_path: Path, emoji_root: Path) -> SegmentationOptions:
    students = []
    for seed in (0, 1):
        students.append(tmp_path / f"student{seed}.pth")
        students[-1].touch()
    return SegmentationOptions(tmp_path / "out", emoji_root, tuple(students), (0, 1))


def write_scores(stage: Stage, value: float) -> None:
    scores = {
        part: dict.fromkeys((row[2] for _, _, rows in segmentation.SECTIONS for row in rows), value)
        for part in ("panoptic_seg", "sem_seg")
    }
    stage.output.mkdir(parents=True, exist_ok=True)
    if stage.name.startswith("masks"):
        (stage.output / SCORES_FILE).write_text(json.dumps(scores))
    else:
        (stage.output / RESULTS_FILE).write_text(json.dumps({"a_data_set": scores}))


def test_words_are_checked_before_anything_is_trained(options) -> None:
    with pytest.raises(ValueError, match="--words is 9000; there are"):
        plan_runs(replace(options, words=(19, 9000)))
    with pytest.raises(ValueError, match="--cat-seg-iterations is 0"):
        plan_runs(replace(options, words=(19,), cat_seg_iterations=0))


def test_both_towers_of_a_seed_differ_in_nothing_but_the_student(options) -> None:
    stages = {stage.name: stage for stage in plan_runs(options)}
    assert len(stages) == 2 * 2 * 2 + 3 * (1 + 2)
    for kind in segmentation.CONFIGS:
        before, after = (stages[f"{kind}_{tower}_1"] for tower in segmentation.TOWERS)
        assert after.inputs == (options.students[1],)
        assert after.command[-2:] == ["MODEL.CLIP.WEIGHTS", str(options.students[1])]
        configs = [
            load_config(str(CONFIGS / Path(stage.command[2]).name), stage.command[5:])
            for stage in (before, after)
        ]
        for cfg in configs:
            cfg.MODEL.CLIP.WEIGHTS = cfg.OUTPUT_DIR = ""
        assert configs[0] == configs[1]
        assert before.command[7:] == after.command[7:-2]


def test_what_does_not_learn_is_planned_once(options) -> None:
    one = replace(options, students=options.students[:1], panoptic_iterations=0)
    names = [stage.name for stage in plan_runs(one)]
    assert names.count("masks_tokens_untouched") == 1
    assert not any(name.startswith("panoptic") for name in names)


def test_students_are_one_or_one_a_seed(options) -> None:
    with pytest.raises(ValueError, match="--students names 2 files for 3 seeds"):
        plan_runs(replace(options, seeds=(0, 1, 2)))


def test_a_run_with_results_of_the_same_command_is_kept(options, monkeypatch) -> None:
    made: list[str] = []

    def run(stage: Stage, data_root: Path) -> None:
        made.append(stage.name)
        write_scores(stage, 10.0 * len(made))

    monkeypatch.setattr(quickstart, "run_stage", run)
    monkeypatch.setattr(segmentation, "draw_examples", lambda options: None)
    table = run_segmentation(options)
    assert len(made) == 17
    assert run_segmentation(options) == table
    assert len(made) == 17
    run_segmentation(replace(options, cat_seg_iterations=7))
    assert made[17:] == [f"cat_seg_{tower}_{s}" for s in (0, 1) for tower in segmentation.TOWERS]


def test_the_table_has_mean_and_spread_of_what_is_there(options) -> None:
    for stage in plan_runs(options):
        if stage.name.startswith("panoptic"):
            write_scores(stage, 30.0 + 4 * ("distilled" in stage.name) + stage.name.endswith("_1"))
    lines = format_table(options).splitlines()
    assert "OpenVocabPanoptic: PQ novel" in "".join(lines)
    assert not any("CAT-Seg" in line or "true masks" in line for line in lines)
    assert lines[2].split("|")[2:5] == [" 2       ", " 30.5 (1.0)  ", " 34.5 (1.0)  "]


def test_truth_and_both_predictions_are_drawn(options, monkeypatch) -> None:
    for stage in plan_runs(options):
        if stage.name.startswith("cat_seg"):
            write_scores(stage, 1.0)

    class Predictor:
        names = ("word",) * 88

        def __init__(self, config: Path, weights: Path) -> None:
            assert config.parent == weights.parent

        def set_classes(self, words: Vocabulary) -> None:
            assert words.num_classes == 88

        def detect_all(self, pictures: list[np.ndarray]) -> list[dict]:
            rows = [{"id": 1, "category_id": 0}]
            ids = torch.ones(pictures[0].shape[:2], dtype=torch.int32)
            return [{"panoptic_seg": (ids, rows)}]

    monkeypatch.setattr(segmentation, "OpenVocabPredictor", Predictor)
    draw_examples(options)
    picture = Image.open(options.output / PICTURE_FILE)
    assert picture.height > picture.width
