"""Files, folders, patterns, and films made here with OpenCV."""

import contextlib
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from clipself_d2.apps.predict.media import (
    check_readable,
    find_inputs,
    frame_rate,
    is_video,
    open_film,
    read_frames,
    write_film,
)

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Three frames, red, green and blue, at 5 a second, as Motion JPEG."""
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (32, 24))
    for colour in COLOURS:
        writer.write(np.full((24, 32, 3), colour[::-1], dtype=np.uint8))
    writer.release()
    return path


def test_a_film_gives_its_frames_in_rgb_and_its_speed(film: Path) -> None:
    with open_film(film) as opened:
        frames = list(read_frames(opened))
        assert frame_rate(opened) == pytest.approx(5)
    assert len(frames) == 3
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert frame.shape == (24, 32, 3)
        np.testing.assert_allclose(frame.mean((0, 1)), colour, atol=8)


def test_a_limit_ends_a_film(film: Path) -> None:
    with open_film(film) as opened:
        assert len(list(read_frames(opened, 2))) == 2


def test_a_written_film_is_what_browsers_play(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "out.mp4"
    with write_film(path, 10) as add:
        for colour in COLOURS:
            add(np.full((25, 33, 3), colour, dtype=np.uint8))
    with av.open(str(path)) as film:
        codec = film.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index stands at the front"
    with open_film(path) as opened:
        frames = list(read_frames(opened))
        assert frame_rate(opened) == pytest.approx(10)
    assert [frame.shape for frame in frames] == [(24, 32, 3)] * 3
    for frame, colour in zip(frames, COLOURS, strict=True):
        np.testing.assert_allclose(frame.mean((0, 1)), colour, atol=12)


def test_a_film_that_is_broken_off_can_be_read(tmp_path: Path) -> None:
    pytest.importorskip("av")
    with (
        contextlib.suppress(ZeroDivisionError),
        write_film(tmp_path / "out.mp4", 10) as add,
    ):
        for colour in COLOURS:
            add(np.full((24, 32, 3), colour, dtype=np.uint8))
        raise ZeroDivisionError
    with open_film(tmp_path / "out.mp4") as opened:
        assert len(list(read_frames(opened))) == 3


def test_without_pyav_films_are_refused_before_the_work(
    film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'clipself_d2\[video\]'"):
        check_readable([film])


def test_a_missing_camera_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="there is no camera 77"), open_film(77):
        pass
    assert capfd.readouterr().err == ""


def test_a_file_that_is_no_film_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no film")
    with (
        pytest.raises(ValueError, match=r"bad\.mp4 cannot be decoded"),
        open_film(tmp_path / "bad.mp4"),
    ):
        pass


def test_every_input_is_looked_at_before_the_work_begins(film: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    check_readable([tmp_path / "good.png", film])
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"image .*bad\.jpg cannot be decoded"):
        check_readable([tmp_path / "good.png", tmp_path / "bad.jpg"])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        check_readable([tmp_path / "gone.jpg"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.png", "a.JPG", "deep/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "film.mp4").write_bytes(b"x")
    return tmp_path / "in"


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_a_folder_gives_its_pictures_and_films_in_order(folder: Path) -> None:
    assert names(find_inputs([folder])) == ["a.JPG", "b.png", "film.mp4"]


def test_patterns_give_their_matches_once(folder: Path) -> None:
    assert names(find_inputs([f"{folder}/*.png", folder / "b.png"])) == ["b.png"]
    assert names(find_inputs([f"{folder}/**/*.png"])) == ["b.png", "c.png"]


def test_paths_of_the_home_folder_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert find_inputs(["~/b.png", "~/*.JPG"]) == [folder / "b.png", folder / "a.JPG"]


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path: Path) -> None:
    path = tmp_path / "scene[1].png"
    path.write_bytes(b"x")
    assert find_inputs([path]) == [path]


def test_inputs_that_give_nothing_are_named(folder: Path) -> None:
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty gives no picture or video"):
        find_inputs([folder / "empty"])
    with pytest.raises(FileNotFoundError, match=r"\*\.webp gives no"):
        find_inputs([f"{folder}/*.webp"])
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg gives no"):
        find_inputs([folder / "gone.jpg"])


def test_films_are_told_by_their_suffix() -> None:
    assert is_video(Path("a.MP4"))
    assert not is_video(Path("a.jpg"))
    assert is_video(0)


def test_names_that_begin_with_a_dot_are_passed_over(folder: Path) -> None:
    (folder / "._b.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / "folder.png").mkdir()
    assert names(find_inputs([folder])) == ["a.JPG", "b.png", "film.mp4"]
    with pytest.raises(FileNotFoundError, match="gives no picture"):
        find_inputs([f"{folder}/._*"])
