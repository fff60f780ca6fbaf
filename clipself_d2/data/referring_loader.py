"""Loaders of referring expressions."""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from torch.utils.data import DataLoader

from clipself_d2.data.datasets.refcoco import EVALUATOR_TYPE
from clipself_d2.data.referring_mapper import ReferringMapper

# Pairs that the model scores at once in tests; those of one image share its features.
TEST_BATCH = 16


def has_references(dataset_names: Sequence[str]) -> bool:
    """Tell whether data sets hold referring expressions.

    Args:
        dataset_names: Registered names.

    Returns:
        True if there is a name and the metadata of all says so.
    """
    kinds = [MetadataCatalog.get(name).get("evaluator_type") for name in dataset_names]
    return bool(kinds) and all(kind == EVALUATOR_TYPE for kind in kinds)


def build_referring_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build the training loader of DATASETS.TRAIN.

    Args:
        cfg: The whole config.

    Returns:
        An endless loader of lists of items; a pass over the data draws one sentence of every
        reference.

    Raises:
        ValueError: If DATASETS.TRAIN is empty.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name a data set such as refcoco_unc_train")
    records = get_detection_dataset_dicts(
        list(cfg.DATASETS.TRAIN), filter_empty=False, check_consistency=False
    )
    return build_detection_train_loader(
        dataset=records,
        mapper=ReferringMapper(cfg, is_train=True),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        aspect_ratio_grouping=False,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_referring_test_loader_from_cfg(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build the loader of a test set: every sentence once over all processes.

    Args:
        cfg: The whole config.
        dataset_name: Registered name.

    Returns:
        A loader of lists of up to ``TEST_BATCH`` items, those of an image in a row.
    """
    records = get_detection_dataset_dicts(
        [dataset_name], filter_empty=False, check_consistency=False
    )
    return build_detection_test_loader(
        dataset=records,
        mapper=ReferringMapper(cfg, is_train=False),
        batch_size=TEST_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
