"""Loaders for distillation, for region classification and for the training of detectors."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from clipself_d2.clip.catalog import describe
from clipself_d2.clip.registry import native_image_size
from clipself_d2.data.caption_mapper import CaptionMapper
from clipself_d2.data.detection_mapper import build_train_mapper
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.data.items import Item, Record, read_records
from clipself_d2.data.region_mapper import RegionMapper, build_region_loader
from clipself_d2.data.region_sampler import ProposalFile, RegionSampler
from clipself_d2.data.training_records import read_training_records


class CountedDataset(Dataset[Item]):
    """An endless data set over a running count of samples.

    Sample k is record ``permutation(epoch)[k % n]`` with a generator seeded by (seed, k), and its
    size is drawn for iteration ``k // total_batch``: it does not depend on workers, processes or
    interruptions.

    Args:
        records: Records of the data set.
        mapper: Called with a record, the generator and the size of the student's image.
        seed: Seed of order and augmentation.
        sizes: Longest sides of the student's image, px, one of which all samples of an iteration
            have.
        total_batch: Samples of one iteration over all processes.
    """

    def __init__(
        self,
        *,
        records: Sequence[Record],
        mapper: DistillMapper | CaptionMapper,
        seed: int,
        sizes: Sequence[int],
        total_batch: int = 1,
    ) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._total_batch, self._sizes = total_batch, tuple(sizes)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, count: int) -> Item:
        """Make the sample of a count.

        Args:
            count: Number of the sample over all epochs and processes.

        Returns:
            The mapper's item.
        """
        epoch, position = divmod(count, len(self._records))
        if epoch != self._epoch:
            rng = np.random.default_rng([self._seed, epoch, 1])
            self._epoch, self._order = epoch, rng.permutation(len(self._records))
        record = self._records[int(self._order[position])]
        rng = np.random.default_rng([self._seed, count])
        return self._mapper(record, rng, self._size(count // self._total_batch))

    def _size(self, iteration: int) -> int:
        if len(self._sizes) == 1:
            return self._sizes[0]
        rng = np.random.default_rng([self._seed, iteration, 2])
        return self._sizes[int(rng.integers(len(self._sizes)))]


class CountSampler(Sampler[int]):
    """Endless counts of one process, from a given iteration on.

    Args:
        total_batch: Samples of one iteration over all processes.
        start_iter: First iteration.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If the batch cannot be shared evenly.
    """

    def __init__(
        self, *, total_batch: int, start_iter: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        if total_batch < 1 or total_batch % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch}, which {world_size} processes cannot "
                "share evenly"
            )
        self._first = start_iter * total_batch + rank
        self._step = world_size

    def __iter__(self) -> Iterator[int]:
        """Yield every ``world_size``-th count."""
        return itertools.count(self._first, self._step)


def build_distill_train_loader(
    *,
    records: Sequence[Record],
    mapper: DistillMapper | CaptionMapper,
    total_batch: int,
    seed: int,
    sizes: Sequence[int],
    start_iter: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Build the endless training loader of this process.

    Args:
        records: Records of the training set.
        mapper: From a record to an item.
        total_batch: Images of one iteration over all processes.
        seed: Seed of order and regions.
        sizes: Longest sides of the student's image to draw from, px.
        start_iter: First iteration, for resume.
        num_workers: Worker processes.

    Returns:
        A loader of lists of items.
    """
    world_size = comm.get_world_size()
    sampler = CountSampler(
        total_batch=total_batch,
        start_iter=start_iter,
        rank=comm.get_rank(),
        world_size=world_size,
    )
    return DataLoader(
        CountedDataset(
            records=records, mapper=mapper, seed=seed, total_batch=total_batch, sizes=sizes
        ),
        batch_size=total_batch // world_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=list,
        drop_last=True,
    )


