"""The address of weights that come with the package."""

from detectron2.utils.file_io import PathManager

import clipself_d2  # noqa: F401  (registers the addresses)
from clipself_d2.parts.shipped_weights import FOLDER, PREFIX


def test_detectron2_reads_the_address() -> None:
    address = f"{PREFIX}emoji/fvit_clipself.pth"
    assert PathManager.isfile(address)
    assert PathManager.get_local_path(address) == str(FOLDER / "emoji" / "fvit_clipself.pth")
    with PathManager.open(address, "rb") as file:
        assert file.read(2) == b"PK"
    assert not PathManager.isfile(f"{PREFIX}emoji/nothing.pth")
