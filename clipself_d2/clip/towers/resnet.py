"""Tower over open_clip's ModifiedResNet: CLIP's RN50, RN101 and their wider kin.

Legend: N images or regions, D joint embedding, C channels, H W pixels, h w cells, S cells + 1.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from open_clip.modified_resnet import AttentionPool2d, ModifiedResNet
from torch import Tensor, nn

from clipself_d2.clip.precision import compute_context
from clipself_d2.clip.towers.contract import DenseFeatures, VisionTower
from clipself_d2.clip.towers.dense_form import DenseForm
from clipself_d2.clip.towers.positions import native_grid, resize_positions

# Pixels per cell of each stage, and how many times the stem's channels it has.
STAGE_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
STAGES = tuple(STAGE_STRIDES)
NORMS = ("BN", "SyncBN", "FrozenBN")
# Regions that pass the last stage at once.
REGION_BATCH = 512


class ResNetTower(VisionTower):
    """A CLIP ResNet, stage by stage, with both forms of its attention pool.

    Its blocks are the four stages, whose outputs have strides of their own; its dense map is the
    attention pool with every cell of the last stage as a query. The stages are separate methods, so
    that a detector can run ``forward_res5`` and ``pool`` on features of regions.

    Arguments are those of ``VisionTower``.

    Attributes:
        channels: Channels of each stage by name, ``res2`` to ``res5``.
        norm: How batch norms behave in training: FrozenBN, the stored statistics, or what
            ``set_norm`` chose.

    Raises:
        ValueError: If the tower has no attention pool.

    Reference: Radford et al., arXiv 2103.00020, section 2.4.
    """

    visual: ModifiedResNet
    patch_size: int = STAGE_STRIDES["res5"]
    num_blocks: int = len(STAGES)
    path: str = "ResNet: attention pool with each cell of the last stage as a query"
    norm: str = "FrozenBN"
    _reads_pool: bool = True

    def read_visual(self) -> None:
        """Read the channels of the stages and the pool's grid."""
        visual, name = self.visual, self.name
        if not isinstance(visual.attnpool, AttentionPool2d):
            raise ValueError(f"{name} has no attention pool; choose RN50-quickgelu or its kin")
        pool = visual.attnpool
        self.embed_dim, width = int(pool.c_proj.out_features), int(pool.c_proj.in_features)
        self.width = width
        self.channels = {"res2": width // 8, "res3": width // 4, "res4": width // 2, "res5": width}
        native = native_grid(len(pool.positional_embedding) - 1, name)
        self.image_size = native[0] * STAGE_STRIDES["res5"]
        # Twice the grid of the pool, which the last stage halves, so that its positions fit.
        self.region_grid = 2 * native[0]

    @property
    def block_modules(self) -> list[nn.Module]:
        """The stages res2 to res5."""
        return [getattr(self.visual, f"layer{number}") for number in range(1, len(STAGES) + 1)]

    @property
    def block_channels(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.channels.values())

    @property
    def block_strides(self) -> tuple[int, ...]:
        """Pixels per cell of each stage."""
        return tuple(STAGE_STRIDES.values())

    def outer_parameters(self) -> list[nn.Parameter]:
        """The stem and the attention pool."""
        visual = self.visual
        stem = (visual.conv1, visual.bn1, visual.conv2, visual.bn2, visual.conv3, visual.bn3)
        return [p for module in (*stem, visual.attnpool) for p in module.parameters()]

    def freeze(self, trained_blocks: int = 0, *, behind: bool = True, parts: str = "all") -> None:
        """Freeze all but the last stages, as ``VisionTower``; the pool learns if it is read.

        3 trained stages are Detectron2's FREEZE_AT 2, with the stem and res2 frozen.
        """
        self._reads_pool = behind
        super().freeze(trained_blocks, behind=behind, parts=parts)
        self.visual.attnpool.requires_grad_(behind and trained_blocks != 0)
        if self.norm == "FrozenBN":
            for module in self._norms():
                module.requires_grad_(False)

    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures, as ``VisionTower``."""
        return self.pool(self.forward_stages(images)["res5"])

    def forward_dense(
        self, images: Tensor, blocks: Sequence[int] = (), form: DenseForm | str | None = None
    ) -> DenseFeatures:
        """Embed every cell of the last stage, of 32 px, as ``VisionTower``; block 0 is res2."""
        self.check_dense(blocks, form)
        stages = self.forward_stages(self.pad(images))
        embedding = F.normalize(self.pool_dense(stages["res5"]), dim=1)
        return DenseFeatures(embedding, tuple(stages[STAGES[number]] for number in blocks))

    def region_map(self, images: Tensor) -> Tensor:
        """Run the stages up to ``res4``, (N, C4, h, w) float32, which regions are cut from."""
        return self.forward_stages(images, last="res4")["res4"]

    @property
    def region_stride(self) -> int:
        """Pixels per cell of ``region_map``."""
        return STAGE_STRIDES["res4"]

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Run the last stage and the pool on regions (R, C4, g, g) cut from ``res4``; to (R, D).

        g is ``region_grid``: 14 for RN50, 18 for RN50x4.

        Reference: RegionCLIP, arXiv 2112.09106, section 3.1.
        """
        # Thousands of proposals at once would fill the memory; no regions make one empty part.
        parts = [self.pool(self.forward_res5(part)) for part in torch.split(pooled, REGION_BATCH)]
        return torch.cat(parts)

    def embed_cells(self, region_map: Tensor) -> Tensor:
        """Run the last stage, and the pool with every cell as a query, to unit norm."""
        return F.normalize(self.pool_dense(self.forward_res5(region_map)), dim=1)

    def forward_stages(self, images: Tensor, last: str = "res5") -> dict[str, Tensor]:
        """Run the stem and the stages up to one: (N, C, H / stride, W / stride) float32 by name.

        Sides are best multiples of the last stride; a picture with a side below it is padded.
        """
        outputs = {}
        images = self.take(images)
        if min(images.shape[2:]) < self.patch_size:
            images = self.pad(images)
        with compute_context(images.device, self.precision):
            features = self.visual.stem(images)
            for number, stage in enumerate(STAGES, start=1):
                features = getattr(self.visual, f"layer{number}")(features)
                outputs[stage] = features.float()
                if stage == last:
                    break
        return outputs

    def forward_res5(self, features: Tensor) -> Tensor:
        """Run the last stage on features of images or of regions, (N, C4, h, w); N may be 0."""
        with compute_context(features.device, self.precision):
            output: Tensor = self.visual.layer4(self.cast(features))
        return output.float()

    def pool(self, features: Tensor) -> Tensor:
        """Attend from the mean over the cells (N, C5, h, w) to all cells: CLIP's own pooling.

        (N, D) float32, not normalised; positions are resized to any grid.
        """
        with compute_context(features.device, self.precision):
            return attend_mean(self.cast(features), self.visual.attnpool).float()

    def pool_dense(self, features: Tensor) -> Tensor:
        """Attend from every cell to all cells, as ``pool``: (N, D, h, w)."""
        with compute_context(features.device, self.precision):
            return attend_cells(self.cast(features), self.visual.attnpool).float()

    def set_norm(self, norm: str) -> None:
        """Choose what the batch norms do in training.

        "BN": statistics of the process's batch; "SyncBN": of all processes; "FrozenBN": the stored
        statistics, and weights that are not trained.
        """
        if norm not in NORMS:
            raise ValueError(f"norm of {self.name} is {norm!r}, expected one of {NORMS}")
        self.norm = norm
        if norm == "SyncBN":
            self.visual = nn.SyncBatchNorm.convert_sync_batchnorm(self.visual)  # type: ignore[no-untyped-call]
        # Norms are trained, or not, with the stages that they stand in.
        self.freeze(self.trained_blocks, behind=self._reads_pool)
        self.train(self.training)

    def train(self, mode: bool = True) -> "ResNetTower":
        """Set the mode; frozen norms stay in eval mode."""
        super().train(mode)
        if self.norm == "FrozenBN":
            for module in self._norms():
                module.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]


