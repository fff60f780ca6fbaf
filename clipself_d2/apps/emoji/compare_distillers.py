"""Every distiller on emoji scenes under one budget of steps, and one table of what they gain."""

import json
import logging
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from clipself_d2.apps.analysis.segment_forms import spread_over
from clipself_d2.apps.emoji.quickstart import REPOSITORY, Stage, read_results, run_once
from clipself_d2.data.pictures import fit_longest, read_picture, to_tensor
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.evaluation.build import build_segment_evaluator
from clipself_d2.parts.image_tower import build_image_tower
from clipself_d2.parts.json_file import write_json
from clipself_d2.parts.text_embeddings import read_text_embeddings, semantic_vocabulary

logger = logging.getLogger(__name__)

# The score of a student's dense map, beside its results.
MIOU_FILE = "dense_miou.json"
LABELS, REGIONS = "emoji_ov_sem_seg_val", "emoji_panoptic_val"
# Lines of the table, their recipes; the first trains nothing. DenseVLM's teacher is CLIPSelf's
# student of the same seed.
METHODS = {
    "untouched": "clipself_patches",
    "CLIPSelf": "clipself_patches",
    "SC-CLIPSelf": "sc_clipself",
    "DeCLIP": "declip",
    "SynCLIP": "synclip",
    "DenseRC": "denserc",
    "DenseVLM": "densevlm",
}
# Methods that read a vision foundation model; with a file for it, each has a line more.
READ_VFM, TRAINED = ("DeCLIP", "SynCLIP", "DenseRC"), "+VFM"
# Column, task and key of a student's scores, and of its detector's.
COLUMNS = {
    "things": ("region", "roi.thing.macc1"),
    "drop": ("synonyms", "region.roi.thing.macc1.drop"),
    "novel things": ("region", "roi.thing.novel.macc1"),
    "novel drop": ("synonyms", "region.roi.thing.novel.macc1.drop"),
    "stuff": ("region", "roi.stuff.macc1"),
}
DETECTOR_COLUMNS = {
    "AP50 novel": ("bbox", "AP50-novel"),
    "AP50 novel drop": ("synonyms", "bbox.AP50-novel.drop"),
    "AP50 base": ("bbox", "AP50-base"),
    "AP50 base drop": ("synonyms", "bbox.AP50-base.drop"),
}
SYNONYMS = ("TEST.SYNONYMS", "True", "TEST.SYNONYM_MODE", "all")


@dataclass(frozen=True)
class CompareOptions:
    """Budget and places of a comparison.

    Attributes:
        output: Folder of the runs.
        data_root: Folder that holds the data set ``emoji``.
        page: Markdown file of the table.
        iterations: Steps of every distillation.
        detector_iterations: Steps of an F-ViT on every student; 0: no detectors.
        seeds: Seeds, 0 and upwards; the table has the mean and the deviation.
        methods: Names of ``METHODS``.
        overrides: Further KEY VALUE pairs of every distillation.
        vfm: Weights of the vision model ``tiny`` for further lines of the methods that read one;
            None: random weights alone.
    """

    output: Path
    data_root: Path
    page: Path
    iterations: int = 750
    detector_iterations: int = 0
    seeds: int = 3
    methods: tuple[str, ...] = tuple(METHODS)
    overrides: tuple[str, ...] = ()
    vfm: Path | None = None


def lines(options: CompareOptions) -> list[str]:
    """List the lines of the table: the methods, each beside itself with a trained vision model."""
    found = []
    for method in options.methods:
        found.append(method)
        if options.vfm and method in READ_VFM:
            found.append(method + TRAINED)
    return found


def plan(options: CompareOptions, method: str, seed: int) -> list[Stage]:
    """List the commands of a line of the table: a distillation, and a detector if it has steps."""
    folder = options.output / f"seed{seed}"
    student, recipe = folder / method, METHODS[method.removesuffix(TRAINED)]
    cfg = load_config(_recipe(recipe), [])
    pairs = ["OUTPUT_DIR", str(student), "SOLVER.MAX_ITER", str(options.iterations)]
    pairs += ["SOLVER.CHECKPOINT_PERIOD", str(options.iterations), "SEED", str(seed)]
    inputs: tuple[Path, ...] = ()
    if method == "DenseVLM":
        inputs = (folder / "CLIPSelf" / "model_final.pth",)
        (row,) = cfg.MODEL.DISTILL.TERMS
        pairs += ["MODEL.DISTILL.TERMS", str([{**row, "weights": str(inputs[0])}])]
    if method.endswith(TRAINED):
        pairs += ["MODEL.VFM.WEIGHTS", str(options.vfm)]
    pairs += [*SYNONYMS, *options.overrides]
    flags = ["tools/distill_train_net.py", "--config-file", f"configs/emoji/{recipe}.yaml"]
    flags += ["--eval-only"] if method == "untouched" else []
    stages = [Stage(method, [*flags, *pairs], student, inputs)]
    if options.detector_iterations:
        detector = ["tools/train_net.py", "--config-file", "configs/emoji/fvit_untouched.yaml"]
        detector += ["OUTPUT_DIR", str(student / "fvit"), "SEED", str(seed)]
        detector += ["SOLVER.MAX_ITER", str(options.detector_iterations)]
        detector += ["MODEL.CLIP.DENSE_FORM", str(cfg.MODEL.CLIP.DENSE_FORM), *SYNONYMS]
        weights = student / "model_final.pth"
        inputs = () if method == "untouched" else (weights,)
        detector += ["MODEL.CLIP.WEIGHTS", str(weights)] if inputs else []
        stages.append(Stage(f"{method}, F-ViT", detector, student / "fvit", inputs))
    return stages


