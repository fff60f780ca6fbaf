"""Two processes give the numbers of one, whatever each of them has seen."""

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]


def region_part() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    labels = [torch.randint(0, 7, (5,), generator=generator) for _ in range(6)]
    return {
        "inputs": [{"region_classes": label, "region_is_thing": label < 3} for label in labels],
        "outputs": [
            {"roi": torch.eye(7)[label] + torch.randn(5, 7, generator=generator)}
            for label in labels
        ],
    }


def refer_part() -> dict[str, Any]:
    """Six sentences, the third of which refers to nothing."""
    generator = torch.Generator().manual_seed(1)
    truth = [torch.rand(12, 16, generator=generator) > 0.5 for _ in range(6)]
    truth[2] = torch.zeros(12, 16, dtype=torch.bool)
    found = [mask ^ (torch.rand(12, 16, generator=generator) > 0.8) for mask in truth]
    return {
        "inputs": [{"gt_mask": mask, "image_id": number} for number, mask in enumerate(truth)],
        "outputs": [{"ref_mask": mask} for mask in found],
    }


def panoptic_part(world: Any, folder: Path) -> dict[str, Any]:
    """The scenes of a world with a semantic map of four classes beside their objects."""
    rng = np.random.default_rng(2)
    inputs, outputs = [], []
    for item, output in zip(world.inputs, world.outputs, strict=True):
        labels = rng.integers(0, 4, (item["height"], item["width"]))
        path = folder / f"map_{item['image_id']}.png"
        Image.fromarray(labels.astype(np.uint8)).save(path)
        inputs.append({**item, "file_name": f"{path}.jpg", "sem_seg_file_name": str(path)})
        errs = rng.random(labels.shape) < 0.3
        guess = np.where(errs, rng.integers(0, 4, labels.shape), labels)
        outputs.append({**output, "sem_seg": torch.eye(4)[torch.from_numpy(guess)].movedim(2, 0)})
    return {"inputs": inputs, "outputs": outputs}


@pytest.mark.multi_process
def test_two_processes_score_as_one(
    python: str, draw_world: Callable[..., Any], tmp_path: Path
) -> None:
    content: dict[str, Any] = {"metadata": {}, "region": region_part(), "refer": refer_part()}
    for kind in ("coco", "lvis"):
        world = draw_world(3, lvis=kind == "lvis")
        path = tmp_path / f"{kind}.json"
        path.write_text(json.dumps(world.annotations))
        content["metadata"][f"two_processes_{kind}"] = {
            "json_file": str(path),
            "thing_classes": list(world.classes),
            "novel_classes": list(world.novel),
            "thing_dataset_id_to_contiguous_id": {
                category_id: index for index, category_id in enumerate(world.category_ids)
            },
        }
        content[kind] = {"inputs": world.inputs, "outputs": world.outputs}
        if kind == "coco":
            content["panoptic"] = panoptic_part(world, tmp_path)
    content["metadata"]["two_processes_panoptic"] = {
        **content["metadata"]["two_processes_coco"],
        "evaluator_type": "coco_panoptic_seg",
        "stuff_classes": list("wxyz"),
        "ignore_label": 255,
    }
    (tmp_path / "worlds.pkl").write_bytes(pickle.dumps(content))
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [python, str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    tasks = {"coco": "segm", "lvis": "segm", "region": "region", "refer": "ref_seg"}
    for kind, task in [*tasks.items(), ("panoptic", "segm"), ("panoptic", "sem_seg")]:
        one = json.loads((tmp_path / f"one_{kind}.json").read_text())
        assert any(0 < score < 100 for score in one[task].values())
        for tag in ("uneven", "all_in_second", "unshared"):
            pair = json.loads((tmp_path / f"{tag}_{kind}.json").read_text())
            assert pair.keys() == one.keys()
            for name in one:
                # Means of floats may be summed in another order.
                assert pair[name] == pytest.approx(one[name], abs=1e-9, nan_ok=True), (kind, tag)
    # Nothing is left of the files of either process.
    assert not list((tmp_path / "out").glob(".predictions_*"))
