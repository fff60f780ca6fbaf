"""Attacks by files: each would make a folder if code in the file ran, and none may.

``python -m clipself_d2.apps.reliability.attacks`` prints a verdict for each and how many ran code.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode, get_cfg
from torch import nn

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.reliability import planted_files as files
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

_ROOT = Path(__file__).resolve().parents[3]
_RECIPES = _ROOT / "configs" / "emoji"
_CLIP = "ViT-Ti-8-emoji"
_TIMEOUT = 300


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
    read: Callable[[Path], object]


def run_attacks(work_dir: str | Path, *, commands: bool = True) -> list[tuple[str, str]]:
    """Run all attacks.

    Args:
        work_dir: Folder for their files.
        commands: Whether command lines are attacked too, which takes minutes.

    Returns:
        Name and verdict of each: one of ``REFUSED``, ``TRACEBACK``, ``RAN`` and ``DATA``.
    """
    found = []
    for number, attack in enumerate(library_attacks()):
        folder = Path(work_dir) / str(number)
        folder.mkdir(parents=True)
        marker = folder / "ran"
        attack.write(folder / attack.file_name, marker)
        found.append(
            (attack.name, _verdict(partial(attack.read, folder / attack.file_name), marker))
        )
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
    """List the attacks on what the product reads.

    Yields:
        Each attack.
    """
    for kind, write in files.WEIGHTS.items():
        name = kind.replace(" ", "_")
        yield Attack(f"MODEL.CLIP.WEIGHTS: {kind}", name, write, read_checkpoint)
        yield Attack(f"MODEL.WEIGHTS: {kind}", name, write, _load_detector)
    for kind in ("protocol 2.pkl", "weights.pth", "script archive.pt", "long header.safetensors"):
        name, write = kind.replace(" ", "_"), files.WEIGHTS[kind]
        yield Attack(f"MODEL.CLIP.PRETRAINED: {kind}", name, write, _load_clip)
        yield Attack(f"MODEL.FROZEN_RPN.WEIGHTS: {kind}", name, write, _load_proposals_network)
        yield Attack(f"last_checkpoint: {kind}", name, write, _resume)
        yield Attack(f"last_checkpoint outside: {kind}", name, write, _resume_outside)
        yield Attack(f"convert_checkpoint: {kind}", name, write, _convert)
    yield from _config_attacks()
    yield from _data_attacks()


def _config_attacks() -> Iterator[Attack]:
    def planted(value: str) -> files.Writer:
        return lambda path, marker: _write(path, files.yaml_text(value, marker))

    for kind, value in files.YAML_VALUES.items():
        yield Attack(f"--config-file: {kind}", "a.yaml", planted(value), _read_config)
    for kind in ("a call", "eval of an import"):
        write = planted(files.YAML_VALUES[kind])
        yield Attack(f"_BASE_: {kind}", "a.yaml", write, _read_base)
        yield Attack(f"_BASE_ in a list: {kind}", "a.yaml", write, _read_base_list)
        yield Attack(f"MODEL.FROZEN_RPN.CONFIG: {kind}", "a.yaml", write, _read_frozen_config)
        yield Attack(f"predictor's config: {kind}", "a.yaml", write, _predict)
        yield Attack(f"LazyConfig given yaml: {kind}", "a.yaml", write, _read_lazy)
    declared = '%TAG ! tag:yaml.org,2002:python/\n---\nA: !object/apply:os.mkdir ["%m"]\n'
    key = '? !!python/object/apply:os.mkdir ["%m"]\n: 1\n'
    merged = '<<: !!python/object/apply:os.mkdir ["%m"]\n'
    for kind, text in (("a declared tag", declared), ("a key", key), ("a merge", merged)):
        yield Attack(f"--config-file: {kind}", "a.yaml", _text(text), _read_config)
    yield Attack("KEY VALUE: code", "a.txt", _code, _override)


def _data_attacks() -> Iterator[Attack]:
    for split in ("TRAIN", "TEST"):
        read = partial(_read_proposals, split)
        yield Attack(f"DATASETS.PROPOSAL_FILES_{split}", "a.pkl", files.proposal_file, read)
    yield Attack("references of REFER", "refs(unc).p", files.reference_file, read_refs)
    for name in ("a.npy", "a.npz", "a.pth"):
        write = files.embedding_file if name.endswith("pth") else files.object_array_file
        yield Attack(f"--from {name}", name, write, _read_published)
    yield Attack("MODEL.VOCABULARY.EMBEDDINGS", "a.pt", files.embedding_file, TextEmbeddings.load)
    yield Attack("cache of text embeddings", "a.pt", files.embedding_file, _read_cache)
    yield Attack("members outside of a shard", "a.tar", files.shard, _read_shard)
    for name in ("a.json", "a.txt"):
        for kind, write in (("code", _code), ("a pickle", files.reference_file)):
            yield Attack(f"vocabulary {name}: {kind}", name, write, Vocabulary.from_file)
    for kind, write in (("code", _code), ("a pickle", files.reference_file)):
        yield Attack(f"concept pool: {kind}", "a.txt", write, ConceptPool.load)
        yield Attack(f"annotations: {kind}", "a.json", write, _read_annotations)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _text(template: str) -> files.Writer:
    return lambda path, marker: _write(path, template.replace("%m", str(marker)))


def _code(path: Path, marker: Path) -> None:
    _write(path, files.code_text(marker))


def _load_detector(path: Path) -> object:
    return StrictCheckpointer(nn.Linear(4, 2)).load(str(path))


def _load_clip(path: Path) -> object:
    return load_clip(_CLIP, str(path))


def _load_proposals_network(path: Path) -> object:
    cfg = _plain_config()
    cfg.MODEL.FROZEN_RPN.CONFIG = str(_RECIPES / "rpn.yaml")
    cfg.MODEL.FROZEN_RPN.WEIGHTS = str(path)
    return build_frozen_proposals(cfg)


def _resume(path: Path) -> object:
    (path.parent / "last_checkpoint").write_text(path.name)
    return StrictCheckpointer(nn.Linear(4, 2), str(path.parent)).resume_or_load("", resume=True)


def _resume_outside(path: Path) -> object:
    run = path.parent / "run"
    run.mkdir()
    (run / "last_checkpoint").write_text(f"../{path.name}")
    return StrictCheckpointer(nn.Linear(4, 2), str(run)).resume_or_load("", resume=True)


def _convert(path: Path) -> object:
    return convert_checkpoint(path, path.parent / "out.pt", to="open_clip")


def _plain_config() -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def _read_config(path: Path) -> object:
    return load_config(str(path), [])


def _read_base(path: Path) -> object:
    above = path.with_name("above.yaml")
    above.write_text(f"_BASE_: {path.name}\n")
    return load_config(str(above), [])


def _read_base_list(path: Path) -> object:
    above = path.with_name("above.yaml")
    above.write_text(f"_BASE_: [{_RECIPES / 'rpn.yaml'}, {path}]\n")
    return load_config(str(above), [])


def _read_frozen_config(path: Path) -> object:
    cfg = _plain_config()
    cfg.MODEL.FROZEN_RPN.CONFIG = str(path)
    return build_frozen_proposals(cfg)


def _predict(path: Path) -> object:
    return OpenVocabPredictor(path, None)


def _read_lazy(path: Path) -> object:
    return load_lazy_config(str(path), [])


def _override(path: Path) -> object:
    return load_config("", ["MODEL.WEIGHTS", path.read_text()])


def _read_proposals(split: str, path: Path) -> None:
    cfg = _plain_config()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS[f"PROPOSAL_FILES_{split}"] = (str(path),)
    check_proposal_files(cfg, split)


def _read_published(path: Path) -> object:
    return read_published_embeddings(path, Vocabulary.from_names(["dog"]), clip=_CLIP)


def _read_cache(path: Path) -> object:
    """Keep embeddings, put the planted file in their place, and ask for them again."""
    cache = path.parent / "cache"

    def build() -> object:
        return TextEmbeddings.load_or_build(
            Vocabulary.from_names(["dog"]),
            clip=_CLIP,
            weights="emoji",
            templates="emoji",
            cache_dir=cache,
        )

    build()
    (kept,) = cache.iterdir()
    shutil.copyfile(path, kept)
    return build()


def _read_shard(path: Path) -> list[bytes]:
    return [read_member(str(record["file_name"])) for record in shard_caption_records(str(path))]


def _read_annotations(path: Path) -> object:
    return read_annotation_file(path, ("images", "annotations"))


def _attack_commands(folder: Path) -> list[tuple[str, str]]:
    """Attack command lines; a file of weights, of yaml and of vectors for each."""
    folder.mkdir(parents=True)
    marker = folder / "ran"
    weights, config, vectors = (folder / name for name in ("a.pkl", "a.yaml", "a.npy"))
    files.WEIGHTS["protocol 2.pkl"](weights, marker)
    _write(config, files.yaml_text(files.YAML_VALUES["a call"], marker))
    files.object_array_file(vectors, marker)
    detector, recipe = _RECIPES / "fvit_untouched.yaml", _RECIPES / "clipself_patches.yaml"
    out = ["OUTPUT_DIR", folder / "out"]
    lazy = _ROOT / "configs" / "plug_in" / "fcos_words.py"
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
    command = [sys.executable, str(_ROOT / "tools" / f"{tool}.py"), *arguments]
    done = subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT, check=False
    )
    if marker.exists():
        marker.rmdir()
        return RAN
    if done.returncode == 0:
        return DATA
    is_clear = "error: " in done.stderr and "Traceback" not in done.stderr
    return REFUSED if is_clear and "weights_only" not in done.stderr else TRACEBACK


def main() -> int:
    """Run the attacks and report.

    Returns:
        0 if none ran code and none was refused with a traceback, else 1.
    """
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
