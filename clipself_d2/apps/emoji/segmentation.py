"""Both segmenters on emoji scenes, untouched against distilled ViT, over several seeds."""

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure
from tabulate import tabulate

from clipself_d2.apps.emoji.many_words import list_words, measure_words
from clipself_d2.apps.emoji.quickstart import Stage, run_once
from clipself_d2.apps.predict.classify_masks import SCORES_FILE
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.segments import draw_segments, segments_of
from clipself_d2.data.pictures import read_picture
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.parts.label_maps import read_segment_colours, segment_ids
from clipself_d2.parts.text_embeddings import dataset_vocabulary
from clipself_d2.segmentation.panoptic import POOLINGS

logger = logging.getLogger(__name__)

TABLE_FILE, PICTURE_FILE = "segmentation.md", "segmentation.png"
TOWERS = ("untouched", "distilled")
CONFIGS = {
    "panoptic": dict(zip(TOWERS, ("ov_panoptic_untouched", "ov_panoptic_clipself"), strict=True)),
    "cat_seg": dict(zip(TOWERS, ("catseg_untouched", "catseg_distilled"), strict=True)),
}
_MIOU = tuple(
    (f"mIoU{suffix.replace('_', ' ')}", "sem_seg", f"mIoU{suffix}")
    for suffix in ("", "_base", "_novel", "_stuff")
)
_PQ = tuple(
    (f"PQ{suffix.replace('_', ' ')}", "panoptic_seg", f"PQ{suffix}")
    for suffix in ("", "_thing", "_stuff", "_base", "_novel")
)
# True masks have no error but their names, so that RQ is the F1 score of the naming.
_NAMING = tuple(
    (f"F1{suffix.replace('_', ' ')}", "panoptic_seg", f"RQ{suffix}")
    for suffix in ("_thing", "_stuff", "_base", "_novel")
)
# Lines of the table: title, kind of run, its rows of (name, section of the results, metric).
SECTIONS = (
    ("OpenVocabPanoptic", "panoptic", (*_PQ, *_MIOU)),
    ("CAT-Seg", "cat_seg", _MIOU),
    *((f"names of true masks, {pooling}", f"masks_{pooling}", _NAMING) for pooling in POOLINGS),
)
_VAL = "emoji_ov_panoptic_val"
_NUM_PICTURES = 3


