"""What a demo is given to look at: pictures, folders, patterns, videos and webcams."""

import glob
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import count, islice
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from clipself_d2.data.pictures import check_picture
from clipself_d2.data.tar_shards import IMAGE_SUFFIXES, is_hidden, is_member
from clipself_d2_cli.flags import user_path

VIDEO_SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv"}
# Of cameras that do not say theirs.
DEFAULT_FPS = 25.0


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Cut a stream of pictures into lists of ``size``, the last rather shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def is_video(source: Path | int) -> bool:
    """Tell videos, by their suffix, and cameras, by their number, from pictures."""
    return isinstance(source, int) or source.suffix.lower() in VIDEO_SUFFIXES


def find_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Expand folders and patterns to files, each once.

    Folders give their pictures and videos in order of their names, without sub-folders; patterns
    are such as ``scenes/*.jpg`` or ``scenes/**/*.png``. Of both, names that begin with a dot are
    passed over.
    """
    found: list[Path] = []
    for entry in inputs:
        path = user_path(str(entry))
        if path.is_file() or is_member(str(entry)):
            found.append(path)
            continue
        if path.is_dir():
            known = VIDEO_SUFFIXES.union(IMAGE_SUFFIXES)
            files = [file for file in path.iterdir() if file.suffix.lower() in known]
        else:
            files = [Path(name) for name in glob.glob(str(path), recursive=True)]
        files = [file for file in files if file.is_file() and not is_hidden(file.name)]
        if not files:
            raise FileNotFoundError(f"--input {entry} gives no picture or video")
        found += sorted(files)
    return list(dict.fromkeys(found))


def check_readable(sources: Sequence[Path | int]) -> None:
    """Look at the beginning of every input, before any of them is worked on.

    Videos need PyAV, which writes them.
    """
    for source in sources:
        if is_video(source):
            _import_av()
            with open_film(source):
                continue
        if not is_member(str(source)):
            check_picture(str(source))


@contextmanager
def open_film(source: Path | int) -> Iterator[cv2.VideoCapture]:
    """Open a video file, or a camera by its number, 0 the first, with OpenCV's reader."""
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
        yield capture
    finally:
        capture.release()


def frame_rate(film: cv2.VideoCapture) -> float:
    """Tell the speed of a film, pictures a second."""
    fps = film.get(cv2.CAP_PROP_FPS)
    return fps if np.isfinite(fps) and fps > 0 else DEFAULT_FPS


def read_frames(film: cv2.VideoCapture, limit: int = 0) -> Iterator[np.ndarray]:
    """Read a film to its end or to the limit, 0 for none: (H, W, 3) uint8 RGB frames."""
    for _ in islice(count(), limit or None):
        there, frame = film.read()
        if not there:
            return
        # OpenCV reads BGR.
        yield frame[:, :, ::-1]


@contextmanager
def write_film(path: Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an mp4 file of H.264, which browsers play, in the size of the first frame.

    Yields a function that appends a frame, (H, W, 3) uint8 RGB; a last odd row or column is cut, as
    the codec asks.
    """
    av = _import_av()
    # The index stands at the front, so that a browser need not load the whole file before it plays.
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        # Cameras give rates such as 29.97002997.
        stream = container.add_stream("h264", rate=Fraction(fps).limit_denominator(1001))
        stream.pix_fmt = "yuv420p"

        def add(frame: np.ndarray) -> None:
            height, width = (side - side % 2 for side in frame.shape[:2])
            if not stream.codec_context.is_open:
                stream.height, stream.width = height, width
            pixels = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))

        try:
            yield add
        finally:
            if stream.codec_context.is_open:
                container.mux(stream.encode(None))


def _import_av() -> ModuleType:
    try:
        import av  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(
            "videos are written by PyAV, which is not installed; pip install 'clipself_d2[video]'"
        ) from error
    return av
