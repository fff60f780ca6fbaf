"""What a demo is given to look at: pictures, folders, patterns, videos and webcams."""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from clipself_d2.data.tar_shards import is_member

PICTURE_SUFFIXES = frozenset(
    [".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"]
)
VIDEO_SUFFIXES = frozenset(
    [".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"]
)
# Of cameras that do not say theirs.
DEFAULT_FPS = 25.0


def is_video(path: str | Path) -> bool:
    """Tell a video by its suffix.

    Args:
        path: File.

    Returns:
        Whether it is one.
    """
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Expand folders and patterns.

    Args:
        inputs: Files; folders, whose pictures and videos are taken in order of their names, without
            sub-folders; and patterns such as ``scenes/*.jpg`` or ``scenes/**/*.png``.

    Returns:
        Files, each once.

    Raises:
        FileNotFoundError: If a file is missing, or a folder or pattern gives nothing.
    """
    found: list[Path] = []
    for entry in inputs:
        path = Path(entry)
        if path.is_dir():
            found += _files_of(path)
        elif path.is_file() or is_member(str(entry)):
            found.append(path)
        elif glob.has_magic(str(entry)):
            matches = sorted(Path(name) for name in glob.glob(str(entry), recursive=True))
            files = [match for match in matches if match.is_file()]
            if not files:
                raise FileNotFoundError(f"--input {entry} matches no file")
            found += files
        else:
            raise FileNotFoundError(f"--input {entry} does not exist")
    return list(dict.fromkeys(found))


def _files_of(folder: Path) -> list[Path]:
    known = PICTURE_SUFFIXES | VIDEO_SUFFIXES
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in known)
    if not files:
        raise FileNotFoundError(
            f"--input {folder} has no picture or video ({', '.join(sorted(known))})"
        )
    return files


@dataclass(frozen=True)
class Film:
    """An open video or camera.

    Attributes:
        capture: OpenCV's reader.
        fps: Pictures a second.
    """

    capture: cv2.VideoCapture
    fps: float

    def frames(self, limit: int = 0) -> Iterator[np.ndarray]:
        """Read to the end.

        Args:
            limit: Most frames; 0 for all.

        Yields:
            (H, W, 3) uint8 RGB.
        """
        number = 0
        while not limit or number < limit:
            there, frame = self.capture.read()
            if not there:
                return
            number += 1
            yield frame[:, :, ::-1]


@contextmanager
def open_film(source: Path | int) -> Iterator[Film]:
    """Open a video file, or a camera by its number.

    Args:
        source: File, or number of a camera, 0 the first.

    Yields:
        The film.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is no video, or there is no such camera.
    """
    if isinstance(source, Path) and not source.is_file():
        raise FileNotFoundError(f"video {source} does not exist")
    level = cv2.utils.logging.getLogLevel()
    # OpenCV's own complaint would stand above ours.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    finally:
        cv2.utils.logging.setLogLevel(level)
    try:
        if not capture.isOpened():
            raise ValueError(
                f"there is no camera {source} to read from; check --webcam and the permissions"
                if isinstance(source, int)
                else f"video {source} cannot be decoded; replace the file"
            )
        fps = capture.get(cv2.CAP_PROP_FPS)
        yield Film(capture, fps if fps and np.isfinite(fps) and fps > 0 else DEFAULT_FPS)
    finally:
        capture.release()


class FilmWriter:
    """Writes an mp4 file, whose size is that of the first frame.

    Args:
        path: File to write.
        fps: Pictures a second.
    """

    def __init__(self, path: Path, fps: float) -> None:
        self.path = path
        self.fps = fps
        self._writer: cv2.VideoWriter | None = None

    def __enter__(self) -> "FilmWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.release()

    def add(self, frame: np.ndarray) -> None:
        """Append a frame.

        Args:
            frame: (H, W, 3) uint8 RGB; a last odd row or column is cut, as the codec asks.

        Raises:
            ValueError: If the file cannot be written.
        """
        height, width = (side - side % 2 for side in frame.shape[:2])
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), code, self.fps, (width, height))
            if not self._writer.isOpened():
                raise ValueError(f"{self.path} cannot be written; check the folder of --output")
        self._writer.write(np.ascontiguousarray(frame[:height, :width, ::-1]))
