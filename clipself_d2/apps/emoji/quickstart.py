"""The whole path on the embedded data set, stage by stage, each the command a user would type."""

import json
import logging
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from clipself_d2.apps.emoji.progress import ProgressLine
from clipself_d2.apps.emoji.report import Summary, draw_curves, draw_detections, format_table
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

REPOSITORY = Path(__file__).parents[3]
# glibc returns and refetches the memory of every large tensor, a third of a CPU's training time;
# other allocators do not read these.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(512 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(1024 * 2**20),
}
# Minutes of each stage in one run on two cores; a new run's time left is told by their ratios.
MINUTES = {
    "data": 0.8,
    "rpn": 0.9,
    "proposals": 1.1,
    "regions_before": 0.4,
    "distillation": 11.6,
    "detector_before": 1.9,
    "detector_after": 2.0,
}
# The command that gave a folder its results.
COMMAND_FILE = "command.json"
VERSIONS = ("clipself_d2", "torch", "torchvision", "open_clip_torch", "timm", "numpy")


@dataclass(frozen=True)
class QuickstartOptions:
    """Budget and places of a quickstart.

    Attributes:
        output: Folder of everything that is written.
        data_root: Folder that holds the data set ``emoji``.
        train: Training scenes.
        val: Validation scenes.
        rpn_iterations: Steps of the proposal network.
        distill_iterations: Steps of the distillation.
        detector_iterations: Steps of each of the two detectors.
        regions: Source of the student's regions: proposals, grid or both.
        seed: Seed of data, distillation and detectors.
        overrides: Further KEY VALUE pairs for every stage.
        verbose: Whether the terminal shows every stage's log, not one line.
    """

    output: Path
    data_root: Path
    train: int = 2000
    val: int = 300
    rpn_iterations: int = 250
    distill_iterations: int = 750
    detector_iterations: int = 300
    regions: str = "proposals"
    seed: int = 0
    overrides: tuple[str, ...] = ()
    verbose: bool = False


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: Short name, a key of ``minutes`` in the summary.
        command: Arguments after the Python interpreter.
        output: Folder with the stage's results.
        inputs: Files that earlier stages must have written.
    """

    name: str
    command: list[str]
    output: Path
    inputs: tuple[Path, ...] = field(default=())


def plan_stages(options: QuickstartOptions) -> list[Stage]:
    """List the commands of a quickstart, in order."""
    out = options.output
    common = ["SEED", str(options.seed), *options.overrides]
    rpn_weights = out / "rpn" / "model_final.pth"
    proposals = out / "proposals_train.json"
    student = out / "clipself" / "model_final.pth"

    def tool(call: str, config: str, folder: str, *pairs: str, steps: int = 0) -> list[str]:
        name, *flags = call.split()
        budget = ["SOLVER.MAX_ITER", str(steps)] if steps else []
        command = [f"tools/{name}.py", *flags, "--config-file", f"configs/emoji/{config}.yaml"]
        return [*command, "OUTPUT_DIR", str(out / folder), *budget, *pairs, *common]

    prepare = ["datasets/prepare_emoji.py", "--root", str(options.data_root)]
    # The scenes are those of seed 0, whatever the seed of the run.
    prepare += ["--train", str(options.train), "--val", str(options.val), "--seed", "0"]
    stages = [Stage("data", prepare, options.data_root)]
    recipe, source = "clipself_patches", ["INPUT.REGIONS.SOURCE", options.regions]
    if options.regions != "grid":
        recipe = "clipself_proposals"
        source += ["INPUT.REGIONS.PROPOSAL_FILE", str(proposals)]
        rpn = tool("train_net", "rpn", "rpn", steps=options.rpn_iterations)
        call = "make_proposals --dataset emoji_train_images --max-per-image 12"
        propose = tool(call, "rpn", "rpn", "MODEL.WEIGHTS", str(rpn_weights))
        propose[3:3] = ["--output", str(proposals)]
        stages.append(Stage("rpn", rpn, out / "rpn"))
        stages.append(Stage("proposals", propose, out / "rpn", (rpn_weights,)))
    before = tool("distill_train_net --eval-only", "clipself_patches", "before")
    steps = options.distill_iterations
    distill = tool("distill_train_net", recipe, "clipself", *source, steps=steps)
    weights, steps = ("MODEL.CLIP.WEIGHTS", str(student)), options.detector_iterations
    untouched = tool("train_net", "fvit_untouched", "fvit_untouched", steps=steps)
    distilled = tool("train_net", "fvit_clipself", "fvit_clipself", *weights, steps=steps)
    return [
        *stages,
        Stage("regions_before", before, out / "before"),
        Stage("distillation", distill, out / "clipself"),
        Stage("detector_before", untouched, out / "fvit_untouched"),
        Stage("detector_after", distilled, out / "fvit_clipself", (student,)),
    ]


def run_stage(
    stage: Stage, data_root: Path, log: Path | None = None, progress: ProgressLine | None = None
) -> float:
    """Run one command, whose output goes into ``log``, or to the terminal without one.

    ``progress`` reads what goes into the file. Returns the minutes it took.
    """
    for path in stage.inputs:
        if not path.is_file():
            raise FileNotFoundError(f"stage {stage.name} needs {path}, which no stage has written")
    command = f"python {shlex.join(stage.command)}"
    logger.info("[%s] %s", stage.name, command)
    start = time.perf_counter()
    environment = {**ALLOCATOR, **os.environ, "DETECTRON2_DATASETS": str(data_root)}
    words = [sys.executable, *stage.command]
    if log is None:
        code = subprocess.run(words, cwd=REPOSITORY, env=environment, check=False).returncode
        said = ""
    else:
        code = _run_into(log, words, environment, progress)
        lines = log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
        said = f"; {log} ends with: {lines[-1]}"
    if code != 0:
        raise ValueError(
            f"stage {stage.name} failed with exit code {code}; its command was {command}{said}"
        )
    return (time.perf_counter() - start) / 60


def _run_into(
    log: Path, words: list[str], environment: dict[str, str], progress: ProgressLine | None
) -> int:
    """Run a command and write what it prints, line by line as it comes."""
    log.parent.mkdir(parents=True, exist_ok=True)
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            words, cwd=REPOSITORY, env=environment, text=True, errors="replace", **pipes
        ) as process,
    ):
        for line in process.stdout or ():
            file.write(line)
            file.flush()
            if progress is not None:
                progress.see(line)
    return process.returncode


def run_once(stage: Stage, data_root: Path, *results: str) -> bool:
    """Run a command, unless one of its files of results is there and of this very command.

    Returns whether it ran.
    """
    record = stage.output / COMMAND_FILE
    done = record.is_file() and any((stage.output / name).is_file() for name in results)
    if done and json.loads(record.read_text(encoding="utf-8")) == stage.command:
        logger.info("[%s] has results in %s; kept", stage.name, stage.output)
        return False
    run_stage(stage, data_root)
    write_json(record, stage.command)
    return True


def run_quickstart(options: QuickstartOptions) -> Summary:
    """Run all stages, then write the table, the pictures and the summary, which is returned."""
    options.output.mkdir(parents=True, exist_ok=True)
    summary_path = options.output / "summary.json"
    summary_path.unlink(missing_ok=True)
    stages, minutes = plan_stages(options), {}
    progress = ProgressLine({stage.name: MINUTES[stage.name] for stage in stages})
    for stage in stages:
        log = None if options.verbose else options.output / "logs" / f"{stage.name}.txt"
        progress.begin(stage.name)
        taken = run_stage(stage, options.data_root, log, progress)
        progress.end()
        minutes[stage.name] = round(taken, 3)
    summary = summarise(options, minutes)
    draw_curves(summary, options.output / "clipself" / "metrics.json", options.output)
    draw_detections(
        options.data_root / "emoji",
        options.output / "fvit_untouched",
        options.output / "fvit_clipself",
        options.output / "detections.png",
    )
    write_json(summary_path, summary, indent=1)
    sys.stdout.write(
        f"\n{format_table(summary)}\nsummary.json, curves.png, detections.png, checkpoints and "
        f"logs are in {options.output}\n"
    )
    return summary


def summarise(options: QuickstartOptions, minutes: dict[str, float]) -> Summary:
    """Collect the figures that the stages wrote, and the time that each took, minutes."""
    before = read_results(options.output / "before")["emoji_panoptic_val"]["region"]
    after = read_results(options.output / "clipself")["emoji_panoptic_val"]["region"]
    untouched = read_results(options.output / "fvit_untouched")["emoji_ov_val"]["bbox"]
    distilled = read_results(options.output / "fvit_clipself")["emoji_ov_val"]["bbox"]
    summary: Summary = {
        "crop_macc": before["crop.thing.macc1"],
        "dense_macc_before": before["roi.thing.macc1"],
        "dense_macc_after": after["roi.thing.macc1"],
    }
    for split in ("novel", "base", "all"):
        summary[f"ap50_{split}_before"] = untouched[f"AP50-{split}"]
        summary[f"ap50_{split}_after"] = distilled[f"AP50-{split}"]
    summary["minutes"] = {**minutes, "total": round(sum(minutes.values()), 3)}
    summary["regions"] = options.regions
    summary["seed"] = options.seed
    summary["versions"] = {name: metadata.version(name) for name in VERSIONS}
    return summary


def read_results(folder: Path) -> dict[str, Any]:
    """Return the scores in an OUTPUT_DIR, by data set."""
    return json.loads((folder / RESULTS_FILE).read_text(encoding="utf-8"))
