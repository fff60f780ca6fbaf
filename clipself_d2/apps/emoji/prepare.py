"""Writing the embedded data set: pictures and annotation files of every format.

Layout below ``<root>/emoji``: ``train/`` and ``val/`` with JPEGs, ``panoptic_val/`` with PNGs of
segment ids, ``annotations/`` with json files, and ``manifest.json``.
"""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from iopath.common.file_io import file_lock
from PIL import Image
from tqdm import tqdm

from clipself_d2.apps.emoji import annotations as rows
from clipself_d2.apps.emoji.captions import scene_captions
from clipself_d2.apps.emoji.manifest import MANIFEST, find_problem, fingerprint, write_manifest
from clipself_d2.apps.emoji.referring import choose_sentences, ref_rows
from clipself_d2.apps.emoji.scenes import Scene, SceneRenderer
from clipself_d2.data.datasets import emoji_world
from clipself_d2.data.datasets.emoji_world import (
    CATEGORIES_FILE,
    SPRITE_DIR,
    TRAIN_FAMILIES,
    World,
    load_atlas,
    load_world,
    sheet_path,
)

logger = logging.getLogger(__name__)

JPEG_QUALITY = 92
# Number of each split in the seeds of its images.
SPLITS = ("train", "val")
# Image and annotation ids of split s start at s x this + 1, so that no two splits share one.
SPLIT_ID_STRIDE = 1_000_000
PARTIAL = ".partial"
# A data set made by other versions of these is made again.
RENDERER_MODULES = (
    "textures",
    "scenes",
    "polygons",
    "annotations",
    "captioned",
    "captions",
    "referring",
    "prepare",
)


@dataclass(frozen=True)
class EmojiOptions:
    """What a data set is made with.

    Attributes:
        train: Number of training images.
        val: Number of validation images.
        seed: Seed of all images, >= 0; image k of split s depends on (seed, s, k) alone.
        panoptic_train: Whether the training split gets panoptic files too.
    """

    train: int = 2000
    val: int = 300
    seed: int = 0
    panoptic_train: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        most = SPLIT_ID_STRIDE // 10
        if not (0 < self.train < most and 0 < self.val < most and self.seed >= 0):
            raise ValueError(f"--train and --val are 1 to {most - 1} images, --seed is 0 or more")


@dataclass
class SplitRows:
    """Rows of all formats for one split, in the order of the images."""

    images: list[rows.Row] = field(default_factory=list)
    instances: list[rows.Row] = field(default_factory=list)
    segments: list[rows.Row] = field(default_factory=list)
    refs: list[rows.Row] = field(default_factory=list)
    captions: list[rows.Row] = field(default_factory=list)


