"""Every evaluator in two processes with uneven shards; run by test_two_processes.py.

Usage: python two_processes.py FOLDER, which holds worlds.pkl. Writes pair_<name>.json and
one_<name>.json.
"""

import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from clipself_d2.evaluation import (
    CocoOVEvaluator,
    LVISOVEvaluator,
    ReferringEvaluator,
    RegionClassificationEvaluator,
    build_evaluator,
    prediction_log,
)

# Images of the first process; the second has the others.
SPLITS = {"uneven": slice(0, 4), "all_in_second": slice(0, 0)}


def judges(folder: Path, world: dict[str, Any]) -> dict[str, Any]:
    for name, metadata in world["metadata"].items():
        MetadataCatalog.get(name).set(**metadata)
        if name not in DatasetCatalog:
            DatasetCatalog.register(name, lambda: world["panoptic"]["inputs"])
    regions = RegionClassificationEvaluator(
        text_embeddings_KD=torch.eye(7), class_names="abcdefg", is_thing=[True] * 3 + [False] * 4
    )
    lvis = {"fixed_ap": True, "output_dir": str(folder / "out")}
    return {
        "coco": CocoOVEvaluator("two_processes_coco"),
        "lvis": LVISOVEvaluator("two_processes_lvis", **lvis),
        "region": regions,
        "refer": ReferringEvaluator(),
        # Detectron2's own evaluators: boxes, masks and the semantic map of panoptic scenes.
        "panoptic": build_evaluator("two_processes_panoptic", None),
    }


def score(folder: Path, world: dict[str, Any], part: slice, tag: str) -> None:
    for name, judge in judges(folder, world).items():
        judge.reset()
        inputs, outputs = (world[name][key][part] for key in ("inputs", "outputs"))
        for item, output in zip(inputs, outputs, strict=True):
            judge.process([item], [output])
        scores = judge.evaluate()
        if comm.is_main_process():
            (folder / f"{tag}_{name}.json").write_text(json.dumps(scores))
        else:
            assert not scores, "only the first process reports"
        # As when the evaluator goes, which must not be before the first process has read.
        judge.reset()


def slowly(append: Callable[..., None]) -> Callable[..., None]:
    def late(*args: Any) -> None:
        time.sleep(0.1)
        append(*args)

    return late


def work(rank: int, folder: Path, world: dict[str, Any]) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    log = prediction_log.PredictionLog
    log._append_file = slowly(log._append_file)  # type: ignore[method-assign]
    for tag, first in SPLITS.items():
        part = first if rank == 0 else slice(first.stop, None)
        score(folder, world, part, tag)
    # Machines that share no disk, and pieces smaller than a file.
    prediction_log.CHUNK = 1000
    prediction_log._is_visible = lambda path, size: False
    score(folder, world, slice(0, 4) if rank == 0 else slice(4, None), "unshared")
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    content = pickle.loads((place / "worlds.pkl").read_bytes())
    score(place, content, slice(None), "one")
    mp.spawn(work, args=(place, content), nprocs=2)
