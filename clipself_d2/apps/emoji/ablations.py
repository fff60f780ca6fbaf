"""RegionCLIP's ablations in small, on emoji scenes, and the page with their figures."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipself_d2.apps.emoji.quickstart import Stage, read_results, run_once
from clipself_d2.apps.files.concept_pool import build_concept_pool
from clipself_d2.engine.evaluate import RESULTS_FILE
from clipself_d2.parts.json_file import write_json
from clipself_d2.vocabulary.concepts import ConceptPool

logger = logging.getLogger(__name__)

MIN_COUNT = 20
# Column, section of the results, metric.
REGION_COLUMNS = (
    ("things", "region", "roi.thing.macc1"),
    ("base", "region", "roi.thing.base.macc1"),
    ("novel", "region", "roi.thing.novel.macc1"),
    ("stuff", "region", "roi.stuff.macc1"),
)
DETECTOR_COLUMNS = (
    ("novel", "bbox", "AP50-novel"),
    ("base", "bbox", "AP50-base"),
    ("all", "bbox", "AP50-all"),
)
_KEYS = "MODEL.REGIONCLIP."


@dataclass(frozen=True)
class AblationRow:
    """A line of a table.

    Attributes:
        table: Title of the table.
        label: What the line shows.
        name: Folder of its run; lines of several tables may show one run.
        pairs: KEY VALUE pairs over the recipe; ``{out}`` and ``{data}`` are folders, ``{rpn}`` the
            weights of the proposal network.
        config: Recipe of ``configs/emoji``.
        train: Whether it is trained, instead of scored as it is.
        student: Name of the run whose tower a detector is built on; "" for pre-training.
    """

    table: str
    label: str
    name: str
    pairs: tuple[str, ...] = ()
    config: str = "regionclip"
    train: bool = True
    student: str = ""

    @property
    def is_detector(self) -> bool:
        """Whether the run is a detector's."""
        return self.config.startswith(("fvit", "regionclip_zeroshot"))


def _weights(distill: float, contrastive: float, image_text: float) -> tuple[str, ...]:
    return _KEYS + "LOSS_WEIGHTS", str([distill, contrastive, image_text])


_CONCEPTS = _KEYS + "CONCEPTS"
_HALF_DATA = ("DATASETS.TRAIN", "('captions:{out}/half.json:{data}/emoji/train',)")
_PLAIN, _FOCAL = (("MODEL.OPEN_VOCAB.FOCAL_GAMMA", gamma) for gamma in ("0.0", "0.5"))
METHODS = "Initialisation"
SUPERVISION, REGIONS, POOL = "Supervision", "Kind of regions", "Data set and concept pool"
LOSSES, TEACHER, FOCAL = "Losses", "Teacher", "Focal scaling, in transfer"
TRANSFER = "Initialisation, in transfer"
ZERO_GT, ZERO_RPN = "Initialisation, zero-shot on true boxes", "Initialisation, zero-shot on an RPN"
_RPN = ("MODEL.FROZEN_RPN.WEIGHTS", "{rpn}")

