"""Attacks by files: each would make a folder if code in the file ran, and none may.

``python -m clipself_d2.apps.reliability.attacks`` prints a verdict for each and how many ran code.
"""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detectron2.config import get_cfg
from torch import nn

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.reliability import planted_files as files
from clipself_d2.apps.reliability.processes import REPOSITORY, end_tool, start_tool
from clipself_d2.clip import load_clip
from clipself_d2.clip.weights.convert import convert_checkpoint
from clipself_d2.clip.weights.loading import read_checkpoint
from clipself_d2.command_line.errors import USER_ERRORS
from clipself_d2.data.datasets.captions import shard_caption_records
from clipself_d2.data.datasets.refer_files import read_refs
from clipself_d2.data.proposal_files import check_proposal_files
from clipself_d2.data.tar_shards import read_member
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.lazy import load_lazy_config
from clipself_d2.parts.annotation_files import read_annotation_file
from clipself_d2.parts.frozen_proposals import build_frozen_proposals
from clipself_d2.runs.checkpointer import StrictCheckpointer
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.concepts import ConceptPool
from clipself_d2.vocabulary.published_tables import read_published_embeddings

REFUSED, TRACEBACK, RAN = "refused with one sentence", "refused with traceback", "ran code"
DATA = "read as data, no code ran"

_RECIPES = REPOSITORY / "configs" / "emoji"
_CLIP = "ViT-Ti-8-emoji"
_TIMEOUT = 300
Reader = Callable[[Path], object]


class Attack(NamedTuple):
    """An attack that runs in this process.

    Attributes:
        name: What is attacked, and how.
        file_name: File that is planted, in a folder of its own.
        write: Writes it.
        read: Reads it as the product does.
    """

    name: str
    file_name: str
    write: files.Writer
    read: Reader


def run_attacks(work_dir: str | Path, *, commands: bool = True) -> list[tuple[str, str]]:
    """Run all attacks, those on command lines, which take minutes, if ``commands``.

    Returns:
        Name and verdict of each: one of ``REFUSED``, ``TRACEBACK``, ``RAN`` and ``DATA``.
    """
    found = []
    for number, attack in enumerate(library_attacks()):
        folder = Path(work_dir) / str(number)
        folder.mkdir(parents=True)
        file, marker = folder / attack.file_name, folder / "ran"
        attack.write(file, marker)
        found.append((attack.name, _verdict(partial(attack.read, file), marker)))
    if commands:
        found += _attack_commands(Path(work_dir) / "commands")
    return found


def _verdict(action: Callable[[], object], marker: Path) -> str:
    try:
        action()
        verdict = DATA
    except USER_ERRORS as error:
        # Advice to read the file with its code would undo the refusal.
        verdict = TRACEBACK if "weights_only" in str(error) else REFUSED
    except Exception:
        verdict = TRACEBACK
    return RAN if marker.exists() else verdict


def library_attacks() -> Iterator[Attack]:
    """List the attacks on what the product reads."""
    for kind, write in files.WEIGHTS.items():
        name = kind.replace(" ", "_")
        yield Attack(f"MODEL.CLIP.WEIGHTS: {kind}", name, write, read_checkpoint)
        yield Attack(f"MODEL.WEIGHTS: {kind}", name, write, _load_detector)
    rpn = _RECIPES / "rpn.yaml"
    readers: dict[str, Reader] = {
        "MODEL.CLIP.PRETRAINED": lambda path: load_clip(_CLIP, str(path)),
        "MODEL.FROZEN_RPN.WEIGHTS": lambda path: _frozen_proposals(rpn, str(path)),
        "last_checkpoint": _resume,
        "last_checkpoint outside": lambda path: _resume(path, "run"),
        "convert_checkpoint": lambda path: convert_checkpoint(
            path, path.parent / "out.pt", to="open_clip"
        ),
    }
    for kind in ("protocol 2.pkl", "weights.pth", "script archive.pt", "long header.safetensors"):
        for name, read in readers.items():
            yield Attack(f"{name}: {kind}", kind.replace(" ", "_"), files.WEIGHTS[kind], read)
    yield from _config_attacks(rpn)
    yield from _data_attacks()


