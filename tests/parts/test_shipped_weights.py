"""The address of weights that come with the package."""

import pytest
import torch
from detectron2.utils.file_io import PathManager

import clipself_d2  # noqa: F401  (registers the addresses)
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.shipped_weights import FOLDER, PREFIX, TOWER_KEY


def test_detectron2_reads_the_address() -> None:
    address = f"{PREFIX}emoji/fvit_clipself.pth"
    assert PathManager.isfile(address)
    assert PathManager.get_local_path(address) == str(FOLDER / "emoji" / "fvit_clipself.pth")
    with PathManager.open(address, "rb") as file:
        assert file.read(2) == b"PK"
    assert not PathManager.isfile(f"{PREFIX}emoji/nothing.pth")


def test_an_address_does_not_lead_out_of_the_package(tmp_path) -> None:
    outside = tmp_path / "other.pth"
    torch.save({"model": {}}, outside)
    for path in (str(outside), f"{'../' * 20}{outside}", "emoji/nothing.pth"):
        assert not PathManager.isfile(PREFIX + path)
        with pytest.raises(FileNotFoundError, match="these do: clipself_d2://emoji/clipself"):
            PathManager.get_local_path(PREFIX + path)


def test_a_checkpoint_names_a_tower_of_the_package_alone(tmp_path) -> None:
    file = tmp_path / "packed.pth"
    torch.save({"model": {}, TOWER_KEY: f"{PREFIX}../other.pth", "dense_form": {}}, file)
    with pytest.raises(FileNotFoundError, match="does not come with the package"):
        SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(file))
