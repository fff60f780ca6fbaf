"""Label maps of the published benchmarks of semantic segmentation, in one layout.

Every set becomes ``<root>/semantic/<set>/<split>/{images,labels}`` and ``classes.json``; labels are
0 to K - 1, and 255 (65535 for more than 255 classes) where nothing counts. Pictures are linked,
not copied. Histograms of the labels are printed, so that a wrong mapping is seen at once.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES, COCO_CATEGORIES
from PIL import Image
from scipy.io import loadmat
from tabulate import tabulate
from tqdm import tqdm

from clipself_d2.data.datasets.semantic import (
    CLASSES_FILE,
    IGNORE_8,
    IGNORE_16,
    SEGMENT_CLASSES,
    SETS,
)
from clipself_d2.parts.label_maps import read_label_map

logger = logging.getLogger(__name__)

Decode = Callable[[Path], np.ndarray]

# Stuff of COCO-Stuff, and the classes of Pascal Context and VOC, in the order of their labels.
_CLASSES = json.loads(SEGMENT_CLASSES.read_text(encoding="utf-8"))
COCO_STUFF, CONTEXT_59, VOC_20 = (_CLASSES[n] for n in ("coco_stuff", "context_59", "voc_20"))
# Names of Pascal Context that stand for a class of VOC under another word.
_VOC_IN_CONTEXT = (*VOC_20, "table")
# First id of COCO-Stuff's own classes; pixels hold id - 1.
_FIRST_STUFF = 92


@dataclass(frozen=True)
class SourceFolders:
    """Where the files of a published set lie.

    Attributes:
        images: Folder of the pictures.
        labels: Folder of the published maps.
        names: List of classes: labels.txt of Pascal Context, or a json list for ADE20K-847; None
            where the set needs none.
        split: Stems of the pictures to take, a line each; None takes all that have a map.
    """

    images: Path
    labels: Path
    names: Path | None = None
    split: Path | None = None


def prepare_semseg(
    name: str, split: str, source: SourceFolders, root: Path, limit: int = 0
) -> Path:
    """Write one split (train or val) of one of ``SETS``, and return its folder.

    Args:
        name: The set.
        split: The split.
        source: Where the published files lie.
        root: Folder of data sets, such as DETECTRON2_DATASETS.
        limit: First pictures only; 0: all.
    """
    splits, count = SETS.get(name, ((), 0))
    if split not in splits:
        known = ", ".join(f"{each} ({' and '.join(SETS[each][0])})" for each in SETS)
        raise ValueError(f"there is no set {name!r} with a split {split!r}; there are {known}")
    for folder in (source.images, source.labels):
        if not folder.is_dir():
            raise FileNotFoundError(f"folder {folder} does not exist")
    names, decode = _plan(name, source)
    target = root / "semantic" / name / split
    for kind in ("images", "labels"):
        (target / kind).mkdir(parents=True, exist_ok=True)
    ignore = IGNORE_16 if count > IGNORE_8 else IGNORE_8
    histogram = np.zeros(count, np.int64)
    pictures = {path.stem: path for path in source.images.iterdir() if path.suffix == ".jpg"}
    written = 0
    for path in tqdm(list(_maps(source))[: limit or None], desc=f"{name} {split}", unit="map"):
        labels = decode(path)
        wrong = labels[(labels != ignore) & ((labels < 0) | (labels >= count))]
        if len(wrong):
            raise ValueError(f"{path} holds the label {int(wrong.flat[0])} of {count} classes")
        picture = pictures.get(path.stem)
        if picture is None:
            raise FileNotFoundError(f"{path} has no picture {path.stem}.jpg in {source.images}")
        histogram += np.bincount(labels[labels != ignore].ravel(), minlength=count)
        dtype = np.uint16 if ignore == IGNORE_16 else np.uint8
        suffix = ".tif" if ignore == IGNORE_16 else ".png"
        Image.fromarray(labels.astype(dtype)).save(target / "labels" / f"{path.stem}{suffix}")
        if not (link := target / "images" / picture.name).exists():
            link.symlink_to(picture.resolve())
        written += 1
    if not written:
        raise FileNotFoundError(f"there is no map in {source.labels}")
    (target.parent / CLASSES_FILE).write_text(json.dumps(names, indent=0), encoding="utf-8")
    _report(name, names[:count] if len(names) >= count else names, histogram, written)
    return target


def _plan(name: str, source: SourceFolders) -> tuple[list[str], Decode]:
    """Names of the classes, and from a published map to labels."""
    if name == "coco_stuff":
        return _coco_stuff()
    if name == "ade20k_150":
        return [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES], _from_one
    if name == "ade20k_847":
        return _ade_847(source)
    if name.startswith("context"):
        return _context(name, source)
    if name == "voc_20":
        return VOC_20, _from_one
    if name == "voc_21":
        return ["background", *VOC_20], lambda path: read_label_map(str(path))
    others = [word for word in CONTEXT_59 if word not in _VOC_IN_CONTEXT]

    def decode(path: Path) -> np.ndarray:
        # Background is everything behind the twenty.
        labels = read_label_map(str(path))
        return np.where(labels == IGNORE_8, IGNORE_8, (labels - 1) % 21)

    return [*VOC_20, *others], decode


def _coco_stuff() -> tuple[list[str], Decode]:
    things = {row["id"]: row["name"] for row in COCO_CATEGORIES if row["isthing"]}
    ids = [*sorted(things), *range(_FIRST_STUFF, _FIRST_STUFF + len(COCO_STUFF))]
    table = np.full(256, IGNORE_8)
    table[np.asarray(ids) - 1] = np.arange(len(ids))
    names = [*(things[number] for number in sorted(things)), *COCO_STUFF]
    return names, lambda path: table[read_label_map(str(path))]


def _from_one(path: Path) -> np.ndarray:
    """Read labels that begin at 1; 0 does not count."""
    labels = read_label_map(str(path))
    return np.where((labels < 1) | (labels == IGNORE_8), IGNORE_8, labels - 1)


def _ade_847(source: SourceFolders) -> tuple[list[str], Decode]:
    """The full ADE20K: class numbers in red and green, classes by a list of numbers and names."""
    rows = _read_names(source, "a json list of {id, name} with the 847 class numbers")
    content = json.loads(rows)
    if len(content) != SETS["ade20k_847"][1]:
        raise ValueError(f"{source.names} lists {len(content)} classes, not 847")
    table = np.full(65536, IGNORE_16)
    for number, row in enumerate(content):
        table[row["id"]] = number

    def decode(path: Path) -> np.ndarray:
        with Image.open(path) as picture:
            colours = np.asarray(picture.convert("RGB")).astype(np.int64)
        return table[colours[..., 0] // 10 * 256 + colours[..., 1]]

    return [row["name"] for row in content], decode


def _context(name: str, source: SourceFolders) -> tuple[list[str], Decode]:
    """Pascal Context: .mat files of 459 numbers, and the names of the 59 among them."""
    text = _read_names(source, "labels.txt of Pascal Context, with lines such as 1: accordion")
    numbered = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    words = {int(number): word.strip() for number, word in numbered.items()}
    if name == "context_459":
        chosen, ignore = [words[number] for number in sorted(words)], IGNORE_16
    else:
        chosen, ignore = CONTEXT_59, IGNORE_8
    if len(chosen) != SETS[name][1]:
        raise ValueError(f"{source.names} lists {len(chosen)} classes, not {SETS[name][1]}")
    position = {word: number for number, word in enumerate(chosen)}
    missing = sorted(set(chosen) - set(words.values()))
    if missing:
        raise ValueError(f"{source.names} has no class {missing[0]!r}")
    # As long as labels of 16 bits go, so that a number without a name does not count.
    table = np.full(65536, ignore)
    for number, word in words.items():
        table[number] = position.get(word, ignore)
    return list(chosen), lambda path: table[loadmat(str(path))["LabelMap"]]


def _read_names(source: SourceFolders, form: str) -> str:
    if source.names is None:
        raise ValueError(f"this set needs --names: {form}")
    if not source.names.is_file():
        raise FileNotFoundError(f"--names {source.names} does not exist; it is {form}")
    return source.names.read_text(encoding="utf-8")


def _maps(source: SourceFolders) -> Iterator[Path]:
    wanted: set[str] | None = None
    if source.split is not None:
        wanted = set(source.split.read_text(encoding="utf-8").split())
    for path in sorted(source.labels.iterdir()):
        is_map = path.suffix in (".png", ".mat", ".tif") and not path.name.startswith("._")
        if is_map and (wanted is None or path.stem in wanted):
            yield path


def _report(name: str, names: Sequence[str], histogram: np.ndarray, written: int) -> None:
    shares = histogram / max(int(histogram.sum()), 1)
    order = np.argsort(-shares)
    rows = [[names[n] if n < len(names) else n, 100 * shares[n]] for n in (*order[:5], *order[-5:])]
    absent = int((histogram == 0).sum())
    logger.info(
        "%s: %d maps, %d of %d classes occur; the most and the least frequent:\n%s",
        name,
        written,
        len(histogram) - absent,
        len(histogram),
        tabulate(rows, ["class", "percent of pixels"], tablefmt="pipe", floatfmt=".3f"),
    )
