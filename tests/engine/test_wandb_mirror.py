"""Runs in Weights & Biases, written offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipself_d2.engine.trainer import Trainer

ROOT = Path(__file__).parents[2]


def test_without_wandb_the_key_names_the_extra(emoji_cfg, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"WANDB_PROJECT is 'owls'.*clipself_d2\[wandb\]"):
        Trainer(emoji_cfg("fvit_untouched", "WANDB_PROJECT", "owls"))


@pytest.mark.slow
def test_an_offline_run_holds_scalars_and_pictures(emoji_data: Path, tmp_path: Path) -> None:
    """The real one, in a process of its own, which ends the run as a training does."""
    pytest.importorskip("wandb")
    config = ROOT / "configs" / "emoji" / "fvit_untouched.yaml"
    keys = "WANDB_PROJECT owls OUTPUT_DIR out SOLVER.MAX_ITER 2 DATALOADER.NUM_WORKERS 0 "
    keys += "TEST.PICTURES 1 TEST.EVAL_PERIOD 2 MODEL.DEVICE cpu"
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(config)]
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "DETECTRON2_DATASETS": str(emoji_data),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [*command, *keys.split()],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (records,) = run.glob("*.wandb")
    content = records.read_bytes()
    for name in (b"total_loss", b"bbox/AP50", b"predictions/0", b"heat_map/0"):
        assert name in content, name
    assert len(list(run.glob("files/media/images/*.png"))) >= 2