ROWS: tuple[AblationRow, ...] = (
    AblationRow(METHODS, "CLIP", "untouched", train=False),
    AblationRow(METHODS, "RegionCLIP", "full"),
    AblationRow(
        METHODS, "CLIPSelf, same proposals and budget", "clipself", (), "clipself_proposals"
    ),
    AblationRow(SUPERVISION, "pictures and captions", "image_text", _weights(0.0, 0.0, 1.0)),
    AblationRow(SUPERVISION, "regions and concepts", "region_text", _weights(1.0, 1.0, 0.0)),
    AblationRow(SUPERVISION, "both", "full"),
    AblationRow(REGIONS, "random boxes", "random", ("INPUT.REGIONS.SOURCE", "random")),
    AblationRow(REGIONS, "proposals of an RPN of base boxes", "full"),
    AblationRow(
        POOL,
        "half of the pictures, their nouns",
        "half",
        (*_HALF_DATA, _CONCEPTS, "{out}/half.txt"),
    ),
    AblationRow(POOL, "half of the pictures, nouns of all", "half_data", (*_HALF_DATA,)),
    AblationRow(
        POOL,
        "all, the more frequent half of the nouns",
        "half_pool",
        (_CONCEPTS, "{out}/frequent.txt"),
    ),
    AblationRow(POOL, "all, all nouns", "full"),
    AblationRow(LOSSES, "contrast with concepts", "contrast", _weights(0.0, 1.0, 0.1)),
    AblationRow(LOSSES, "distillation", "distill", _weights(1.0, 0.0, 0.1)),
    AblationRow(LOSSES, "both", "full"),
    AblationRow(TEACHER, "CLIP on pooled regions", "roi", (_KEYS + "TEACHER_REGIONS", "roi")),
    AblationRow(TEACHER, "CLIP on crops", "full"),
    AblationRow(FOCAL, "gamma 0", "fvit_full", _PLAIN, "fvit_untouched", student="full"),
    AblationRow(FOCAL, "gamma 0.5", "fvit_focal", _FOCAL, "fvit_untouched", student="full"),
    AblationRow(TRANSFER, "CLIP", "fvit_clip", _PLAIN, "fvit_untouched"),
    AblationRow(TRANSFER, "RegionCLIP", "fvit_full", _PLAIN, "fvit_untouched", student="full"),
    AblationRow(
        TRANSFER, "CLIPSelf", "fvit_clipself", _PLAIN, "fvit_untouched", student="clipself"
    ),
    *(
        AblationRow(
            table, label, f"{boxes}_{run}", pairs, f"regionclip_zeroshot_{boxes}", False, of
        )
        for table, boxes, pairs in ((ZERO_GT, "gt", ()), (ZERO_RPN, "rpn", _RPN))
        for label, run, of in (
            ("CLIP", "clip", ""),
            ("RegionCLIP", "full", "full"),
            ("CLIPSelf", "clipself", "clipself"),
        )
    ),
)


@dataclass(frozen=True)
class AblationOptions:
    """Budget and places.

    Attributes:
        output: Folder of the runs.
        page: Markdown file with the figures.
        data_root: Folder that holds the data set ``emoji``.
        proposals: Proposals of the training scenes.
        rpn: Weights of the network that made them; None leaves its table out.
        iterations: Steps of each pre-training.
        detector_iterations: Steps of each detector.
        tables: Words of which a table's title must hold one; () takes all tables.
        seed: Seed of every run.
        overrides: Further KEY VALUE pairs for every run.
    """

    output: Path
    page: Path
    data_root: Path
    proposals: Path
    iterations: int = 300
    detector_iterations: int = 300
    tables: tuple[str, ...] = ()
    seed: int = 0
    overrides: tuple[str, ...] = ()
    rpn: Path | None = None


def choose_rows(options: AblationOptions) -> list[AblationRow]:
    """List the lines of the tables that are asked for, in order."""
    words = [word.lower() for word in options.tables]
    titles = dict.fromkeys(row.table for row in ROWS)
    for word in words:
        if not any(word in title.lower() for title in titles):
            raise ValueError(f"--tables {word!r} is in none of the titles {', '.join(titles)}")
    rows = [row for row in ROWS if options.rpn or row.table != ZERO_RPN]
    return [row for row in rows if not words or any(w in row.table.lower() for w in words)]


def plan_runs(options: AblationOptions, rows: Sequence[AblationRow]) -> list[Stage]:
    """List the commands of some lines, each run once, towers before the detectors on them."""
    by_name = {row.name: row for row in ROWS}
    wanted = {row.name: row for row in rows}
    for row in rows:
        if row.student:
            wanted.setdefault(row.student, by_name[row.student])
    ordered = sorted(wanted.values(), key=lambda row: row.is_detector)
    return [_stage(options, row) for row in ordered]


