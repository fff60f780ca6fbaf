import os
import subprocess
from pathlib import Path

import pytest

from clipself_d2.engine.launch import find_runner

ROOT = Path(__file__).parents[2]
RUNNER = {
    "MASTER_ADDR": "localhost",
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
}


def test_torchruns_variables_give_the_place_of_the_process() -> None:
    assert find_runner(RUNNER) == (1, 2)


def test_without_them_the_tool_starts_its_own_processes() -> None:
    assert find_runner({}) is None
    assert find_runner({"MASTER_ADDR": "localhost"}) is None


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_variable_that_lacks_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        find_runner({key: value for key, value in RUNNER.items() if key != name})


@pytest.mark.multi_process
def test_two_processes_of_torchrun_distil_together(
    python: str, emoji_root: Path, tmp_path: Path
) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(emoji_root), "OMP_NUM_THREADS": "1"}
    runner = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    keys = ["MODEL.CLIP.PRETRAINED", "", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.MAX_ITER", "1"]
    keys += ["DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path)]
    tool = [str(ROOT / "tools" / "distill_train_net.py")]
    tool += ["--config-file", str(ROOT / "configs" / "emoji" / "clipself_patches.yaml")]
    done = subprocess.run(
        [*runner, *tool, *keys], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "model_final.pth").is_file()
    assert "Rank of current process: 1. World size: 2" in (tmp_path / "log.txt.rank1").read_text()


def test_the_slurm_script_starts_torchrun_on_every_machine(tmp_path: Path) -> None:
    for name, body in {"scontrol": "printf 'node7\\nnode8\\n'", "srun": 'echo "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "42"}
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "slurm_train.sh"), "tools/train_net.py", "--resume"],
        env={**os.environ, **job, "SLURM_GPUS_ON_NODE": "8", "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "--nnodes 2 --nproc-per-node 8" in done.stdout
    assert "--rdzv-endpoint node7:29500 tools/train_net.py --resume" in done.stdout


def test_the_slurm_script_outside_a_job_says_how_to_submit_it() -> None:
    script = str(ROOT / "tools" / "slurm_train.sh")
    environment = {key: value for key, value in os.environ.items() if "SLURM" not in key}
    done = subprocess.run(
        ["bash", script, "x"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "sbatch" in done.stderr
