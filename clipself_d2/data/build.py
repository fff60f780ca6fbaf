"""Loaders for distillation, for region classification and for the training of detectors."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from clipself_d2.clip.catalog import describe
from clipself_d2.clip.registry import native_image_size
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.data.caption_mapper import CaptionMapper
from clipself_d2.data.detection_mapper import build_train_mapper
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.data.region_mapper import RegionMapper
from clipself_d2.data.region_sampler import ProposalFile, RegionSampler

Record = Mapping[str, object]


class CountedDataset(Dataset[dict[str, object]]):
    """An endless data set over a running count of samples.

    Sample k is record ``permutation(epoch)[k % n]`` with a generator seeded by (seed, k), and its
    size is drawn for iteration ``k // total_batch``: it does not depend on workers, processes or
    interruptions.

    Args:
        records: Records of the data set.
        mapper: Called with a record, the generator and the size of the student's image.
        seed: Seed of order and augmentation.
        total_batch: Samples of one iteration over all processes.
        sizes: Longest sides of the student's image, px, one of which all samples of an iteration
            have; empty leaves it to the mapper.

    Raises:
        ValueError: If there is no record.
    """

    def __init__(
        self,
        *,
        records: Sequence[Record],
        mapper: DistillMapper | CaptionMapper,
        seed: int,
        total_batch: int = 1,
        sizes: Sequence[int] = (),
    ) -> None:
        if not len(records):
            raise ValueError("the training set is empty; check DATASETS.TRAIN")
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._total_batch, self._sizes = total_batch, tuple(sizes)
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __getitem__(self, count: int) -> dict[str, object]:
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
        if not self._sizes:
            return self._mapper(record, rng)
        draw = np.random.default_rng([self._seed, count // self._total_batch, 2])
        return self._mapper(record, rng, self._sizes[int(draw.integers(len(self._sizes)))])


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
    sizes: Sequence[int] = (),
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
        collate_fn=_as_list,
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
    options = cfg.INPUT.REGIONS
    records = _read_records(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    return build_distill_train_loader(
        records=DatasetFromList(records, copy=False),
        mapper=_build_distill_mapper(cfg, records),
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        sizes=options.MULTISCALE_SIZES,
        start_iter=start_iter,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def _build_distill_mapper(cfg: CfgNode, records: Sequence[Record]) -> DistillMapper | CaptionMapper:
    options = cfg.INPUT.REGIONS
    # The caption mapper belongs to the one META_ARCHITECTURE that may propose regions itself.
    captions = cfg.MODEL.META_ARCHITECTURE == "RegionCLIPPretrainer"
    sampler = None
    if not (captions and options.SOURCE == "rpn"):
        sampler = _build_region_sampler(cfg, records)
    if captions:
        on_crops = cfg.MODEL.REGIONCLIP.TEACHER_REGIONS == "crop"
        return CaptionMapper(
            sampler=sampler,
            image_size=options.IMAGE_SIZE,
            shortest_size=cfg.INPUT.MIN_SIZE_TRAIN[0],
            crop_size=crop_size_of(cfg) if on_crops else None,
            crop_resizer=options.CROP_RESIZER,
            flip_probability=0.0 if cfg.INPUT.RANDOM_FLIP == "none" else 0.5,
        )
    assert sampler is not None, "only the caption mapper does without a sampler"
    return DistillMapper(
        sampler=sampler,
        image_size=options.IMAGE_SIZE,
        crop_size=crop_size_of(cfg),
        crop_resizer=options.CROP_RESIZER,
        whole_image=cfg.MODEL.DISTILL.IMAGE_LOSS_WEIGHT > 0,
    )


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
        reference_sampling=options.REFERENCE_SAMPLING,
    )


def build_detection_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build a detector's training loader of DATASETS.TRAIN.

    Args:
        cfg: The whole config; INPUT.LSJ_SIZE chooses the augmentations.

    Returns:
        An endless loader of lists of this process's items, as Detectron2's models take them.

    Raises:
        ValueError: If DATASETS.TRAIN is empty.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name a registered data set")
    return build_detection_train_loader(cfg, mapper=build_train_mapper(cfg))


def crop_size_of(cfg: CfgNode) -> int:
    """Look up the side of the teacher's crops.

    Args:
        cfg: The whole config.

    Returns:
        INPUT.REGIONS.CROP_SIZE, or the native size of the teacher's tower, px.
    """
    own = cfg.MODEL.META_ARCHITECTURE == "RegionCLIPPretrainer"
    teacher = (own and cfg.MODEL.REGIONCLIP.TEACHER_NAME) or cfg.MODEL.CLIP.NAME
    return int(cfg.INPUT.REGIONS.CROP_SIZE) or native_image_size(teacher)


def build_region_test_loader_from_cfg(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build the loader of a panoptic data set's regions.

    Args:
        cfg: The whole config.
        dataset_name: Registered name.

    Returns:
        A loader of lists of one item, each image once over all processes.
    """
    options = cfg.INPUT.REGIONS
    mapper = RegionMapper(
        image_size=options.IMAGE_SIZE,
        crop_size=crop_size_of(cfg),
        # The page of towers knows no patch of ResNets, which all have the same.
        patch_size=describe(cfg.MODEL.CLIP.NAME).patch_size or ResNetTower.patch_size,
        pad_to_square=cfg.MODEL.DISTILL.PAD_TO_SQUARE,
    )
    records = _read_records([dataset_name], "DATASETS.TEST")
    dataset = MapDataset(DatasetFromList(records, copy=False), mapper)
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=InferenceSampler(len(dataset)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=_as_list,
    )


def _read_records(names: Sequence[str], key: str) -> list[Record]:
    if not names:
        raise ValueError(f"{key} is empty; name a registered data set")
    records = get_detection_dataset_dicts(list(names), filter_empty=False, check_consistency=False)
    if not records:
        raise ValueError(f"{key} {list(names)} holds no image")
    return records


def _as_list(batch: list[dict[str, object]]) -> list[dict[str, object]]:
    return batch