def prepare_emoji(root: Path, options: EmojiOptions, *, sprite_dir: Path | None = None) -> bool:
    """Write the embedded data set, unless it is there, complete and undamaged.

    Everything is made in a folder of its own and moved into place when complete; the manifest
    follows last. Other files in ``<root>/emoji`` are left alone. Sprite sheets are those of the
    repository where ``sprite_dir`` is None. Returns whether anything was written.
    """
    folder = root / "emoji"
    folder.mkdir(parents=True, exist_ok=True)
    sprite_dir = SPRITE_DIR if sprite_dir is None else sprite_dir
    atlas = load_atlas(sprite_dir=sprite_dir)
    wanted = {**asdict(options), "renderer": _renderer_fingerprint(sprite_dir)}
    with file_lock(str(folder / MANIFEST)):
        problem = find_problem(folder, wanted)
        if problem is None:
            logger.info("%s is complete; nothing to do", folder)
            return False
        if (folder / "annotations").exists():
            logger.warning("%s is made again: %s", folder, problem)
        partial = folder / PARTIAL
        shutil.rmtree(partial, ignore_errors=True)
        try:
            _write_everything(partial, options, SceneRenderer(atlas=atlas))
            _move_into_place(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        parts = [folder / name for name in _part_names(options)]
        files = [path for part in parts for path in part.rglob("*") if path.is_file()]
        write_manifest(folder, wanted, files)
    logger.info("%s holds %d training and %d test images", folder, options.train, options.val)
    return True


def _renderer_fingerprint(sprite_dir: Path) -> str:
    sources = [Path(emoji_world.__file__)]
    sources += [Path(__file__).parent / f"{module}.py" for module in RENDERER_MODULES]
    sheets = [sheet_path(family, sprite_dir) for family in TRAIN_FAMILIES]
    return fingerprint([*sources, CATEGORIES_FILE, sprite_dir / "index.json", *sheets])


def _part_names(options: EmojiOptions) -> list[str]:
    panoptic = [f"panoptic_{split}" for split in SPLITS if _has_panoptic(split, options)]
    return [*SPLITS, *panoptic, "annotations"]


def _has_panoptic(split: str, options: EmojiOptions) -> bool:
    return split == "val" or options.panoptic_train


def _move_into_place(partial: Path, folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    for part in sorted(partial.iterdir()):
        shutil.rmtree(folder / part.name, ignore_errors=True)
        os.replace(part, folder / part.name)


def _write_everything(folder: Path, options: EmojiOptions, renderer: SceneRenderer) -> None:
    (folder / "annotations").mkdir(parents=True)
    made = {split: _write_split(folder, split, options, renderer) for split in SPLITS}
    for split, split_rows in made.items():
        _write_common(folder / "annotations", split, split_rows)
        if _has_panoptic(split, options):
            _dump(
                folder / "annotations" / f"panoptic_{split}.json",
                {
                    **rows.file_header(),
                    "images": split_rows.images,
                    "annotations": split_rows.segments,
                    "categories": rows.panoptic_categories(renderer.world),
                },
            )
    _write_instances(folder / "annotations", made["train"], made["val"], renderer.world)


def _write_split(
    folder: Path, split: str, options: EmojiOptions, renderer: SceneRenderer
) -> SplitRows:
    """Render a split.

    Classes of the training split follow the world's long tail. Those of the validation split are
    uniform: with the tail's frequencies a rare class would have so few test objects that its
    average precision would be mostly noise.
    """
    train = split == "train"
    probability = renderer.world.training_frequency() if train else None
    (folder / split).mkdir()
    has_panoptic = _has_panoptic(split, options)
    if has_panoptic:
        (folder / f"panoptic_{split}").mkdir()
    made = SplitRows()
    count, number = (options.train, 0) if train else (options.val, 1)
    for position in tqdm(range(count), desc=f"emoji {split}", unit="image", mininterval=0.5):
        rng = np.random.default_rng([options.seed, number, position])
        scene = renderer.render(rng, class_probability=probability)
        image = rows.image_row(scene, number * SPLIT_ID_STRIDE + position + 1)
        Image.fromarray(scene.image).save(folder / split / image["file_name"], quality=JPEG_QUALITY)
        if has_panoptic:
            row, colors = rows.panoptic_row(scene, image["id"], renderer.world)
            Image.fromarray(colors).save(folder / f"panoptic_{split}" / row["file_name"])
            made.segments.append(row)
        _append_rows(made, rng, scene, image, split, number * SPLIT_ID_STRIDE + 1)
    return made


def _append_rows(
    made: SplitRows,
    rng: np.random.Generator,
    scene: Scene,
    image: rows.Row,
    split: str,
    first_id: int,
) -> None:
    world = load_world()
    instances = rows.instance_rows(scene, image["id"], first_id + len(made.instances), world)
    made.images.append(image)
    made.instances += instances
    made.refs += ref_rows(
        choose_sentences(rng, scene, world),
        instances,
        image,
        split=split,
        first_ref_id=first_id + len(made.refs),
        first_sentence_id=made.refs[-1]["sent_ids"][-1] + 1 if made.refs else first_id,
    )
    for caption in scene_captions(rng, scene, world):
        number = first_id + len(made.captions)
        made.captions.append({"id": number, "image_id": image["id"], "caption": caption})


def _write_common(folder: Path, split: str, made: SplitRows) -> None:
    header = {**rows.file_header(), "images": made.images}
    _dump(folder / f"images_{split}.json", header)
    _dump(folder / f"captions_{split}.json", {**header, "annotations": made.captions})
    _dump(folder / f"refs_{split}.json", made.refs)


def _write_instances(folder: Path, train: SplitRows, val: SplitRows, world: World) -> None:
    categories = rows.thing_categories(world)
    every, test = (
        {
            **rows.file_header(),
            "images": made.images,
            "annotations": made.instances,
            "categories": categories,
        }
        for made in (train, val)
    )
    base, counted = rows.base_only(every, world), train.instances
    _dump(folder / "instances_train_all.json", every)
    _dump(folder / "instances_train_base.json", base)
    _dump(folder / "instances_val.json", test)
    lvis = rows.to_lvis(base, world, counted=counted, split="train", annotated=("f", "c"))
    _dump(folder / "lvis_train_base.json", lvis)
    lvis = rows.to_lvis(test, world, counted=counted, split="val")
    _dump(folder / "lvis_val.json", lvis)


def _dump(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
