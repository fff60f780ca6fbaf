"""Training samples that are a function of the seed and of their number in the run alone.

Neither workers, nor the number of processes, nor an interruption changes what an iteration sees.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from clipself_d2.clip.randomness import own_randomness
from clipself_d2.data.items import Item, Record

# Number of a sample in the run over all processes, and of its record in the data set.
Number = tuple[int, int]
Mapper = Callable[[Record, np.random.Generator, int], Item]


class SeededMapper:
    """Lets a mapper of Detectron2, which draws from global generators, draw from a given one."""

    def __init__(self, mapper: Callable[[Record], Item]) -> None:
        self._mapper = mapper

    def __call__(self, record: Record, rng: np.random.Generator, image_size: int) -> Item:
        """Map a record; the size is not used, as such mappers have sizes of their own."""
        with own_randomness(int(rng.integers(2**63))):
            return self._mapper(record)


class CountedDataset(Dataset[Item]):
    """Samples by their number in the run.

    Sample k is mapped with a generator seeded by (seed, k), and its size is drawn for iteration
    ``k // total_batch``.

    Args:
        records: Records of the data set.
        mapper: Called with a record, the generator and the size of the student's image.
        seed: Seed of augmentation.
        sizes: Longest sides of the student's image, px, one of which all samples of an iteration
            have; empty where the mapper has a size of its own.
        total_batch: Samples of one iteration over all processes.
    """

    def __init__(
        self,
        *,
        records: Sequence[Record],
        mapper: Mapper,
        seed: int,
        sizes: Sequence[int] = (),
        total_batch: int = 1,
    ) -> None:
        self._records = records
        self._mapper = mapper
        self._seed = seed
        self._total_batch, self._sizes = total_batch, tuple(sizes)

    def __getitem__(self, number: Number) -> Item:
        """Make a sample: the mapper's item, with its ``count`` in the run."""
        count, index = number
        rng = np.random.default_rng([self._seed, count])
        item = self._mapper(self._records[index], rng, self._size(count // self._total_batch))
        return {**item, "count": count}

    def _size(self, iteration: int) -> int:
        if len(self._sizes) < 2:
            return self._sizes[0] if self._sizes else 0
        # The 2 keeps sizes apart from the orders of epochs, which have a 1, and from samples.
        rng = np.random.default_rng([self._seed, iteration, 2])
        return self._sizes[int(rng.integers(len(self._sizes)))]


class CountedBatches(Sampler[list[Number]]):
    """The batches of one process, from iteration ``start_iter`` on, which may be set until then.

    Args:
        order: Called for an endless run of indices, the same at each call.
        total_batch: Samples of one iteration over all processes.
        rank: Number of this process.
        world_size: Number of processes, which share each batch.
        groups: Group of every record; the samples of an iteration are of one group. Empty does not
            group.

    Raises:
        ValueError: If the batch cannot be shared evenly.
    """

    def __init__(
        self,
        *,
        order: Callable[[], Iterator[int]],
        total_batch: int,
        rank: int = 0,
        world_size: int = 1,
        groups: Sequence[int] = (),
    ) -> None:
        if total_batch < 1 or total_batch % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch}, which {world_size} processes cannot "
                "share evenly"
            )
        self.start_iter = 0
        self._order, self._total_batch = order, total_batch
        self._rank, self._world_size = rank, world_size
        self._groups = groups

    def __iter__(self) -> Iterator[list[Number]]:
        """Yield this process's share of every batch."""
        # What is passed over costs its indices alone: no picture of it is read.
        for batch in itertools.islice(self._batches(), self.start_iter, None):
            yield batch[self._rank :: self._world_size]

    def _batches(self) -> Iterator[list[Number]]:
        # Every process walks through all batches, so that none has to be told its share.
        waiting: dict[int, list[Number]] = {}
        for count, index in enumerate(self._order()):
            group = self._groups[index] if self._groups else 0
            waiting.setdefault(group, []).append((count, index))
            if len(waiting[group]) == self._total_batch:
                yield waiting.pop(group)


def shuffled(num_records: int, seed: int) -> Iterator[int]:
    """Yield the indices of ``num_records`` without end, each epoch in an order of its own."""
    for epoch in itertools.count():
        yield from np.random.default_rng([seed, epoch, 1]).permutation(num_records).tolist()


def build_counted_loader(
    *,
    records: Sequence[Record],
    mapper: Mapper,
    total_batch: int,
    seed: int,
    order: Callable[[], Iterator[int]] | None = None,
    groups: Sequence[int] = (),
    sizes: Sequence[int] = (),
    num_workers: int = 0,
) -> DataLoader:
    """Build the endless training loader of this process: lists of items.

    Arguments are those of ``CountedDataset`` and of ``CountedBatches``, which is the loader's
    ``batch_sampler``; an order of None goes through the records in shuffled epochs.
    """
    batches = CountedBatches(
        order=order or (lambda: shuffled(len(records), seed)),
        total_batch=total_batch,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        groups=groups,
    )
    data = CountedDataset(
        records=DatasetFromList(records, copy=False),
        mapper=mapper,
        seed=seed,
        total_batch=total_batch,
        sizes=sizes,
    )
    return DataLoader(
        data,
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        # Transfers to a GPU then go on while it computes.
        pin_memory=torch.cuda.is_available(),
        # Else torch would draw from the run's generator when the first batch is asked for.
        generator=torch.Generator(),
    )