def _config_attacks(rpn: Path) -> Iterator[Attack]:
    def read_config(path: Path) -> object:
        return load_config(str(path), [])

    for kind, value in files.YAML_VALUES.items():
        write = files.planted_yaml(value)
        yield Attack(f"--config-file: {kind}", "a.yaml", write, read_config)
    readers: dict[str, Reader] = {
        "_BASE_": partial(_read_below, base="{}"),
        "_BASE_ in a list": partial(_read_below, base=f"[{rpn}, {{}}]"),
        "MODEL.FROZEN_RPN.CONFIG": _frozen_proposals,
        "predictor's config": lambda path: OpenVocabPredictor(path, None),
        "LazyConfig given yaml": lambda path: load_lazy_config(str(path), []),
    }
    for kind in ("a call", "eval of an import"):
        for name, read in readers.items():
            write = files.planted_yaml(files.YAML_VALUES[kind])
            yield Attack(f"{name}: {kind}", "a.yaml", write, read)
    declared = '%TAG ! tag:yaml.org,2002:python/\n---\nA: !object/apply:os.mkdir ["%m"]\n'
    key = '? !!python/object/apply:os.mkdir ["%m"]\n: 1\n'
    merged = '<<: !!python/object/apply:os.mkdir ["%m"]\n'
    for kind, text in (("a declared tag", declared), ("a key", key), ("a merge", merged)):
        yield Attack(f"--config-file: {kind}", "a.yaml", files.planted_text(text), read_config)
    yield Attack(
        "KEY VALUE: code",
        "a.txt",
        files.planted_text("%c"),
        lambda path: load_config("", ["MODEL.WEIGHTS", path.read_text()]),
    )


def _data_attacks() -> Iterator[Attack]:
    for split in ("TRAIN", "TEST"):
        proposals = partial(_read_proposals, split)
        yield Attack(f"DATASETS.PROPOSAL_FILES_{split}", "a.pkl", files.proposal_file, proposals)
    yield Attack("references of REFER", "refs(unc).p", files.reference_file, read_refs)
    dog = Vocabulary.from_names(["dog"])
    published = partial(read_published_embeddings, vocabulary=dog, clip=_CLIP)
    for name in ("a.npy", "a.npz", "a.pth"):
        array = files.embedding_file if name.endswith("pth") else files.object_array_file
        yield Attack(f"--from {name}", name, array, published)
    yield Attack("MODEL.VOCABULARY.EMBEDDINGS", "a.pt", files.embedding_file, TextEmbeddings.load)
    yield Attack("cache of text embeddings", "a.pt", files.embedding_file, _read_cache)
    yield Attack("members outside of a shard", "a.tar", files.shard, _read_shard)
    rows = partial(read_annotation_file, sections=("images", "annotations"))
    for kind, write in (("code", files.planted_text("%c")), ("a pickle", files.reference_file)):
        for name in ("a.json", "a.txt"):
            yield Attack(f"vocabulary {name}: {kind}", name, write, Vocabulary.from_file)
        yield Attack(f"concept pool: {kind}", "a.txt", write, ConceptPool.load)
        yield Attack(f"annotations: {kind}", "a.json", write, rows)


def _load_detector(path: Path) -> object:
    return StrictCheckpointer(nn.Linear(4, 2)).load(str(path))


def _frozen_proposals(config: Path, weights: str = "") -> object:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.FROZEN_RPN.CONFIG, cfg.MODEL.FROZEN_RPN.WEIGHTS = str(config), weights
    return build_frozen_proposals(cfg)


def _resume(path: Path, run: str = ".") -> object:
    folder = path.parent / run
    folder.mkdir(exist_ok=True)
    (folder / "last_checkpoint").write_text(os.path.relpath(path, folder))
    return StrictCheckpointer(nn.Linear(4, 2), str(folder)).resume_or_load("", resume=True)


def _read_below(path: Path, base: str) -> object:
    """Read a config whose base is the file, or holds it in a list."""
    above = path.with_name("above.yaml")
    above.write_text(f"_BASE_: {base.format(path)}\n")
    return load_config(str(above), [])


def _read_proposals(split: str, path: Path) -> None:
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = (str(path),)
    check_proposal_files(cfg, split)


