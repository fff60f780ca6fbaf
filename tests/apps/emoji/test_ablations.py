import json
from dataclasses import replace
from pathlib import Path

import pytest

from clipself_d2.apps.emoji import ablations, quickstart
from clipself_d2.apps.emoji.ablations import (
    ROWS,
    AblationOptions,
    choose_rows,
    format_page,
    plan_runs,
    prepare_files,
    run_ablations,
)
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.vocabulary.concepts import ConceptPool

CONFIGS = Path(__file__).parents[3] / "configs" / "emoji"
SCORES = {
    "region": {f"roi.{split}.macc1": 1.0 for split in ("thing", "thing.base", "thing.novel")},
    "bbox": {"AP50-novel": 1.0, "AP50-base": 2.0, "AP50-all": 3.0},
}
SCORES["region"]["roi.stuff.macc1"] = 4.0


@pytest.fixture
def options(tmp_path: Path, emoji_root: Path) -> AblationOptions:
    return AblationOptions(
        output=tmp_path / "out",
        page=tmp_path / "page.md",
        data_root=emoji_root,
        proposals=emoji_root / "emoji" / "annotations" / "instances_train_base.json",
        iterations=5,
        detector_iterations=7,
    )


def pairs_of(command: list[str]) -> dict[str, str]:
    begin = command.index("OUTPUT_DIR")
    return dict(zip(command[begin::2], command[begin + 1 :: 2], strict=True))


def test_the_papers_six_ablations_have_two_rows_at_least() -> None:
    titles = [row.table for row in ROWS]
    six = (
        *(ablations.SUPERVISION, ablations.REGIONS, ablations.POOL),
        *(ablations.LOSSES, ablations.TEACHER, ablations.FOCAL),
    )
    assert all(titles.count(title) >= 2 for title in six)


def test_lines_that_share_a_run_are_one_run() -> None:
    for row in ROWS:
        twins = [other for other in ROWS if other.name == row.name]
        runs = {(other.config, other.pairs, other.train, other.student) for other in twins}
        assert len(runs) == 1, row.name


def test_every_run_is_planned_once_and_towers_come_before_their_detectors(options) -> None:
    names = [stage.name for stage in plan_runs(options, ROWS)]
    assert len(names) == len(set(names))
    for row in ROWS:
        if row.student:
            assert names.index(row.student) < names.index(row.name)


def test_zero_shot_runs_train_nothing_and_need_the_network_for_its_boxes(options) -> None:
    titles = {row.table for row in choose_rows(options)}
    assert ablations.ZERO_GT in titles
    assert ablations.ZERO_RPN not in titles
    rows = choose_rows(replace(options, rpn=Path("rpn.pth"), tables=("zero-shot on an rpn",)))
    stages = {stage.name: stage.command for stage in plan_runs(options, rows)}
    assert set(stages) == {"full", "clipself", "rpn_clip", "rpn_full", "rpn_clipself"}
    assert [name for name, words in stages.items() if "--eval-only" in words] == [
        *("rpn_clip", "rpn_full", "rpn_clipself")
    ]
    assert "MODEL.CLIP.WEIGHTS" not in stages["rpn_clip"]


def test_a_missing_network_names_the_flag(options) -> None:
    with pytest.raises(FileNotFoundError, match=r"--rpn none\.pth does not exist"):
        prepare_files(replace(options, rpn=Path("none.pth")))


def test_a_detector_brings_the_run_of_its_tower_along(options) -> None:
    chosen = choose_rows(replace(options, tables=("focal",)))
    assert [row.name for row in chosen] == ["fvit_full", "fvit_focal"]
    stages = plan_runs(options, chosen)
    assert [stage.name for stage in stages] == ["full", "fvit_full", "fvit_focal"]
    student = options.output / "full" / "model_final.pth"
    assert stages[1].inputs == (student,)
    assert pairs_of(stages[1].command)["MODEL.CLIP.WEIGHTS"] == str(student)


def test_every_command_merges_into_its_recipe(options) -> None:
    for stage in plan_runs(options, ROWS):
        config = CONFIGS / Path(stage.command[stage.command.index("--config-file") + 1]).name
        pairs = pairs_of(stage.command)
        cfg = load_config(str(config), [text for pair in pairs.items() for text in pair])
        assert str(stage.output) == cfg.OUTPUT_DIR
        detector = "RCNN" in cfg.MODEL.META_ARCHITECTURE
        assert (7 if detector else 5) == cfg.SOLVER.MAX_ITER
        cfg.MODEL.DISTILL.TERMS = []
        assert "{" not in str(cfg)


def test_an_unknown_table_is_named(options) -> None:
    with pytest.raises(ValueError, match=r"--tables 'optimizer' is in none of .*Losses"):
        choose_rows(replace(options, tables=("Optimizer",)))


def test_files_halve_the_pictures_and_the_nouns(options, monkeypatch) -> None:
    monkeypatch.setattr(ablations, "MIN_COUNT", 1)
    prepare_files(options)
    half = json.loads((options.output / "half.json").read_text())
    assert len(half["images"]) == 8
    assert len(half["annotations"]) == 16
    pool = ConceptPool.load(options.output / "concepts.txt")
    frequent = ConceptPool.load(options.output / "frequent.txt")
    assert frequent.names == pool.names[: (len(pool.names) + 1) // 2]
    assert set(ConceptPool.load(options.output / "half.txt").names) < set(pool.names)


def test_missing_proposals_name_the_flag(options) -> None:
    with pytest.raises(FileNotFoundError, match=r"--proposals .*none\.json does not exist"):
        prepare_files(replace(options, proposals=Path("none.json")))


def test_runs_with_results_are_kept_and_others_made_again(options, monkeypatch) -> None:
    made = []

    def run(stage, data_root) -> None:
        made.append(stage.name)
        stage.output.mkdir(parents=True, exist_ok=True)
        (stage.output / RESULTS_FILE).write_text(json.dumps({"set": SCORES}))

    monkeypatch.setattr(ablations, "MIN_COUNT", 1)
    monkeypatch.setattr(quickstart, "run_stage", run)
    chosen = replace(options, tables=("losses",))
    run_ablations(chosen, "python tools/run_ablations.py")
    assert made == ["contrast", "distill", "full"]
    run_ablations(chosen, "python tools/run_ablations.py")
    assert len(made) == 3
    run_ablations(replace(chosen, iterations=6), "python tools/run_ablations.py")
    assert len(made) == 6
    page = options.page.read_text()
    assert "## Losses" in page
    assert "## Teacher" not in page


def test_the_page_has_the_command_and_a_line_for_every_row(options) -> None:
    results = {row.name: SCORES for row in ROWS}
    page = format_page(options, ROWS, results, "python tools/run.py --x")
    assert "```\npython tools/run.py --x\n```" in page
    assert "5 iterations of pre-training and 7 of a detector" in page
    assert page.count("| 1.0 | 1.0 | 1.0 | 4.0 |") == sum(not row.is_detector for row in ROWS)
    assert page.count("| 1.0 | 2.0 | 3.0 |") == sum(row.is_detector for row in ROWS)
