"""Models that normalise their pictures themselves, as Detectron2's do."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class PixelModel(nn.Module):
    """A model with the mean and deviation (0 to 255) of its pixels, which are in no checkpoint."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            value = torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def moved(self, tensor: Tensor) -> Tensor:
        """Copy to the model's device, from pinned memory without waiting for what runs there."""
        # Towards the CPU torch would not wait for the values either.
        return tensor.to(self.device, non_blocking=self.device.type != "cpu")

    def normalise(self, pixels: Tensor) -> Tensor:
        """Subtract the mean and divide by the deviation; (..., 3, H, W), 0 to 255."""
        return (pixels - self.pixel_mean) / self.pixel_std
