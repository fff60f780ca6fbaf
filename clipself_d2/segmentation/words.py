"""Class embeddings by a text tower that learns.

Legend: T classes, P prompts of a class, D joint embedding.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.clip import TextEncoder
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.templates import fill_templates, get_templates


class LearnedWords(nn.Module):
    """A text tower with the prompts of the vocabulary of training."""

    def __init__(
        self, *, text: TextEncoder, vocabulary: Vocabulary, templates: str, clip: str
    ) -> None:
        super().__init__()
        self.text = text
        self.vocabulary, self.templates, self.clip_name = vocabulary, templates, clip
        self._tokens: dict[tuple[object, ...], Tensor] = {}
        self._built: dict[tuple[object, ...], TextEmbeddings] = {}

    def forward(self) -> Tensor:
        """Embed the classes of training with gradient; (T, D) of unit norm, prompts averaged."""
        device = next(self.text.parameters()).device
        tokens = self._tokenize(self.vocabulary).to(device)
        if self.text.reads_end_token:
            # The tower does not see what follows the end token.
            length = int(tokens.argmax(dim=-1).max()) + 1
            embedded = self.text.word_features(tokens.flatten(0, 1)[:, :length])[1]
        else:
            embedded = self.text(tokens.flatten(0, 1))
        rows = F.normalize(embedded.float(), dim=-1).unflatten(0, tokens.shape[:2])
        return F.normalize(rows.mean(dim=1), dim=-1)

    def embed(self, vocabulary: Vocabulary) -> TextEmbeddings:
        """Embed any classes without gradient.

        They come from a cache while names, prompts and the tower's weights are the same.
        """
        # Every change in place, of an optimiser or a checkpoint, counts up a tensor's version.
        version = sum(parameter._version for parameter in self.text.parameters())
        key = (vocabulary.fingerprint, vocabulary.base_mask, self.templates, version)
        if key not in self._built:
            self._built = {k: v for k, v in self._built.items() if k[-1] == version}
            self._built[key] = TextEmbeddings.build(
                self.text,
                vocabulary,
                clip=self.clip_name,
                templates=self.templates,
                background=None,
            )
        return self._built[key]

    def _tokenize(self, vocabulary: Vocabulary) -> Tensor:
        """(T, P, length) on the CPU."""
        key = (vocabulary.names, self.templates)
        if key not in self._tokens:
            prompts = [
                fill_templates(name, get_templates(self.templates)) for name in vocabulary.names
            ]
            flat = [prompt for group in prompts for prompt in group]
            tokens = self.text.tokenize(flat)
            self._tokens[key] = tokens.reshape(len(prompts), -1, tokens.shape[-1])
        return self._tokens[key]
