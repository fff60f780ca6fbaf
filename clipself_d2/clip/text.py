"""CLIP's text tower.

Legend: N sentences, T tokens, D joint embedding.
"""

import re
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Tokenizer = Callable[[list[str]], Tensor]


class TextEncoder(nn.Module):
    """Text side of an open_clip model.

    Args:
        model: An open_clip model; its image tower is dropped.
        tokenizer: open_clip's tokenizer of that model.
        embed_dim: Width D of the joint embedding.
        known_words: Words of its training text where that is a short list; None for CLIPs trained
            on web text.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        tokenizer: Tokenizer,
        embed_dim: int,
        known_words: frozenset[str] | None = None,
    ) -> None:
        super().__init__()
        model.visual = nn.Identity()
        self.model = model
        self.embed_dim = embed_dim
        self._tokenizer = tokenizer
        self._known_words = known_words

    @property
    def context_length(self) -> int:
        """Number of tokens of a sentence, start and end included."""
        return int(self.model.context_length)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Turn sentences into token ids.

        Args:
            texts: N sentences; longer ones than the context are cut.

        Returns:
            (N, T) int64.
        """
        return self._tokenizer(list(texts))

    def forward(self, tokens_NT: Tensor) -> Tensor:
        """Embed tokens.

        Args:
            tokens_NT: (N, T) token ids.

        Returns:
            (N, D), not normalised.
        """
        return self.model.encode_text(tokens_NT)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Embed sentences.

        Args:
            texts: N sentences; N may be 0.
            batch_size: Sentences at a time.

        Returns:
            (N, D) float32 of unit norm.
        """
        device = next(self.parameters()).device
        encoded = [torch.zeros(0, self.embed_dim)]
        for start in range(0, len(texts), batch_size):
            tokens = self.tokenize(texts[start : start + batch_size]).to(device)
            encoded.append(F.normalize(self(tokens).float(), dim=1).cpu())
        return torch.cat(encoded)

    def unseen_words(self, texts: Sequence[str]) -> list[str]:
        """List words that the model never read in training.

        Args:
            texts: Class names or sentences.

        Returns:
            Lower-case words in order of appearance; empty for CLIPs trained on web text.
        """
        if self._known_words is None:
            return []
        words = re.findall(r"[^\W_]+", " ".join(texts).lower())
        return [word for word in dict.fromkeys(words) if word not in self._known_words]
