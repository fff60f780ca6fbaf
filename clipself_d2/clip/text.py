"""CLIP's text tower.

Legend: N texts, T tokens, D joint embedding.
"""

import logging
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from clipself_d2.clip.fine_tuning import HeldRows, restrict_training

logger = logging.getLogger(__name__)

# Characters of a text that a message shows.
_SHOWN = 60
# Texts at a time where small batches would leave the device waiting.
_BATCH_SIZES = {"cuda": 4096}
# Of these characters (ASCII without entities) open_clip's cleaning changes the case and spaces
# alone, so that words can be cleaned one by one.
_LOWER, _PLAIN = get_clean_fn("lower"), re.compile("[ -%'-~]*")


class TextEncoder(nn.Module):
    """Text tower with its tokenizer.

    Args:
        clip: open_clip's model; its image tower may be gone.
        tokenizer: open_clip's tokenizer, from a list of texts to (N, T) token numbers.
        embed_dim: Width D of the joint embedding.
        closed_words: Whether the model has read only the words that its byte-pair merges make
            whole, as a CLIP trained on made-up captions has.
    """

    def __init__(
        self,
        *,
        clip: CLIP | CustomTextCLIP,
        tokenizer: Callable[..., Tensor],
        embed_dim: int,
        closed_words: bool = False,
    ) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.embed_dim = embed_dim
        self.closed_words = closed_words
        # Rows of trained parameters that stay as they are, as of ``restrict_training``.
        self.held_rows: HeldRows = []

    @property
    def context_length(self) -> int:
        """Longest text in tokens, start and end included."""
        return int(self.clip.context_length)

    def freeze(self, trained_blocks: int = 0, *, parts: str = "all") -> None:
        """Freeze all but the last blocks, by the grammar of the image towers.

        Args:
            trained_blocks: Number of last blocks that are trained, with the final norm and the
                projection; 0 freezes the tower, -1 trains all of it. The logit's scale and bias
                are of CLIP's own loss and always frozen.
            parts: What of that is trained: "all", "attention" or "query_value".

        Raises:
            ValueError: If the tower has fewer blocks, or no such parts.
        """
        self.requires_grad_(False)
        self.held_rows.clear()
        if trained_blocks == 0:
            return
        part = self._text_part()
        # Text towers of other libraries have no blocks that are known here.
        blocks = getattr(getattr(part, "transformer", None), "resblocks", ())
        if trained_blocks > len(blocks):
            raise ValueError(
                f"the text tower has {len(blocks)} blocks, not {trained_blocks}; -1: all"
            )
        if trained_blocks < 0:
            self.requires_grad_(True)
        else:
            for module in (*blocks[len(blocks) - trained_blocks :], part.ln_final):
                module.requires_grad_(True)
            part.text_projection.requires_grad_(True)
        for name, parameter in self.named_parameters():
            if "logit_" in name:
                parameter.requires_grad_(False)
        self.held_rows = restrict_training(self, parts)

    @property
    def reads_end_token(self) -> bool:
        """Whether a text's embedding is that of its end token, which sees only what precedes.

        The end token is then the largest number of a text, and what follows is padding that changes
        nothing, so that texts can be cut behind it.
        """
        part = self._text_part()
        if not isinstance(part, CLIP | TextTransformer):
            return False
        pooling = part.text_pool_type if isinstance(part, CLIP) else part.pool_type
        plain = part.attn_mask is not None and part.text_projection is not None
        return plain and pooling == "argmax" and getattr(part, "cls_emb", None) is None

    @property
    def word_dim(self) -> int:
        """Width C of the word features."""
        return int(self._text_part().ln_final.normalized_shape[0])

    def tokenize(self, texts: Sequence[str], context_length: int | None = None) -> Tensor:
        """Turn texts into token numbers.

        Args:
            texts: Texts; what exceeds the context length is cut off.
            context_length: T, start and end included; None is the model's own.

        Returns:
            (N, T) int64 on the CPU, zero behind the end token.

        Raises:
            ValueError: If the texts are one text, or anything but texts.
        """
        # A text is a sequence too: its letters would be embedded.
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"texts are a list of strings, got {str(texts)[:_SHOWN]!r}")
        length = self.context_length if context_length is None else context_length
        if not texts:
            return torch.zeros((0, length), dtype=torch.long)
        tokenizer: Any = self.tokenizer
        if type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None:
            return _tokenize_words(tokenizer, texts, length)
        return tokenizer(list(texts), context_length=length)  # type: ignore[no-any-return]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed (N, T) token numbers: (N, D), not normalised."""
        embedding: Tensor = self.clip.encode_text(tokens)
        return embedding

    def word_features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Embed every token, and the text; for towers that ``reads_end_token`` is true of.

        Args:
            tokens: (N, T) token numbers, T at most ``context_length``.

        Returns:
            (N, T, C) after the final norm, not projected, and (N, D), the projected row of the end
            token, not normalised: what ``forward`` gives for the same text.
        """
        length = tokens.shape[1]
        part = self._text_part()
        # open_clip adds the whole position table, so its own pass takes full length only.
        embedded = part.token_embedding(tokens) + part.positional_embedding[:length]
        mask = None if part.attn_mask is None else part.attn_mask[:length, :length]
        words = part.ln_final(part.transformer(embedded, attn_mask=mask))
        # The end token has the largest number.
        last = words[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=1)]
        projection = part.text_projection
        state = projection(last) if isinstance(projection, nn.Linear) else last @ projection
        return words, state

    def _text_part(self) -> CLIP | TextTransformer:
        part: CLIP | TextTransformer = getattr(self.clip, "text", self.clip)
        return part

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str],
        batch_size: int | None = None,
        on_batch: Callable[[int], object] | None = None,
    ) -> Tensor:
        """Embed texts without gradient.

        A causal tower does not see what follows the end token, so texts of like length go together
        and the padding behind the longest of a batch is left out.

        Args:
            texts: Any number of texts.
            batch_size: Texts at a time; None: as many as keep the device busy.
            on_batch: Called after each batch with its number of texts, such as to show progress.

        Returns:
            (N, D) unit-norm float32 on the device of the weights.

        Raises:
            ValueError: As ``tokenize``.
        """
        device = self.clip.logit_scale.device
        tokens = self.tokenize(texts)
        embedded = torch.zeros((len(texts), self.embed_dim), device=device)
        if not len(texts):
            return embedded
        self.warn_of_cut(texts, tokens)
        lengths = torch.full((len(tokens),), tokens.shape[1])
        if self.reads_end_token:
            lengths = tokens.argmax(dim=1) + 1
        # Ascending, so that the last row of a batch is its longest.
        order = lengths.argsort(stable=True)
        for rows in torch.split(order, batch_size or _BATCH_SIZES.get(device.type, 256)):
            length = int(lengths[rows[-1]])
            batch = tokens[rows, :length].to(device, non_blocking=True)
            short = length < tokens.shape[1]
            features = self.word_features(batch)[1] if short else self(batch)
            embedded[rows.to(device, non_blocking=True)] = F.normalize(features.float(), dim=1)
            if on_batch is not None:
                on_batch(len(rows))
        return embedded

    def warn_of_cut(self, texts: Sequence[str], tokens: Tensor) -> None:
        """Warn of texts whose end the tower does not read; (N, T) tokens are ``tokenize``'s."""
        length = tokens.shape[1]
        # Tokenizers of other libraries may fill up with another number than 0.
        padding = 0 if self.reads_end_token else int(self.tokenize([""])[0, -1])
        full = (tokens[:, -1] != padding).nonzero()[:, 0].tolist()
        # What fills the context may just fit: one more token then finds nothing to hold.
        longer = self.tokenize([texts[number] for number in full], length + 1)
        changed = (longer[:, :-1] != tokens[full]).any(1) | (longer[:, -1] != padding)
        cut = [texts[number] for number in compress(full, changed.tolist())]
        if cut:
            logger.warning(
                "%d of %d texts are longer than the %d tokens that the text tower reads, and cut: "
                "%r and others",
                len(cut),
                len(texts),
                length,
                f"{cut[0][:_SHOWN]}...",
            )

    def unseen_words(self, texts: Sequence[str]) -> list[str]:
        """List lower-case words that the model cannot know, in order of appearance.

        They fall apart into several tokens; there is none for a CLIP trained on text of the web.
        """
        if not self.closed_words or not isinstance(self.tokenizer, SimpleTokenizer):
            return []
        words = [word for text in texts for word in re.findall(r"[^\W_]+", text.lower())]
        return [word for word in dict.fromkeys(words) if len(self.tokenizer.encode(word)) > 1]


def _tokenize_words(tokenizer: SimpleTokenizer, texts: Sequence[str], length: int) -> Tensor:
    """What the tokenizer gives, with the tokens of a word looked up once.

    The prompts of a large vocabulary are few words again and again, each of which open_clip cleans
    and splits anew.
    """
    rows = np.zeros((len(texts), length), np.int64)
    is_plain = tokenizer.clean_fn == _LOWER
    for row, text in zip(rows, texts, strict=True):
        if is_plain and _PLAIN.fullmatch(text):
            words = tokenizer.pat.findall(text.lower())
            inner = [number for word in words for number in _word_tokens(tokenizer, word)]
        else:
            inner = tokenizer.encode(text)
        numbers = [tokenizer.sot_token_id, *inner, tokenizer.eot_token_id][:length]
        if len(inner) + 2 > length:
            numbers[-1] = tokenizer.eot_token_id
        row[: len(numbers)] = numbers
    return torch.from_numpy(rows)


@lru_cache(maxsize=2**17)
def _word_tokens(tokenizer: SimpleTokenizer, word: str) -> tuple[int, ...]:
    return tuple(tokenizer.encode(word))
