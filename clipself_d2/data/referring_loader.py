"""Loaders of referring expressions."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader, Sampler

from clipself_d2.data.counted import SeededMapper, build_counted_loader
from clipself_d2.data.datasets.refcoco import EVALUATOR_TYPE
from clipself_d2.data.items import read_records
from clipself_d2.data.referring_mapper import ReferringMapper

# Pairs that the model scores at once in tests, unless one image has more.
TEST_BATCH = 16


class ImageBatchSampler(Sampler[list[int]]):
    """Batches of pairs for tests, in which an image is never torn apart.

    All sentences of an image are in one batch of one process, so that a model that shares the
    features of equal images in a batch computes them once.

    Args:
        images: Image of every pair, those of one in a row.
        batch_size: Most pairs of a batch; an image with more is a batch by itself.
        rank: Number of this process.
        world_size: Number of processes; each has a run of images, of about as many pairs.
    """

    def __init__(
        self, images: Sequence[object], batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> None:
        self._batches: list[list[int]] = []
        start = 0
        # Only neighbours are grouped; the records are sorted by image.
        for _, group in groupby(images):
            numbers = list(range(start, start + sum(1 for _ in group)))
            # By the image's first pair, so that each image has exactly one process.
            if start * world_size // len(images) == rank:
                # Small images fill up a batch.
                if self._batches and len(self._batches[-1]) + len(numbers) <= batch_size:
                    self._batches[-1] += numbers
                else:
                    self._batches.append(numbers)
            start += len(numbers)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of the pairs of every batch."""
        return iter(self._batches)

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return len(self._batches)


def has_references(dataset_names: Sequence[str]) -> bool:
    """Tell whether the metadata of every named data set says that it holds references."""
    kinds = [MetadataCatalog.get(name).get("evaluator_type") for name in dataset_names]
    return bool(kinds) and all(kind == EVALUATOR_TYPE for kind in kinds)


def build_referring_train_loader_from_cfg(cfg: CfgNode) -> DataLoader:
    """Build the endless training loader of DATASETS.TRAIN.

    A pass over the data draws one sentence of every reference.
    """
    return build_counted_loader(
        records=read_records(cfg.DATASETS.TRAIN, "DATASETS.TRAIN"),
        mapper=SeededMapper(ReferringMapper(cfg, is_train=True)),
        total_batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_referring_test_loader_from_cfg(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """Build the loader of a test set: every sentence once, batches as of ``ImageBatchSampler``."""
    records = read_records([dataset_name], "DATASETS.TEST")
    batches = ImageBatchSampler(
        [record["file_name"] for record in records],
        TEST_BATCH,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    data = MapDataset(DatasetFromList(records, copy=False), ReferringMapper(cfg, is_train=False))
    return DataLoader(
        data, batch_sampler=batches, num_workers=cfg.DATALOADER.NUM_WORKERS, collate_fn=list
    )
