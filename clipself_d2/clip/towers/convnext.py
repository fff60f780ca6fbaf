"""Tower over timm's ConvNeXt, as open_clip builds convnext_base to convnext_xxlarge.

Legend: N images, D joint embedding, C width, H W pixels, h w cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipself_d2.clip.precision import compute_context
from clipself_d2.clip.towers.contract import DenseFeatures, VisionTower
from clipself_d2.clip.towers.dense_form import DenseForm


class ConvNeXtTower(VisionTower):
    """Tower of ``open_clip.timm_model.TimmModel`` around ``timm.models.convnext.ConvNeXt``.

    The dense map is the projected feature map: norm and head on each cell of the last stage instead
    of on their average. Blocks are those of the last stage, whose outputs lie on that map. There is
    no attention, so both forms of the last block are the block as it was trained.

    Arguments are those of ``VisionTower``.

    Raises:
        ValueError: If the trunk does not average its last map.

    Reference: the convolutional CLIP of FC-CLIP, arXiv 2308.02487, section 3.3.
    """

    visual: TimmModel

    def read_visual(self) -> None:
        """Take the last stage for the blocks."""
        visual, name = self.visual, self.name
        trunk = visual.trunk
        if trunk.head.global_pool.pool_type != "avg":
            raise ValueError(f"{name} is a ConvNeXt that does not average its last map")
        # Without a matrix behind the trunk it is the trunk's own head that projects.
        linears = [part for part in visual.head.modules() if isinstance(part, nn.Linear)]
        self.path = "ConvNeXt: norm and head of each cell of the last map"
        self.width = int(trunk.num_features)
        self.embed_dim = int(linears[-1].out_features if linears else trunk.num_classes)
        self.patch_size = int(trunk.feature_info[-1]["reduction"])
        self.num_blocks = len(trunk.stages[-1].blocks)
        self.image_size = int(visual.image_size[0])

    @property
    def block_modules(self) -> list[nn.Module]:
        """Blocks of the last stage, in order."""
        return list(self.visual.trunk.stages[-1].blocks)

    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures, as ``VisionTower``."""
        trunk = self.visual.trunk
        images = self.pad(images)
        with compute_context(images.device, self.precision):
            features = trunk.forward_features(images)
            embedding: Tensor = self.visual.head(trunk.forward_head(features))
        return embedding.float()

    def forward_dense(
        self, images: Tensor, blocks: Sequence[int] = (), form: DenseForm | str | None = None
    ) -> DenseFeatures:
        """Embed every cell of the last map, of 32 px, as ``VisionTower``; both forms are one."""
        self.check_dense(blocks, form)
        trunk = self.visual.trunk
        images = self.pad(images)
        outputs: dict[int, Tensor] = {}
        with compute_context(images.device, self.precision):
            features = trunk.stem(images)
            for stage in trunk.stages:
                features = self._run(stage.downsample, features)
                for number, block in enumerate(stage.blocks):
                    features = self._run(block, features)
                    if stage is trunk.stages[-1] and number in blocks:
                        outputs[number] = features
            embedding = self._project(trunk.norm_pre(features))
        embedding = F.normalize(embedding.float(), dim=1)
        return DenseFeatures(embedding, tuple(outputs[number].float() for number in blocks))

    def outer_parameters(self) -> list[nn.Parameter]:
        """Stem, the stages before the last, its downsampling, and norms outside the blocks."""
        trunk = self.visual.trunk
        modules = [trunk.stem, *trunk.stages[:-1], trunk.stages[-1].downsample, trunk.norm_pre]
        modules.append(_head_norm(trunk))
        return [parameter for module in modules for parameter in module.parameters()]

    def _project(self, features: Tensor) -> Tensor:
        """The pooled head, cell by cell; (N, C, h, w) to (N, D, h, w)."""
        head = self.visual.trunk.head
        # Matrices act on the last axis: (N, h, w, C).
        cells = _head_norm(self.visual.trunk)(features).permute(0, 2, 3, 1)
        if hasattr(head, "pre_logits"):
            cells = head.pre_logits(cells)
        embedding: Tensor = self.visual.head(head.fc(head.drop(cells)))
        return embedding.permute(0, 3, 1, 2)

    def _run(self, module: nn.Module, features: Tensor) -> Tensor:
        """Run a module, recomputed in the backward pass where that is asked."""

        def step(features: Tensor) -> Tensor:
            # The backward pass runs outside the caller's context.
            with compute_context(features.device, self.precision):
                output: Tensor = module(features)
                return output

        if self.checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(step, features, use_reentrant=False)
            return output
        return step(features)


def _head_norm(trunk: ConvNeXt) -> nn.Module:
    """The norm behind the pool; trunks that have theirs before it have none here."""
    norm: nn.Module = getattr(trunk.head, "norm", nn.Identity())
    return norm