def _stage(options: AblationOptions, row: AblationRow) -> Stage:
    out = options.output
    tool = "train_net" if row.is_detector else "distill_train_net"
    steps = options.detector_iterations if row.is_detector else options.iterations
    command = [f"tools/{tool}.py", "--config-file", f"configs/emoji/{row.config}.yaml"]
    command += [] if row.train else ["--eval-only"]
    command += ["OUTPUT_DIR", str(out / row.name), "SOLVER.MAX_ITER", str(steps)]
    command += ["SEED", str(options.seed)]
    inputs: tuple[Path, ...] = ()
    if row.is_detector and row.student:
        inputs = (out / row.student / "model_final.pth",)
        command += ["MODEL.CLIP.WEIGHTS", str(inputs[0])]
    if not row.is_detector:
        command += ["INPUT.REGIONS.PROPOSAL_FILE", str(options.proposals)]
        command += [_CONCEPTS, str(out / "concepts.txt")]
    places = {"out": str(out), "data": str(options.data_root), "rpn": str(options.rpn)}
    command += [text.format(**places) for text in row.pairs]
    return Stage(row.name, [*command, *options.overrides], out / row.name, inputs)


def prepare_files(options: AblationOptions) -> None:
    """Write the concept pools and the halved data set."""
    for flag, file in (("--proposals", options.proposals), ("--rpn", options.rpn)):
        if file and not file.is_file():
            raise FileNotFoundError(f"{flag} {file} does not exist; tools/quickstart.py writes it")
    out = options.output
    out.mkdir(parents=True, exist_ok=True)
    captions = options.data_root / "emoji" / "annotations" / "captions_train.json"
    pool = build_concept_pool(str(captions), out / "concepts.txt", min_count=MIN_COUNT)
    half = (len(pool.names) + 1) // 2
    ConceptPool(pool.names[:half], pool.counts[:half]).save(out / "frequent.txt")
    content = json.loads(captions.read_text(encoding="utf-8"))
    content["images"] = content["images"][::2]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in kept]
    write_json(out / "half.json", content)
    build_concept_pool(str(out / "half.json"), out / "half.txt", min_count=MIN_COUNT)


def run_ablations(options: AblationOptions, command: str) -> None:
    """Run what has no results yet, then write the page, which quotes the command."""
    rows = choose_rows(options)
    prepare_files(options)
    for stage in plan_runs(options, rows):
        run_once(stage, options.data_root, RESULTS_FILE)
    results = {
        row.name: next(iter(read_results(options.output / row.name).values())) for row in rows
    }
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(format_page(options, rows, results, command), encoding="utf-8")
    logger.info("tables in %s", options.page)


def format_page(
    options: AblationOptions,
    rows: Sequence[AblationRow],
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    command: str,
) -> str:
    """Write the tables of the results (by run, section and metric, percent) as Markdown."""
    parts = [
        "# RegionCLIP's ablations on emoji scenes",
        "Made by `tools/run_ablations.py`; do not edit. The ablations of RegionCLIP "
        "(arXiv 2112.09106, section 4) in small: the embedded CLIP (ViT-Ti/8), "
        f"{options.iterations} iterations of pre-training and {options.detector_iterations} of a "
        f"detector, seed {options.seed}, one run each, so that small differences mean little. "
        "Recipes at full size are in `configs/regionclip/ablations`. Figures of pre-training are "
        "the mean accuracy of region classification (roi, percent), those in transfer AP50 of the "
        "open-vocabulary detector, those of zero-shot inference AP50 of the tower alone on true "
        "boxes and on boxes of a proposal network that saw base classes. Teachers differ in what "
        "they see, since there is one embedded CLIP; a larger teacher is a recipe at full size.",
        f"```\n{command}\n```",
    ]
    for title in dict.fromkeys(row.table for row in rows):
        lines = [row for row in rows if row.table == title]
        columns = DETECTOR_COLUMNS if lines[0].is_detector else REGION_COLUMNS
        table = [["", *(name for name, _, _ in columns)], ["---"] * (1 + len(columns))]
        for row in lines:
            scores = results[row.name]
            table.append([row.label, *(f"{scores[part][key]:.1f}" for _, part, key in columns)])
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in table)
        parts.append(f"## {title}\n\n{body}")
    return "\n\n".join(parts) + "\n"
