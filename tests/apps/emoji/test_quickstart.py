import json
from pathlib import Path

import pytest

from clipself_d2.apps.emoji.quickstart import (
    MINUTES,
    QuickstartOptions,
    Stage,
    plan_stages,
    run_stage,
    summarise,
)


def options(tmp_path: Path, **changes: object) -> QuickstartOptions:
    return QuickstartOptions(output=tmp_path / "out", data_root=tmp_path / "data", **changes)


def test_proposals_need_an_rpn_and_the_grid_does_not(tmp_path: Path) -> None:
    with_rpn = [stage.name for stage in plan_stages(options(tmp_path))]
    without = [stage.name for stage in plan_stages(options(tmp_path, regions="grid"))]
    assert with_rpn[:3] == ["data", "rpn", "proposals"]
    assert with_rpn[3:] == without[1:]
    assert without == [
        "data",
        "regions_before",
        "distillation",
        "detector_before",
        "detector_after",
    ]


@pytest.mark.parametrize("regions", ["proposals", "grid", "both"])
def test_every_command_names_files_of_the_repository(tmp_path: Path, regions: str) -> None:
    root = Path(__file__).parents[3]
    for stage in plan_stages(options(tmp_path, regions=regions)):
        assert (root / stage.command[0]).is_file()
        if "--config-file" in stage.command:
            config = stage.command[stage.command.index("--config-file") + 1]
            assert (root / config).is_file()


def test_both_detectors_have_the_same_budget(tmp_path: Path) -> None:
    stages = {stage.name: stage.command for stage in plan_stages(options(tmp_path, seed=3))}
    before, after = stages["detector_before"], stages["detector_after"]
    at = before.index("SOLVER.MAX_ITER")
    assert before[at : at + 2] == after[at : at + 2]
    assert "MODEL.CLIP.WEIGHTS" not in before
    assert after[after.index("MODEL.CLIP.WEIGHTS") + 1].endswith("clipself/model_final.pth")
    assert before[-2:] == after[-2:] == ["SEED", "3"]


def test_a_failing_stage_tells_its_command(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit(3)")
    with pytest.raises(ValueError, match=r"stage broken failed with exit code 3.*fails\.py"):
        run_stage(Stage("broken", [str(script)], tmp_path), tmp_path)


def test_a_missing_input_is_named_before_the_command_runs(tmp_path: Path) -> None:
    script = tmp_path / "touch.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    stage = Stage("late", [str(script)], tmp_path, (tmp_path / "rpn.pth",))
    with pytest.raises(FileNotFoundError, match=r"rpn\.pth"):
        run_stage(stage, tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_stage_sees_the_data_root(tmp_path: Path) -> None:
    script = tmp_path / "root.py"
    script.write_text(
        f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['DETECTRON2_DATASETS'])"
    )
    minutes = run_stage(Stage("see", [str(script)], tmp_path), tmp_path / "data")
    assert (tmp_path / "seen").read_text() == str(tmp_path / "data")
    assert 0 < minutes < 1


def test_the_summary_takes_each_figure_from_its_stage(tmp_path: Path) -> None:
    def write(folder: str, content: dict) -> None:
        (tmp_path / "out" / folder).mkdir(parents=True)
        (tmp_path / "out" / folder / "results.json").write_text(json.dumps(content))

    def regions(crop: float, roi: float) -> dict:
        figures = {"crop.thing.macc1": crop, "roi.thing.macc1": roi}
        return {"emoji_panoptic_val": {"region": figures}}

    def boxes(novel: float) -> dict:
        figures = {"AP50-novel": novel, "AP50-base": 50.0, "AP50-all": 40.0}
        return {"emoji_ov_val": {"bbox": figures}}

    write("before", regions(90.0, 2.0))
    write("clipself", regions(90.0, 60.0))
    write("fvit_untouched", boxes(3.0))
    write("fvit_clipself", boxes(30.0))
    summary = summarise(options(tmp_path), {"data": 0.5, "rpn": 1.0})
    assert summary["crop_macc"] == 90.0
    assert (summary["dense_macc_before"], summary["dense_macc_after"]) == (2.0, 60.0)
    assert (summary["ap50_novel_before"], summary["ap50_novel_after"]) == (3.0, 30.0)
    assert summary["minutes"]["total"] == 1.5
    assert "torch" in summary["versions"]


def test_a_log_holds_all_that_a_stage_prints_and_its_end_is_in_the_error(tmp_path: Path) -> None:
    script = tmp_path / "says.py"
    script.write_text("import sys; print('out'); sys.exit('no space left')")
    log = tmp_path / "logs" / "says.txt"
    with pytest.raises(ValueError, match=r"exit code 1.*says\.txt ends with: no space left"):
        run_stage(Stage("says", [str(script)], tmp_path), tmp_path, log)
    assert sorted(log.read_text().split("\n")) == ["", "no space left", "out"]


def test_every_stage_has_a_length_for_the_time_left(tmp_path: Path) -> None:
    assert [stage.name for stage in plan_stages(options(tmp_path))] == list(MINUTES)
