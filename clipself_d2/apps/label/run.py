"""Labelling a folder or tar shards: shared among processes, gone on with after a kill, merged."""

import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from PIL import Image
from pycocotools import mask as mask_coder

from clipself_d2.apps.label.formats import LABELS_FILE, check_form, write_coco, write_other
from clipself_d2.apps.label.ontology import LabelClass
from clipself_d2.apps.predict.demo import draw
from clipself_d2.apps.predict.media import batches, find_inputs, is_video
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.data.pictures import read_picture
from clipself_d2.data.tar_shards import expand_shards, index_shard, is_member, member_address
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

SHEET_FILE, SETTINGS_FILE, PARTS = "contact_sheet.png", "settings.json", "parts"
_SHEET_COLUMNS, _SHEET_ROWS, _TILE = 4, 5, 320
_LOG_EVERY = 500


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, and how.

    Attributes:
        source: Folder of pictures, or tar shards such as ``cc3m-{000..331}.tar``.
        output: Folder of the results.
        classes: The classes.
        form: coco, yolo or voc.
        batch_size: Most pictures of one size at once.
        settings: What labels depend on beside the classes; a run goes on with the same alone.
    """

    source: str
    output: Path
    classes: tuple[LabelClass, ...]
    form: str = "coco"
    batch_size: int = 8
    settings: str = ""


def find_pictures(source: str) -> tuple[list[str], Path]:
    """List what ``LabelOptions.source`` names.

    Returns:
        Files relative to their folder, or addresses of members of shards; and that folder.
    """
    if source.endswith(".tar"):
        shards = [shard.resolve() for shard in expand_shards(source)]
        return [member_address(s, member) for s in shards for member in index_shard(s)], Path("/")
    files = [path for path in find_inputs([source]) if not is_video(path)]
    folder = Path(source).expanduser()
    folder = folder if folder.is_dir() else Path.cwd()
    if not files:
        raise FileNotFoundError(f"--input {source} holds no picture")
    names = [file.resolve() for file in files]
    inside = all(name.is_relative_to(folder.resolve()) for name in names)
    root = folder.resolve() if inside else Path("/")
    return [str(name.relative_to(root)) for name in names], root


def label(predictor: OpenVocabPredictor, options: LabelOptions) -> Path:
    """Label this process's share of the pictures; the main process merges them at the end.

    Every picture is written down when it is done, so that a run that was killed goes on where it
    stopped, also with another number of processes. Returns the file or folder of annotations.
    """
    names, root = find_pictures(options.source)
    check_form(options.form, root)
    _claim(options)
    comm.synchronize()
    done = {row["file_name"] for row in read_rows(options.output)}
    # A share depends on nothing that another process does meanwhile.
    share = names[comm.get_rank() :: comm.get_world_size()]
    todo = [name for name in share if name not in done]
    logger.info("%d of %d pictures to label, %d done before", len(todo), len(share), len(done))
    predictor.set_classes([";".join(entry.prompts) for entry in options.classes])
    if todo:
        path = options.output / PARTS / f"{uuid.uuid4().hex}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for number, row in enumerate(_label_all(predictor, options, todo, root), 1):
                file.write(json.dumps(row) + "\n")
                file.flush()
                if number % _LOG_EVERY == 0:
                    logger.info("%d of %d pictures", number, len(todo))
    comm.synchronize()
    if comm.is_main_process():
        _merge(options, names, root)
    comm.synchronize()
    return options.output / (LABELS_FILE if options.form == "coco" else options.form)


def read_rows(output: Path) -> Iterator[dict[str, Any]]:
    """Read what is labelled so far, picture by picture.

    A line that a kill has cut is left out, so that its picture is labelled again.
    """
    for path in sorted((output / PARTS).glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def _claim(options: LabelOptions) -> None:
    """Write down what the labels depend on, or hold it against what they were begun with."""
    if not comm.is_main_process():
        return
    classes = [[entry.name, list(entry.prompts), entry.threshold] for entry in options.classes]
    mine = {"input": options.source, "classes": classes, "settings": options.settings}
    path = options.output / SETTINGS_FILE
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != mine:
        raise ValueError(
            f"{options.output} holds labels of another input, ontology, config or checkpoint; "
            "give another --output, or remove the folder"
        )
    (options.output / PARTS).mkdir(parents=True, exist_ok=True)
    write_json(path, mine, indent=1)


def _label_all(
    predictor: OpenVocabPredictor, options: LabelOptions, names: Sequence[str], root: Path
) -> Iterator[dict[str, Any]]:
    least = np.array([entry.threshold for entry in options.classes])
    for batch in batches(names, options.batch_size):
        paths = [name if is_member(name) else str(root / name) for name in batch]
        outputs = predictor.detect_all(paths)  # type: ignore[arg-type]
        for name, output in zip(batch, outputs, strict=True):
            if "instances" not in output:
                raise ValueError(
                    f"{type(predictor.model).__name__} gives {', '.join(output)} and no "
                    "instances; labels need a detector"
                )
            found = output["instances"].to("cpu")
            found = found[found.scores >= torch.from_numpy(least)[found.pred_classes]]
            yield _row(name, found)


def _row(name: str, found: Instances) -> dict[str, Any]:
    annotations = instances_to_coco_json(found, 0)
    for row in annotations:
        del row["image_id"]
        row |= {"bbox": [round(side, 2) for side in row["bbox"]], "score": round(row["score"], 5)}
    height, width = found.image_size
    return {"file_name": name, "width": width, "height": height, "annotations": annotations}


def _merge(options: LabelOptions, names: Sequence[str], root: Path) -> None:
    rows = {row["file_name"]: row for row in read_rows(options.output)}
    ordered = [rows[name] for name in names if name in rows]
    classes = [entry.name for entry in options.classes]
    write_coco(options.output / LABELS_FILE, ordered, classes)
    if options.form != "coco":
        write_other(options.form, options.output, root)
    _write_sheet(options.output / SHEET_FILE, ordered, root, classes)
    boxes = sum(len(row["annotations"]) for row in ordered)
    logger.info(
        "%s: %d boxes on %d pictures; look at %s",
        options.output / LABELS_FILE,
        boxes,
        len(ordered),
        options.output / SHEET_FILE,
    )
    if options.form == "coco":
        logger.info(
            "train on them with DATASETS.TRAIN \"('coco_json:%s:%s',)\"",
            options.output / LABELS_FILE,
            root,
        )


def _write_sheet(path: Path, rows: Sequence[dict], root: Path, classes: Sequence[str]) -> None:
    """Pictures from all over the data set, with their labels."""
    count = min(len(rows), _SHEET_COLUMNS * _SHEET_ROWS)
    # Evenly spread, not the first: a folder is often sorted by what it shows.
    chosen = [rows[number * len(rows) // count] for number in range(count)]
    columns = min(count, _SHEET_COLUMNS)
    sheet = Image.new("RGB", (columns * _TILE, -(-count // columns) * _TILE), "white")
    for number, row in enumerate(chosen):
        name = row["file_name"]
        image = np.asarray(read_picture(name if is_member(name) else root / name))
        tile = Image.fromarray(draw(image, _instances(row), classes))
        tile.thumbnail((_TILE, _TILE))
        sheet.paste(tile, (number % columns * _TILE, number // columns * _TILE))
    sheet.save(path)


def _instances(row: dict[str, Any]) -> Instances:
    found, labels = Instances((row["height"], row["width"])), row["annotations"]
    boxes = torch.tensor([label["bbox"] for label in labels]).reshape(-1, 4)
    found.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
    found.scores = torch.tensor([label["score"] for label in labels])
    found.pred_classes = torch.tensor([label["category_id"] for label in labels]).long()
    if labels and "segmentation" in labels[0]:
        masks = [mask_coder.decode(label["segmentation"]) for label in labels]
        found.pred_masks = torch.from_numpy(np.stack(masks)).bool()
    return found
