"""A transformer tower's blocks, split into the parts that a dense form puts together anew.

Legend: N images, D joint embedding, C width, A heads, E channels of a head, h w patch grid,
T tokens (class token first, where there is one).
"""

from abc import abstractmethod

from torch import Tensor, nn

from clipself_d2.clip.towers.attention import Heads, global_attention, merge_heads
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.clip.towers.dense_form import DenseForm

# Name of the gate in a tower's weights, below "visual.".
GATE = "dense_gate"


class BlockTower(VisionTower):
    """A tower whose blocks are transformer blocks, each split into heads, value and the rest.

    Attributes:
        num_prefix: Number of tokens before the patches: 1 with a class token, else 0.
        native: Grid (h, w) of the native input.
        reads_class_token: Whether the picture's embedding is the class token's.
    """

    num_prefix: int
    native: tuple[int, int]
    reads_class_token: bool

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn pixels (N, 3, H, W), whole patches, into (N, T, C) tokens with positions.

        Beside them the turns (T, 2E) of trunks that rotate, as of ``all_turns``.
        """

    @abstractmethod
    def heads(self, block: nn.Module, tokens: Tensor, rotary: Tensor | None) -> Heads:
        """Query, key and value of a block, (N, A, T, E) each; rotary None rotates nothing."""

    @abstractmethod
    def value(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Value of a block alone, heads side by side; (N, T, C) to (N, T, A * E)."""

    @abstractmethod
    def before_attention(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """What a block's query, key and value are made of; (N, T, C) to (N, T, C)."""

    @abstractmethod
    def attended(self, block: nn.Module, mixed: Tensor) -> Tensor:
        """Output projection, (N, T, A * E) to (N, T, C), as it is added to the input."""

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
        """The rest of a block: output projection of mixed values, residuals and MLP."""
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

    @property
    def gate(self) -> nn.Linear | None:
        """Learned weights of the heads in forms with a gate, C to A, or None."""
        return getattr(self.visual, GATE, None)

    def attach_gate(self) -> None:
        """Add a gate that weights all heads of all tokens by half, unless there is one."""
        if self.gate is None:
            block = self.block_modules[-1]
            # Device and number type of the tower, which may have been moved already.
            weight = next(block.parameters())
            gate = nn.Linear(self.width, block.attn.num_heads).to(weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
            setattr(self.visual, GATE, gate)

    def set_dense_form(self, form: DenseForm | str) -> None:
        """Choose the form of the dense path; one with a gate gets one, others lose it."""
        super().set_dense_form(form)
        if self.dense_form.gate:
            self.attach_gate()
        elif self.gate is not None:
            delattr(self.visual, GATE)

    def check_form(self, form: DenseForm) -> None:
        """Raise a ValueError unless the tower can have a form."""
        if form.residual == "class" and not self.num_prefix:
            raise ValueError(f"{self.name} has no class token for the form {form}; use clipself")
        if form.layers > self.num_blocks:
            raise ValueError(
                f"{form} sums {form.layers} blocks, and {self.name} has {self.num_blocks}"
            )

    def idle_parameters(self) -> list[nn.Parameter]:
        """Query, key and MLP of the last block where its form does not use them."""
        form, own = self.dense_form, self.own_parameters(self.block_modules[-1])
        # The difference binds before the union.
        idle = {"query", "key"} - form.reads | (set() if form.mlp else {"mlp"})
        return [parameter for part in sorted(idle) for parameter in own[part]]

    def idle_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Query and key of the last block where they share a matrix with the value."""
        idle = [
            number for number, name in enumerate(Heads._fields) if name not in self.dense_form.reads
        ]
        if not idle:
            return []
        # Idle parts are neighbours: key alone, query alone, or both.
        return [
            (parameter, slice(*(len(parameter) * n // 3 for n in (idle[0], idle[-1] + 1))))
            for parameter in self.shared_parameters(self.block_modules[-1])
        ]

    def freeze(self, trained_blocks: int = 0, *, behind: bool = True, parts: str = "all") -> None:
        """Freeze all but the last blocks, as ``VisionTower``; a gate learns with any of them."""
        super().freeze(trained_blocks, behind=behind, parts=parts)
        if self.gate is not None:
            self.gate.requires_grad_(trained_blocks != 0)