@dataclass(frozen=True)
class SegmentationOptions:
    """Budget and places.

    Attributes:
        output: Folder of the runs, of the table and of the picture.
        data_root: Folder that holds the data set ``emoji`` with its training maps.
        students: Distilled ViTs, one for each seed or one for all.
        seeds: Seeds of the trainings.
        panoptic_iterations: Steps of the panoptic model; 0 leaves it out.
        cat_seg_iterations: Steps of CAT-Seg; 0 leaves it out.
        poolings: Ways of naming true masks by a tower; empty leaves that out.
        words: Numbers of words for which the first seed's distilled CAT-Seg is timed and scored.
        overrides: Further KEY VALUE pairs for every training.
    """

    output: Path
    data_root: Path
    students: tuple[Path, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    panoptic_iterations: int = 200
    cat_seg_iterations: int = 200
    poolings: tuple[str, ...] = POOLINGS
    words: tuple[int, ...] = ()
    overrides: tuple[str, ...] = ()


def plan_runs(options: SegmentationOptions) -> list[Stage]:
    """List the commands of all seeds: the naming of true masks, then the trainings."""
    if len(options.students) not in (1, len(options.seeds)):
        raise ValueError(
            f"--students names {len(options.students)} files for {len(options.seeds)} seeds; "
            "name one file, or one for each seed"
        )
    if options.words and not options.cat_seg_iterations:
        raise ValueError("--words asks a CAT-Seg, and --cat-seg-iterations is 0; give it steps")
    for count in options.words:
        list_words(dataset_vocabulary(_VAL).names, count)
    # By name, so that what does not learn is planned once for all seeds.
    naming: dict[str, Stage] = {}
    training: dict[str, Stage] = {}
    budget = {"panoptic": options.panoptic_iterations, "cat_seg": options.cat_seg_iterations}
    data = options.data_root / "emoji"
    masks = ["tools/classify_masks.py", "--masks", str(data / "annotations/panoptic_val.json")]
    masks += ["--maps", str(data / "panoptic_val"), "--images", str(data / "val")]
    masks += ["--vocabulary", _VAL, "--dataset", _VAL]
    for number, seed in enumerate(options.seeds):
        student = options.students[number % len(options.students)]
        for kind, tower in itertools.product((*options.poolings, *budget), TOWERS):
            inputs = (student,) if tower == "distilled" else ()
            if kind in POOLINGS:
                name = f"masks_{kind}_{tower}" + (f"_{seed}" if inputs else "")
                spec = ":".join(("ViT-Ti-8-emoji", "emoji", *map(str, inputs)))
                folder = options.output / name
                command = [*masks, "--tower", spec, "--pooling", kind, "--output", str(folder)]
                naming[name] = Stage(name, command, folder, inputs)
            elif budget[kind]:
                name = f"{kind}_{tower}_{seed}"
                folder = options.output / name
                config = f"configs/emoji/{CONFIGS[kind][tower]}.yaml"
                command = ["tools/train_net.py", "--config-file", config, "OUTPUT_DIR", str(folder)]
                command += ["SEED", str(seed), "SOLVER.MAX_ITER", str(budget[kind])]
                command += ["MODEL.CLIP.WEIGHTS", str(student)] if inputs else []
                training[name] = Stage(name, [*command, *options.overrides], folder, inputs)
    return [*naming.values(), *training.values()]


def run_segmentation(options: SegmentationOptions) -> str:
    """Run what has no results yet, then write the tables, which are returned, and the picture."""
    for stage in plan_runs(options):
        run_once(stage, options.data_root, SCORES_FILE, RESULTS_FILE)
    table = format_table(options)
    if options.words:
        run = options.output / f"cat_seg_distilled_{options.seeds[0]}"
        table += "\n\n" + measure_words(run, options.words)
    (options.output / TABLE_FILE).write_text(table + "\n", encoding="utf-8")
    draw_examples(options)
    return table


def read_scores(folder: Path) -> Mapping[str, Mapping[str, float]] | None:
    """Read the scores of a run, of a training or of ``classify_masks``; None without any."""
    for name in (SCORES_FILE, RESULTS_FILE):
        if (folder / name).is_file():
            scores = json.loads((folder / name).read_text(encoding="utf-8"))
            return scores if name == SCORES_FILE else next(iter(scores.values()))
    return None


def format_table(options: SegmentationOptions) -> str:
    """Lay out mean and spread (most - least) over the seeds in Markdown, percent.

    Runs without results are left out of the means, a kind of run without any out of the table.
    """
    lines = []
    for title, kind, rows in SECTIONS:
        found = {
            tower: [
                scores
                for folder in sorted(options.output.glob(f"{kind}_{tower}*"))
                if (scores := read_scores(folder)) is not None
            ]
            for tower in TOWERS
        }
        if not all(found.values()):
            continue
        seeds = len(found["distilled"])
        for name, section, metric in rows:
            cells = [_spread([s[section][metric] for s in found[tower]]) for tower in TOWERS]
            lines.append([f"{title}: {name}", seeds, *cells])
    return tabulate(
        lines, headers=["%", "seeds", *TOWERS], tablefmt="github", disable_numparse=True
    )


def _spread(values: Sequence[float]) -> str:
    mean = f"{sum(values) / len(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({max(values) - min(values):.1f})"


def draw_examples(options: SegmentationOptions) -> None:
    """Draw truth and predictions of the first seed side by side, a line for every model."""
    # Not of the catalogue, whose folder may be another.
    data, metadata = options.data_root / "emoji", MetadataCatalog.get(_VAL)
    number = dict(metadata.thing_dataset_id_to_contiguous_id)
    number |= metadata.stuff_dataset_id_to_contiguous_id
    content = json.loads((data / "annotations" / "panoptic_val.json").read_text(encoding="utf-8"))
    records = content["annotations"][:_NUM_PICTURES]
    trained = {
        kind: [options.output / f"{kind}_{tower}_{options.seeds[0]}" for tower in TOWERS]
        for kind in CONFIGS
    }
    kinds = [k for k, runs in trained.items() if all(read_scores(r) is not None for r in runs)]
    if not kinds:
        return
    # A line for each picture and model: the truth, then both towers.
    figure = Figure(figsize=(13, 4.4 * len(records) * len(kinds)))
    lines = iter(figure.subplots(len(records) * len(kinds), 3, squeeze=False))
    for kind in kinds:
        predictors = {
            tower: OpenVocabPredictor(run / "config.yaml", run / "model_final.pth")
            for tower, run in zip(TOWERS, trained[kind], strict=True)
        }
        for record in records:
            name = Path(record["file_name"])
            pixels = np.asarray(read_picture(data / "val" / name.with_suffix(".jpg")))
            ids = segment_ids(read_segment_colours(str(data / "panoptic_val" / name)))
            true = [
                {**row, "category_id": number[row["category_id"]]}
                for row in record["segments_info"]
            ]
            shown = {"ground truth": (ids, true)}
            for tower, predictor in predictors.items():
                predictor.set_classes(dataset_vocabulary(_VAL))
                found = segments_of(predictor.detect_all([pixels])[0])
                assert found is not None, "a segmenter gives segments"
                shown[f"{kind}, {tower}"] = found
            for axes, (title, segments) in zip(next(lines), shown.items(), strict=True):
                axes.imshow(draw_segments(pixels, *segments, predictor.names))
                axes.set_axis_off()
                axes.set_title(title)
    figure.tight_layout()
    figure.savefig(options.output / PICTURE_FILE, dpi=80)