@torch.no_grad()
def dense_miou(cfg: CfgNode) -> float:
    """Segment the validation scenes without training: every pixel the class of its cell.

    MODEL.CLIP.WEIGHTS are the student's. Returns the mIoU of things and stuff, percent.
    """
    cfg = cfg.clone()
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = 0
    tower = build_image_tower(cfg, reads_embedding=True).eval()
    text = read_text_embeddings(cfg, semantic_vocabulary(LABELS), same_names=False)
    mean, std = (
        torch.tensor(list(value)).view(3, 1, 1) for value in (tower.pixel_mean, tower.pixel_std)
    )
    evaluator = build_segment_evaluator(LABELS, None)
    evaluator.reset()
    for record in DatasetCatalog.get(LABELS):
        picture = read_picture(record["file_name"])
        seen = fit_longest(picture, max(cfg.INPUT.REGIONS.IMAGE_SIZES))
        pixels = to_tensor(seen).float()
        dense = tower.forward_dense(((pixels - mean) / std)[None]).embedding
        maps = torch.einsum("kd,ndhw->nkhw", text.embeddings_KD.float(), dense)[0]
        output = spread_over(picture, maps, tower.patch_size, seen)
        evaluator.process([record], [{"sem_seg": output}])
    scores = evaluator.evaluate()
    assert scores is not None, "one process evaluates"
    return float(scores["sem_seg"]["mIoU"])


def run_comparison(options: CompareOptions, command: str) -> None:
    """Run what has no results yet, then write the page, which quotes the command."""
    if options.vfm and not options.vfm.is_file():
        raise FileNotFoundError(
            f"--vfm {options.vfm} does not exist; write it with tools/train_emoji_vfm.py"
        )
    found: dict[str, list[dict[str, float]]] = {method: [] for method in lines(options)}
    for seed in range(options.seeds):
        for method in found:
            found[method].append(_run(options, method, seed))
            options.page.parent.mkdir(parents=True, exist_ok=True)
            options.page.write_text(format_page(options, found, command), encoding="utf-8")
    logger.info("table in %s", options.page)


def _run(options: CompareOptions, method: str, seed: int) -> dict[str, float]:
    """Run one line for one seed, or read what it has written; its scores by column."""
    for stage in plan(options, method, seed):
        if run_once(stage, options.data_root, RESULTS_FILE):
            # That of the weights that were there before.
            (stage.output / MIOU_FILE).unlink(missing_ok=True)
    folder = options.output / f"seed{seed}" / method
    scored = folder / MIOU_FILE
    if not scored.is_file():
        weights = "" if method == "untouched" else str(folder / "model_final.pth")
        recipe = _recipe(METHODS[method.removesuffix(TRAINED)])
        cfg = load_config(recipe, ["MODEL.CLIP.WEIGHTS", weights])
        write_json(scored, {"mIoU": dense_miou(cfg)})
    found = read_results(folder)[REGIONS]
    scores = {column: float(found[task][key]) for column, (task, key) in COLUMNS.items()}
    scores["mIoU"] = float(json.loads(scored.read_text(encoding="utf-8"))["mIoU"])
    if options.detector_iterations:
        boxes = read_results(folder / "fvit")["emoji_ov_val"]
        scores |= {c: float(boxes[task][key]) for c, (task, key) in DETECTOR_COLUMNS.items()}
    return scores


def format_page(
    options: CompareOptions, found: Mapping[str, list[dict[str, float]]], command: str
) -> str:
    """Write the scores, of every method by seed, as a page of Markdown."""
    columns = [*COLUMNS, "mIoU", *(DETECTOR_COLUMNS if options.detector_iterations else ())]
    rows = [["", "seeds", *columns], ["---"] * (2 + len(columns))]
    for method, scores in found.items():
        if not scores:
            continue
        cells = [method, str(len(scores))]
        for column in columns:
            values = [row[column] for row in scores]
            spread = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}")
        rows.append(cells)
    return "\n\n".join(
        [
            "# Distillers on emoji scenes",
            "Made by `tools/compare_distillers.py`; do not edit. Every method has "
            f"{options.iterations} iterations of its recipe in `configs/emoji`, regions of a grid, "
            "the embedded 6-block CLIP and, where it needs a vision foundation model, a small ViT "
            "with RANDOM weights, which knows of colours and edges alone, or, where the line says "
            f"`{TRAINED}`, one trained on the scenes without labels: gains that the papers owe to "
            "DINOv2 cannot show. Region accuracy (roi, top-1, mean over classes) and mIoU "
            "of the dense map without training, things and stuff, in percent. The embedded text "
            "tower has read the classes' names alone, so that a drop, beside its score, is what "
            "is lost where a name of two words is cut to one. DenseVLM's teacher is "
            "CLIPSelf's student of the same seed, since there is no larger CLIP. A table of one "
            "seed says little of small differences.",
            f"```\n{command}\n```",
            "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n",
        ]
    )


def _recipe(name: str) -> str:
    return str(REPOSITORY / "configs" / "emoji" / f"{name}.yaml")
