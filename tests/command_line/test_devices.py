import pytest
import torch

from clipself_d2.command_line.devices import find_device

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@no_gpu
def test_a_configs_cuda_follows_the_machine_with_a_line(caplog: pytest.LogCaptureFixture) -> None:
    assert find_device("cuda", "MODEL.DEVICE", is_asked=False) == "cpu"
    assert "MODEL.DEVICE is cuda" in caplog.text
    assert len(caplog.records) == 1


@no_gpu
def test_a_gpu_that_was_asked_for_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda.*set MODEL\.DEVICE to cpu"):
        find_device("cuda", "MODEL.DEVICE", is_asked=True)


@pytest.mark.parametrize("device", ["banana", "meta", ""])
def test_what_is_no_place_to_compute_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=r"train\.device"):
        find_device(device, "train.device", is_asked=False)


def test_cpu_is_cpu() -> None:
    assert find_device("cpu", "x", is_asked=True) == "cpu"
