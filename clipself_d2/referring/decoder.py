"""CRIS's vision-language decoder.

Legend: N pairs of image and sentence, S cells, T tokens, C channels, h w grid.
"""

from torch import Tensor, nn

from clipself_d2.layers.positions import line_positions, map_positions


class CrisDecoder(nn.Module):
    """Transformer decoder whose queries are the cells and whose memory is the words.

    Args:
        num_layers: Number of layers, at least 1.
        dim: Channels C of the cells, a multiple of 4.
        num_heads: Attention heads.
        ffn_dim: Hidden width of the feed-forward network.
        dropout: Share of channels dropped in training.
        word_dim: Channels of the words; where they are not C, a linear layer makes them so. None
            is C.

    Raises:
        ValueError: If there is no layer, or the width does not divide.

    Reference: Wang et al., CRIS, arXiv 2111.15174, section 3.3. As in the released code, and beyond
    the paper's formulas: the output of each attention and the hidden layer of the feed-forward
    network pass a LayerNorm. Positions are added to queries and keys, never to values.
    """

    def __init__(
        self,
        *,
        num_layers: int = 3,
        dim: int = 512,
        num_heads: int = 8,
        ffn_dim: int = 2048,
        dropout: float = 0.1,
        word_dim: int | None = None,
    ) -> None:
        super().__init__()
        if num_layers < 1 or dim % 4 or dim % num_heads:
            raise ValueError(
                f"{num_layers} layers of {dim} channels with {num_heads} heads; the decoder needs "
                "a layer at least, and a width divisible by 4 and by the heads: change "
                "MODEL.CRIS.NUM_LAYERS or FPN_OUT"
            )
        self.layers = nn.ModuleList(
            CrisDecoderLayer(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        is_same = word_dim is None or word_dim == dim
        self.word_proj = nn.Identity() if is_same else nn.Linear(word_dim or dim, dim)

    def forward(self, features: Tensor, words: Tensor, padding: Tensor) -> Tensor:
        """Let every cell (N, C, h, w) attend to all cells, then to the words (N, T, C).

        ``padding`` (N, T) bool is True where a token is padding.
        """
        grid = (features.shape[2], features.shape[3])
        cells_SNC = features.flatten(2).permute(2, 0, 1)
        words_TNC = self.word_proj(words).transpose(0, 1)
        dim, device = features.shape[1], features.device
        cell_positions = map_positions(grid, dim, device)[:, None].to(features.dtype)
        word_positions = line_positions(words_TNC.shape[0], dim, device)[:, None].to(
            words_TNC.dtype
        )
        for layer in self.layers:
            cells_SNC = layer(cells_SNC, words_TNC, padding, cell_positions, word_positions)
        return self.norm(cells_SNC).permute(1, 2, 0).unflatten(2, grid)


class CrisDecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward network, each with a residual."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn_norm = nn.LayerNorm(dim)
        self.cross_attn_norm = nn.LayerNorm(dim)
        self.self_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.multihead_attn = nn.MultiheadAttention(dim, num_heads, dropout=dropout)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn_dim),
            nn.Linear(ffn_dim, dim),
        )
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        cells_SNC: Tensor,
        words_TNC: Tensor,
        padding: Tensor,
        cell_positions: Tensor,
        word_positions: Tensor,
    ) -> Tensor:
        """Apply the layer: (S, N, C), before the decoder's last norm."""
        normed = self.norm1(cells_SNC)
        query = normed + cell_positions
        attended = self.self_attn(query, query, normed, need_weights=False)[0]
        cells_SNC = cells_SNC + self.dropout(self.self_attn_norm(attended))
        query = self.norm2(cells_SNC) + cell_positions
        attended = self.multihead_attn(
            query,
            words_TNC + word_positions,
            words_TNC,
            key_padding_mask=padding,
            need_weights=False,
        )[0]
        cells_SNC = cells_SNC + self.dropout(self.cross_attn_norm(attended))
        output: Tensor = cells_SNC + self.dropout(self.ffn(self.norm3(cells_SNC)))
        return output
