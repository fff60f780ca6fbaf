"""Files of annotations: COCO's here, the others by supervision."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipself_d2.apps.predict.detection_file import DetectionFile

LABELS_FILE = "labels.json"
FORMS = ("coco", "yolo", "voc")


def write_coco(path: Path, rows: Sequence[dict[str, Any]], classes: Sequence[str]) -> None:
    """Write annotations in COCO's form; category n + 1 is class n.

    Args:
        path: json file.
        rows: ``file_name``, ``width``, ``height`` and ``annotations`` of each picture, as
            Detectron2 makes them, with the class's place as ``category_id``.
        classes: Names of the classes.
    """
    file = DetectionFile(classes)
    for row in rows:
        file.add_rows(row["file_name"], row["annotations"], (row["height"], row["width"]))
    file.save(path)


def check_form(form: str, root: Path) -> None:
    """Refuse what could not be written at the end, before anything is labelled."""
    if form == "coco":
        return
    try:
        import supervision  # noqa: F401, PLC0415
    except ImportError as error:
        raise ValueError(
            f"--format {form} is written by supervision, which is not here whole ({error}); "
            "pip install 'clipself_d2[supervision]', or take --format coco"
        ) from error
    if root == Path("/"):
        raise ValueError(f"--format {form} needs pictures in a folder; take --format coco")


def write_other(form: str, output: Path, root: Path) -> None:
    """Turn the COCO file into files of another form, yolo or voc, by supervision.

    ``<form>/labels`` is written, and for yolo ``data.yaml`` and ``images``, a link to the pictures,
    so that it can be trained on. ``root`` is the folder of the pictures.
    """
    import supervision  # noqa: PLC0415

    folder = output / form
    data = supervision.DetectionDataset.from_coco(
        images_directory_path=str(root), annotations_path=str(output / LABELS_FILE)
    )
    if form == "voc":
        data.as_pascal_voc(annotations_directory_path=str(folder / "labels"))
        return
    file = folder / "data.yaml"
    data.as_yolo(annotations_directory_path=str(folder / "labels"), data_yaml_path=str(file))
    # Trainers look for pictures beside the labels; which of them are for validation is theirs.
    with file.open("a", encoding="utf-8") as stream:
        stream.write(f"path: {json.dumps(str(folder.resolve()))}\ntrain: images\nval: images\n")
    if not (folder / "images").exists():
        (folder / "images").symlink_to(root, target_is_directory=True)