def _read_cache(path: Path) -> object:
    """Keep embeddings, put the planted file in their place, and ask for them again."""
    build = partial(
        TextEmbeddings.load_or_build,
        Vocabulary.from_names(["dog"]),
        clip=_CLIP,
        weights="emoji",
        templates="emoji",
        cache_dir=path.parent / "cache",
    )
    build()
    (kept,) = (path.parent / "cache").iterdir()
    shutil.copyfile(path, kept)
    return build()


def _read_shard(path: Path) -> list[bytes]:
    return [read_member(str(record["file_name"])) for record in shard_caption_records(str(path))]


def _attack_commands(folder: Path) -> list[tuple[str, str]]:
    """Attack command lines; a file of weights, of yaml and of vectors for each."""
    folder.mkdir(parents=True)
    marker = folder / "ran"
    weights, config, vectors = (folder / name for name in ("a.pkl", "a.yaml", "a.npy"))
    files.WEIGHTS["protocol 2.pkl"](weights, marker)
    files.planted_yaml(files.YAML_VALUES["a call"])(config, marker)
    files.object_array_file(vectors, marker)
    detector, recipe = _RECIPES / "fvit_untouched.yaml", _RECIPES / "clipself_patches.yaml"
    out = ["OUTPUT_DIR", folder / "out"]
    lazy = REPOSITORY / "configs" / "plug_in" / "fcos_words.py"
    lines: dict[str, list[object]] = {
        "train_net MODEL.WEIGHTS": ["train_net", "--eval-only", "--config-file", detector]
        + ["MODEL.WEIGHTS", weights, *out],
        "train_net --config-file": ["train_net", "--eval-only", "--config-file", config, *out],
        "plain_train_net --config-file": ["plain_train_net", "--config-file", config, *out],
        "distill_train_net MODEL.CLIP.WEIGHTS": ["distill_train_net", "--eval-only"]
        + ["--config-file", recipe, "MODEL.CLIP.WEIGHTS", weights, *out],
        "lazyconfig_train_net train.init_checkpoint": ["lazyconfig_train_net", "--eval-only"]
        + ["--config-file", lazy, f"train.init_checkpoint={weights}"]
        + [f"train.output_dir={folder / 'out'}"],
        "demo --config-file": ["demo", "--config-file", config, "--input", folder]
        + ["--output", folder / "shown", "--custom-vocabulary", "dog"],
        "make_proposals MODEL.WEIGHTS": ["make_proposals", "--config-file", _RECIPES / "rpn.yaml"]
        + ["--dataset", f"images:{folder}", "--output", folder / "a.json"]
        + ["MODEL.WEIGHTS", weights, *out],
        "convert_checkpoint": ["convert_checkpoint", weights, folder / "b.pt", "--to", "d2"],
        "build_text_embeddings --from": ["build_text_embeddings", "--clip", _CLIP]
        + ["--vocabulary", "coco", "--from", vectors, "--output", folder / "c.pt"],
    }
    return [(f"tools/{name}", _run_command(line, marker)) for name, line in lines.items()]


def _run_command(line: list[object], marker: Path) -> str:
    tool, *arguments = map(str, line)
    log = marker.with_name("output.txt")
    process = start_tool([f"{REPOSITORY}/tools/{tool}.py", *arguments], REPOSITORY, log)
    code, said = end_tool(process, log, _TIMEOUT)
    if marker.exists():
        marker.rmdir()
        return RAN
    if code == 0:
        return DATA
    is_clear = "error: " in said and "Traceback" not in said and "weights_only" not in said
    return REFUSED if is_clear else TRACEBACK


def main() -> int:
    """Run the attacks and report; 0 if none ran code and none was refused with a traceback."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-commands", action="store_true", help="leave out command lines")
    args = parser.parse_args()
    # Warnings of a file that is passed over are right here, and many.
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        found = run_attacks(folder, commands=not args.no_commands)
    verdicts = [verdict for _, verdict in found]
    for name, verdict in found:
        sys.stdout.write(f"{verdict:27} {name}\n")
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (REFUSED, DATA, TRACEBACK, RAN))
    sys.stdout.write(f"{len(found)} attacks: {counts}\n")
    return int(RAN in verdicts or TRACEBACK in verdicts)


if __name__ == "__main__":
    sys.exit(main())
