"""A transformer tower's blocks, split into the parts that a dense form puts together anew.

Legend: N images, D joint embedding, C width, A heads, E channels of a head, h w patch grid,
T tokens (class token first, where there is one).
"""

from abc import abstractmethod

from torch import Tensor, nn

from clipself_d2.clip.towers.attention import Heads, global_attention, merge_heads
from clipself_d2.clip.towers.contract import VisionTower


class BlockTower(VisionTower):
    """A tower whose blocks are transformer blocks, each split into heads, value and the rest.

    Attributes:
        num_prefix: Number of tokens before the patches: 1 with a class token, else 0.
        reads_class_token: Whether the picture's embedding is the class token's.
    """

    num_prefix: int
    reads_class_token: bool

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn pixels into tokens.

        Args:
            images: (N, 3, H, W) with H and W multiples of the patch.

        Returns:
            (N, T, C) tokens with positions, and the rotary table (h * w, 2E) of trunks that rotate.
        """

    @abstractmethod
    def heads(self, block: nn.Module, tokens: Tensor, rotary: Tensor | None) -> Heads:
        """Query, key and value of a block.

        Args:
            block: One of ``block_modules``.
            tokens: (N, T, C), input of the block.
            rotary: Rotary table of the patches; None rotates nothing.

        Returns:
            (N, A, T, E) each.
        """

    @abstractmethod
    def value(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Value of a block alone, heads side by side; (N, T, C) to (N, T, A * E)."""

    @abstractmethod
    def before_attention(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """What a block's query, key and value are made of; (N, T, C) to (N, T, C)."""

    @abstractmethod
    def attended(self, block: nn.Module, mixed: Tensor) -> Tensor:
        """Output projection, as it is added to the block's input.

        Args:
            block: One of ``block_modules``.
            mixed: (N, T, A * E), values mixed by attention.

        Returns:
            (N, T, C).
        """

    @abstractmethod
    def feed_forward(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """The MLP of a block with its residual; (N, T, C) to (N, T, C)."""

    @abstractmethod
    def own_parameters(self, block: nn.Module) -> dict[str, list[nn.Parameter]]:
        """Parameters that serve the "query", the "key" or the "mlp" of a block alone."""

    @abstractmethod
    def shared_parameters(self, block: nn.Module) -> list[nn.Parameter]:
        """Parameters of which query, key and value have a third each, in this order."""

    def finish(self, block: nn.Module, tokens: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a block: output projection, residuals and MLP.

        Args:
            block: One of ``block_modules``.
            tokens: (N, T, C), input of the block.
            mixed: (N, T, A * E), values mixed by attention.

        Returns:
            (N, T, C).
        """
        return self.feed_forward(block, tokens + self.attended(block, mixed))

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Embed each token by itself; (N, ..., C) to (N, ..., D).

        For one token alone this is ``pool``: where the tower averages, the mean of one; where it
        pools by attention, that attention over one token, which passes the token's value.
        """

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """Embed the picture from the last block's tokens; (N, T, C) to (N, D)."""

    def run_block(self, block: nn.Module, tokens: Tensor, rotary: Tensor | None) -> Tensor:
        """Apply a block with its global self-attention; (N, T, C) to (N, T, C)."""
        mixed = global_attention(self.heads(block, tokens, rotary))
        return self.finish(block, tokens, merge_heads(mixed))
