"""Loaders for distillation, for region classification and for the training of detectors."""

from collections.abc import Callable, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build as detectron2_build
from detectron2.data import build_detection_test_loader
from torch.utils.data import DataLoader, Sampler

from clipself_d2.clip.catalog import describe
from clipself_d2.clip.randomness import own_randomness
from clipself_d2.clip.registry import native_image_size
from clipself_d2.data.counted import SeededMapper, build_counted_loader
from clipself_d2.data.detection_mapper import PictureMapper, build_train_mapper
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.data.items import Item, Record, read_records
from clipself_d2.data.proposal_files import check_proposal_files
from clipself_d2.data.region_mapper import RegionMapper
from clipself_d2.data.region_sampler import ProposalFile, RegionSampler
from clipself_d2.data.training_records import read_training_records


def build_distill_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build the endless training loader of DATASETS.TRAIN for distillation."""
    records = read_records(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    return build_counted_loader(
        records=records,
        mapper=_build_distill_mapper(cfg, records),
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        sizes=tuple(cfg.INPUT.REGIONS.IMAGE_SIZES),
        groups=_aspects(records) if cfg.INPUT.REGIONS.GROUP_ASPECTS else (),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _build_distill_mapper(cfg: CfgNode, records: Sequence[Record]) -> DistillMapper:
    """Choose by the data: pictures with captions, or whose regions the model finds, or others."""
    model_proposes = cfg.INPUT.REGIONS.SOURCE == "rpn"
    options: dict[str, Any] = {}
    if model_proposes or any("captions" in record for record in records):
        options = {
            "shortest_size": cfg.INPUT.MIN_SIZE_TRAIN[0],
            "has_crops": cfg.MODEL.REGIONCLIP.TEACHER_REGIONS == "crop",
            "flip_probability": 0.0 if cfg.INPUT.RANDOM_FLIP == "none" else 0.5,
        }
    return DistillMapper(
        sampler=None if model_proposes else _build_region_sampler(cfg, records),
        # A GPU resizes the crops faster than the workers.
        crop_size=_teacher_size(cfg) if cfg.MODEL.DEVICE == "cpu" else None,
        resize_image=not cfg.INPUT.REGIONS.RESIZE_ON_DEVICE,
        **options,
    )


def _teacher_size(cfg: CfgNode) -> int:
    """Side of the teacher's native input, px; RegionCLIP may have a teacher of another name."""
    return native_image_size(cfg.MODEL.REGIONCLIP.TEACHER_NAME or cfg.MODEL.CLIP.NAME)


def _build_region_sampler(cfg: CfgNode, records: Sequence[Record]) -> RegionSampler:
    options, proposals = cfg.INPUT.REGIONS, None
    if options.SOURCE in ("proposals", "both"):
        proposals = ProposalFile(options.PROPOSAL_FILE)
        proposals.check_images([record["image_id"] for record in records])
    return RegionSampler(
        source=options.SOURCE,
        proposals=proposals,
        max_boxes=options.MAX_BOXES,
        box_size_range=tuple(options.SIZE_RANGE),
        crop_enlarge=options.CROP_ENLARGE,
    )


def build_detection_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build a detector's training loader of DATASETS.TRAIN.

    INPUT.LSJ_SIZE chooses the augmentations. The loader is endless and gives lists of this
    process's items, as Detectron2's models take them.
    """
    check_proposal_files(cfg, "TRAIN")
    records = read_training_records(cfg)
    # Detectron2 chooses the records' order, by a seed that it draws from numpy.
    with own_randomness(max(cfg.SEED, 0)):
        parts = detectron2_build._train_loader_from_config(
            cfg, mapper=build_train_mapper(cfg), dataset=records
        )
    if not isinstance(parts["dataset"], list):
        return detectron2_build.build_detection_train_loader(**parts)
    return build_detection_train_loader(**parts, seed=max(cfg.SEED, 0))


def build_detection_train_loader(
    *,
    dataset: list[Record],
    mapper: Callable[[Record], Item],
    total_batch_size: int,
    sampler: Sampler[int] | None = None,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    seed: int = 0,
) -> DataLoader:
    """Build a loader as Detectron2's function of this name, but by seed and iteration alone.

    Arguments are those of Detectron2; a sampler of None goes through the records in shuffled
    epochs, and a seed of -1 is taken as 0.
    """
    return build_counted_loader(
        records=dataset,
        mapper=SeededMapper(mapper),
        total_batch=total_batch_size,
        seed=max(seed, 0),
        # The order of all processes; iterating the sampler gives that of one.
        order=getattr(sampler, "_infinite_indices", None),
        groups=_aspects(dataset) if aspect_ratio_grouping else (),
        num_workers=num_workers,
    )


def _aspects(records: Sequence[Record]) -> list[int]:
    """1 for broad pictures; one without a size is taken for upright and may be padded the more."""
    # Detectron2 groups by this too, but only in its own loaders.
    return [int(r.get("width", 0) > r.get("height", 0)) for r in records]


def build_detection_test_loader_from_cfg(
    cfg: CfgNode, dataset_name: str, *, batch_size: int | None = None
) -> DataLoader:
    """Build a detector's loader of a test set: lists of items, each image once in all processes.

    Pictures of a batch have one size, so that none is padded and detections are those of the
    pictures one by one. A ``batch_size`` of None is TEST.IMS_PER_BATCH, of each process.
    """
    check_proposal_files(cfg, "TEST")
    mapper = PictureMapper(cfg, is_train=False)
    parts = detectron2_build._test_loader_from_config(cfg, dataset_name, mapper=mapper)
    most = cfg.TEST.IMS_PER_BATCH if batch_size is None else batch_size
    if most == 1 or not isinstance(parts["dataset"], list):
        return build_detection_test_loader(**parts, batch_size=most)
    return build_detection_test_loader(
        _group_by_size(parts["dataset"], most),
        mapper=partial(_map_all, mapper),
        num_workers=parts["num_workers"],
        # A record of this loader is a batch already; its batches of one are taken apart.
        collate_fn=itemgetter(0),
    )


def _group_by_size(records: Sequence[Record], most: int) -> list[list[Record]]:
    """Parts of like size and at most so many records; what has no size stays alone."""
    groups: dict[object, list[list[Record]]] = {}
    for number, record in enumerate(records):
        size = (record["width"], record["height"]) if "width" in record else number
        parts = groups.setdefault(size, [[]])
        if len(parts[-1]) == most:
            parts.append([])
        parts[-1].append(record)
    return [part for parts in groups.values() for part in parts]


def _map_all(mapper: Callable[[Record], Item], records: Sequence[Record]) -> list[Item]:
    return [mapper(record) for record in records]


def build_region_test_loader_from_cfg(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build the loader of a panoptic set's regions: lists of one item, each image once."""
    mapper = RegionMapper(
        image_size=max(cfg.INPUT.REGIONS.IMAGE_SIZES),
        crop_size=_teacher_size(cfg),
        patch_size=describe(cfg.MODEL.CLIP.NAME).patch_size,
        pad_to_square=cfg.MODEL.DISTILL.PAD_TO_SQUARE,
    )
    records = read_records([dataset_name], "DATASETS.TEST")
    return build_detection_test_loader(
        records, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )
