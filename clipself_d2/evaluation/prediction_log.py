"""Predictions on disk: every process writes a file of its own, the first one reads them all."""

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

# Bytes sent at once by a process whose file the first process cannot see.
CHUNK = 64 * 2**20


class PredictionLog:
    """One process's predictions, a line of JSON an image; memory holds one image at a time.

    The file lives as long as the object.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        """Make an empty file in a folder that all processes see, or in the system's."""
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._parent = folder
        self.folder = Path(tempfile.mkdtemp(prefix=".predictions_", dir=folder))
        self._path = self.folder / "images.jsonl"
        self._path.touch()
        # Runs at the end of the interpreter too, which __del__ does not promise.
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the prediction of an image: what JSON can hold, and ``proposals`` on the CPU."""
        if "proposals" in record:
            record = {**record, "proposals": pack_proposals(record["proposals"])}
        with self._path.open("a", encoding="ascii") as stream:
            stream.write(json.dumps(record) + "\n")

    def __iter__(self) -> Iterator[Any]:
        """Yield the predictions in the order of writing."""
        with self._path.open(encoding="ascii") as stream:
            for line in stream:
                record = json.loads(line)
                if "proposals" in record:
                    record["proposals"] = unpack_proposals(record["proposals"])
                yield record

    def gather(self) -> "PredictionLog | None":
        """Join the files of all processes, in the order of their ranks.

        Files that the first process sees are read there; others are sent to it in pieces. None in
        all processes but the first.
        """
        if comm.get_world_size() == 1:
            return self
        files = comm.all_gather((str(self._path), self._path.stat().st_size))
        # What the first process sees decides for all, or their calls below would not meet.
        visible = comm.all_gather([_is_visible(*file) for file in files])[0]
        joined = PredictionLog(self._parent) if comm.is_main_process() else None
        for rank, ((path, size), seen) in enumerate(zip(files, visible, strict=True)):
            if seen:
                if joined is not None:
                    joined._append_file(path)
                continue
            for start in range(0, size, CHUNK):
                # All take part in every gather, with nothing where it is another's turn.
                own = self._read(start) if rank == comm.get_rank() else b""
                parts = comm.gather(own, dst=0)
                if joined is not None:
                    with joined._path.open("ab") as stream:
                        stream.write(parts[rank])
        # The others' files go with their evaluators, so they wait until the first has read them.
        comm.synchronize()
        return joined

    def _read(self, start: int) -> bytes:
        with self._path.open("rb") as stream:
            stream.seek(start)
            return stream.read(CHUNK)

    def _append_file(self, path: str) -> None:
        with open(path, "rb") as source, self._path.open("ab") as stream:
            shutil.copyfileobj(source, stream, CHUNK)


def _is_visible(path: str, size: int) -> bool:
    """Whether another process's file can be read here; names are unique, sizes tell stale ones."""
    try:
        return Path(path).stat().st_size == size
    except OSError:
        return False


def pack_proposals(proposals: Instances) -> dict[str, object]:
    """Return what JSON can hold of an image's proposals, for ``unpack_proposals``."""
    return {
        "size": list(proposals.image_size),
        "boxes": proposals.proposal_boxes.tensor.tolist(),
        "logits": proposals.objectness_logits.tolist(),
    }


def unpack_proposals(packed: Mapping[str, Any]) -> Instances:
    """Undo ``pack_proposals``."""
    return Instances(
        tuple(packed["size"]),
        # The list of no box has no second axis.
        proposal_boxes=Boxes(torch.tensor(packed["boxes"]).reshape(-1, 4)),
        objectness_logits=torch.tensor(packed["logits"]),
    )
