"""A batch of a distillation and what the models make of it, as its terms ask.

Legend: N images, C channels, D joint embedding, h w grid, T = h * w cells, R regions.
"""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipself_d2.clip.towers.attention import merge_heads
from clipself_d2.distillation.base import Item, Scene

if TYPE_CHECKING:
    from clipself_d2.distillation.term_distiller import TermDistiller


class Batch:
    """A batch and what the models make of it, computed when a term first asks.

    Args:
        model: The distiller.
        items: The batch.
        student_RD: (R, D) unit-norm regions of the student, and what fills up the batch.
        scene: The rest of what the student made.
    """

    def __init__(
        self, model: "TermDistiller", items: list[Item], student_RD: Tensor, scene: Scene
    ) -> None:
        self.model, self.items, self.student_RD, self.scene = model, items, student_RD, scene
        self.grid = tuple(scene.dense.embedding.shape[-2:])

    @cached_property
    def count(self) -> float | Tensor:
        """Number of regions, the mean of all processes."""
        return self.model.loss_weight(self.items)

    @property
    def real_sizes(self) -> list[tuple[int, int]]:
        """Rows and columns of cells that lie in each picture as a whole."""
        patch = self.model.student.patch_size
        return [(max(1, h // patch), max(1, w // patch)) for h, w in self.scene.sizes]

    @cached_property
    def real(self) -> Tensor:
        """Which cells lie in the picture as a whole, none of them in the padding."""
        real = torch.zeros(len(self.scene.sizes), *self.grid, dtype=torch.bool)
        for mask, (rows, columns) in zip(real, self.real_sizes, strict=True):
            mask[:rows, :columns] = True
        return real.flatten(1).to(self.scene.images.device, non_blocking=True)

    @cached_property
    def vfm(self) -> Tensor:
        """(N, C, h, w) features of the vision foundation model for the student's cells."""
        assert self.model.vfm is not None, "a term that reads the model says so in needs"
        pixels = self.scene.images * self.model.pixel_std + self.model.pixel_mean
        features: Tensor = self.model.vfm(pixels, self.grid)
        return features

    @cached_property
    def clip(self) -> Tensor:
        """(N, D, h, w) dense map of the frozen original in the student's form, without its gate."""
        with torch.no_grad():
            form = replace(self.model.student.dense_form, gate=False)
            return self.model.teacher.forward_dense(self.scene.images, form=form).embedding

    def student(self, part: str) -> list[Tensor]:
        """Maps of the student, (N, C, h, w): one of "map", "query", "key", or two, "query_key"."""
        if part == "map":
            return [self.scene.dense.embedding]
        heads = self.scene.dense.heads
        assert heads is not None, "TermDistiller has checked the form"
        merged = [merge_heads(getattr(heads, name)) for name in part.split("_")]
        return [tokens.transpose(1, 2).unflatten(2, self.grid) for tokens in merged]
