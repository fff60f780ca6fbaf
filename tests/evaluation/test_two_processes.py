"""Two processes give the numbers of one, whatever each of them has seen."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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


@pytest.mark.multi_process
def test_two_processes_score_as_one(draw_world: Callable[..., Any], tmp_path: Path) -> None:
    content: dict[str, Any] = {"metadata": {}, "region": region_part()}
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
    (tmp_path / "worlds.pkl").write_bytes(pickle.dumps(content))
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, task in (("coco", "segm"), ("lvis", "segm"), ("region", "region")):
        one = json.loads((tmp_path / f"one_{kind}.json").read_text())
        assert any(0 < score < 100 for score in one[task].values())
        for tag in ("uneven", "all_in_second", "unshared"):
            pair = json.loads((tmp_path / f"{tag}_{kind}.json").read_text())
            assert pair.keys() == one.keys()
            for name in one:
                assert pair[name] == pytest.approx(one[name], abs=0, nan_ok=True), (kind, tag)
    # Nothing is left of the files of either process.
    assert not list((tmp_path / "out").glob(".predictions_*"))