def build_distill_train_loader_from_cfg(cfg: CfgNode, *, start_iter: int = 0) -> DataLoader:
    """Build the training loader of DATASETS.TRAIN.

    Args:
        cfg: The whole config.
        start_iter: First iteration.

    Returns:
        An endless loader.

    Raises:
        ValueError: If there is no image or the proposals fit none.
    """
    records = read_records(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    return build_distill_train_loader(
        records=DatasetFromList(records, copy=False),
        mapper=_build_distill_mapper(cfg, records),
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        sizes=_image_sizes(cfg),
        start_iter=start_iter,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _image_sizes(cfg: CfgNode) -> tuple[int, ...]:
    sizes = tuple(cfg.INPUT.REGIONS.IMAGE_SIZES)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"INPUT.REGIONS.IMAGE_SIZES is {sizes}; name one side in px or several")
    return sizes


def _build_distill_mapper(cfg: CfgNode, records: Sequence[Record]) -> DistillMapper | CaptionMapper:
    """Choose by the data: pictures with captions, or whose regions the model finds, or others."""
    model_proposes = cfg.INPUT.REGIONS.SOURCE == "rpn"
    if not (model_proposes or any("captions" in record for record in records)):
        return DistillMapper(
            sampler=_build_region_sampler(cfg, records),
            crop_size=_crop_size(cfg),
            whole_image=cfg.MODEL.DISTILL.IMAGE_LOSS_WEIGHT > 0,
        )
    return CaptionMapper(
        sampler=None if model_proposes else _build_region_sampler(cfg, records),
        shortest_size=cfg.INPUT.MIN_SIZE_TRAIN[0],
        crop_size=_crop_size(cfg),
        has_crops=cfg.MODEL.REGIONCLIP.TEACHER_REGIONS == "crop",
        flip_probability=0.0 if cfg.INPUT.RANDOM_FLIP == "none" else 0.5,
    )


def _teacher_size(cfg: CfgNode) -> int:
    """Side of the teacher's native input, px; RegionCLIP may have a teacher of another name."""
    return native_image_size(cfg.MODEL.REGIONCLIP.TEACHER_NAME or cfg.MODEL.CLIP.NAME)


def _crop_size(cfg: CfgNode) -> int | None:
    """The teacher's native size; None where a GPU resizes the crops faster than the workers."""
    return _teacher_size(cfg) if cfg.MODEL.DEVICE == "cpu" else None


def _build_region_sampler(cfg: CfgNode, records: Sequence[Record]) -> RegionSampler:
    options = cfg.INPUT.REGIONS
    proposals = None
    if options.SOURCE in ("proposals", "both"):
        proposals = ProposalFile(options.PROPOSAL_FILE)
        proposals.check_images([record["image_id"] for record in records])
    return RegionSampler(
        source=options.SOURCE,
        proposals=proposals,
        max_split=options.MAX_SPLIT,
        max_boxes=options.MAX_BOXES,
        box_size_range=tuple(options.SIZE_RANGE),
        crop_enlarge=options.CROP_ENLARGE,
    )


def build_detection_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build a detector's training loader of DATASETS.TRAIN.

    Args:
        cfg: The whole config; INPUT.LSJ_SIZE chooses the augmentations.

    Returns:
        An endless loader of lists of this process's items, as Detectron2's models take them.

    Raises:
        ValueError: As ``read_training_records``.
    """
    records = read_training_records(cfg)
    return build_detection_train_loader(cfg, mapper=build_train_mapper(cfg), dataset=records)


def build_region_test_loader_from_cfg(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build the loader of a panoptic data set's regions.

    Args:
        cfg: The whole config.
        dataset_name: Registered name.

    Returns:
        A loader of lists of one item, each image once over all processes.
    """
    mapper = RegionMapper(
        image_size=max(_image_sizes(cfg)),
        crop_size=_teacher_size(cfg),
        patch_size=describe(cfg.MODEL.CLIP.NAME).patch_size,
        pad_to_square=cfg.MODEL.DISTILL.PAD_TO_SQUARE,
    )
    records = read_records([dataset_name], "DATASETS.TEST")
    return build_region_loader(records, mapper, num_workers=cfg.DATALOADER.NUM_WORKERS)
