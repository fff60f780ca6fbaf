"""Weights & Biases, which is given what TensorBoard is given."""

import yaml
from detectron2.config import CfgNode


def mirror_tensorboard(cfg: CfgNode) -> None:
    """Begin a run of WANDB_PROJECT that follows all TensorBoard files written from now on.

    Args:
        cfg: The whole config, which the run keeps; OUTPUT_DIR is its name.

    Raises:
        ValueError: If wandb is missing.
    """
    try:
        import wandb  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            f"WANDB_PROJECT is {cfg.WANDB_PROJECT!r}, but wandb is not installed; "
            "pip install 'clipself_d2[wandb]', or leave the key empty"
        ) from error
    wandb.init(
        project=cfg.WANDB_PROJECT,
        name=cfg.OUTPUT_DIR,
        config=yaml.safe_load(cfg.dump()),
        sync_tensorboard=True,
        # A process may train one model after the other.
        reinit="finish_previous",
    )