class DenseAttentionPool(nn.Module):
    """CRIS's attention pool: every cell a query, with a residual branch.

    The attention's weights stay those of the tower; the module owns the branch alone, a 1 x 1
    convolution and a norm on the features without positions.

    Args:
        in_dim: Channels of ``res5``.
        embed_dim: Width D of the joint embedding.
        make_norm: From a number of channels to the branch's norm.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.1 names the ResNet's feature maps; the
    dense pool and its branch are those of the released code.
    """

    def __init__(
        self, in_dim: int, embed_dim: int, make_norm: Callable[[int], nn.Module] = nn.BatchNorm2d
    ) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_dim, embed_dim, kernel_size=1, bias=False)
        self.connect = nn.Sequential(convolution, make_norm(embed_dim))

    def forward(self, features: Tensor, attended: Tensor) -> Tensor:
        """Add the branch on (N, C, h, w) to attended cells (N, D, h, w); none below 0."""
        return F.relu(attended + self.connect(features))


def attend_mean(features: Tensor, pool: AttentionPool2d) -> Tensor:
    """Pool (N, C, h, w) with one query, the mean of the cells: (N, D); N may be 0."""
    positions = _positions(pool, (features.shape[2], features.shape[3]))
    cells_SNC = features.flatten(2).permute(2, 0, 1)
    cells_SNC = torch.cat([cells_SNC.mean(dim=0, keepdim=True), cells_SNC])
    cells_SNC = cells_SNC + positions[:, None].to(cells_SNC.dtype)
    return _attend(cells_SNC[:1], cells_SNC, pool)[0]


def attend_cells(features: Tensor, pool: AttentionPool2d) -> Tensor:
    """Attend with every cell as a query, without the mean's token: (N, C, h, w) to (N, D, h, w)."""
    height, width = features.shape[2:]
    positions = _positions(pool, (height, width))[1:]
    cells_SNC = features.flatten(2).permute(2, 0, 1)
    cells_SNC = cells_SNC + positions[:, None].to(cells_SNC.dtype)
    attended_SND = _attend(cells_SNC, cells_SNC, pool)
    count, channels = features.shape[0], attended_SND.shape[2]
    return attended_SND.permute(1, 2, 0).reshape(count, channels, height, width)


def _positions(pool: AttentionPool2d, grid: tuple[int, int]) -> Tensor:
    # Row 0 is the mean's; open_clip's own pool takes the native grid only.
    table = pool.positional_embedding
    return resize_positions(table, native_grid(len(table) - 1, "the attention pool"), grid)


def _attend(query_SNC: Tensor, cells_SNC: Tensor, pool: AttentionPool2d) -> Tensor:
    def split(tokens: Tensor) -> Tensor:
        shape = (*tokens.shape[:2], pool.num_heads, tokens.shape[2] // pool.num_heads)
        return tokens.reshape(shape).permute(1, 2, 0, 3)  # (N, A, S, E)

    attended = F.scaled_dot_product_attention(
        split(pool.q_proj(query_SNC)), split(pool.k_proj(cells_SNC)), split(pool.v_proj(cells_SNC))
    )
    output: Tensor = pool.c_proj(attended.permute(2, 0, 1, 3).flatten(2))
    return output
