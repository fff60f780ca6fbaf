"""Loaders for distillation and for region classification."""

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from clipself_d2.data.distill_mapper import DistillMapper, ProposalFile
from clipself_d2.data.region_mapper import RegionMapper

Record = Mapping[str, object]


class CountedDataset(Dataset[dict[str, object]]):
    """An endless data set over a running count of samples.

    Sample k is record ``permutation(epoch)[k % n]`` with a generator seeded by (seed, k): it does
    not depend on workers, processes or interruptions.

    Args:
        records: Records of the data set.
        mapper: Called with a record and the generator.
        seed: Seed of order and augmentation.

    Raises:
        ValueError: If there is no record.
    """

    def __init__(self, *, records: Sequence[Record], mapper: DistillMapper, seed: int) -> None:
        if not len(records):
            raise ValueError("the training set is empty; check DATASETS.TRAIN")
        self._records = records
        self._mapper = mapper
        self._seed = seed
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
        return self._mapper(record, np.random.default_rng([self._seed, count]))


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
    mapper: DistillMapper,
    total_batch: int,
    seed: int,
    start_iter: int = 0,
    num_workers: int = 0,
) -> DataLoader:
    """Build the endless training loader of this process.

    Args:
        records: Records of the training set.
        mapper: From a record to an item.
        total_batch: Images of one iteration over all processes.
        seed: Seed of order and regions.
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
        CountedDataset(records=records, mapper=mapper, seed=seed),
        batch_size=total_batch // world_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=_as_list,
        drop_last=True,
    )


def build_distill_train_loader_from_cfg(cfg: CfgNode, *, start_iter: int = 0) -> DataLoader:
    """Build the training loader of DATASETS.TRAIN.

    Args:
        cfg: The whole config; MODEL.DISTILL.CROP_SIZE is the size itself here, not 0.
        start_iter: First iteration.

    Returns:
        An endless loader.

    Raises:
        ValueError: If there is no image or the proposals fit none.
    """
    options = cfg.MODEL.DISTILL
    records = _read_records(cfg.DATASETS.TRAIN, "DATASETS.TRAIN")
    proposals = None
    if options.REGIONS != "grid":
        proposals = ProposalFile(options.PROPOSAL_FILE)
        proposals.check_images([record["image_id"] for record in records])
    mapper = DistillMapper(
        regions=options.REGIONS,
        proposals=proposals,
        image_size=options.IMAGE_SIZE,
        crop_size=options.CROP_SIZE,
        max_split=options.MAX_SPLIT,
        max_boxes=options.MAX_BOXES,
        box_size_range=tuple(options.BOX_SIZE_RANGE),
        crop_enlarge=options.CROP_ENLARGE,
    )
    return build_distill_train_loader(
        records=DatasetFromList(records, copy=False),
        mapper=mapper,
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        start_iter=start_iter,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_region_test_loader_from_cfg(
    cfg: CfgNode, dataset_name: str, crop_size: int, patch_size: int
) -> DataLoader:
    """Build the loader of a panoptic data set's regions.

    Args:
        cfg: The whole config.
        dataset_name: Registered name.
        crop_size: The tower's native size, for MODEL.DISTILL.CROP_SIZE 0.
        patch_size: The tower's patch, px.

    Returns:
        A loader of lists of one item, each image once over all processes.
    """
    options = cfg.MODEL.DISTILL
    mapper = RegionMapper(
        image_size=options.IMAGE_SIZE,
        crop_size=options.CROP_SIZE or crop_size,
        patch_size=patch_size,
        pad_to_square=options.PAD_TO_SQUARE,
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
