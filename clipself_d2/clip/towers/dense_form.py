"""Forms of dense features: what the last block of a transformer becomes where every cell counts.

Legend: N images, A heads, E channels of a head, T tokens (prefix tokens first, then patches row by
row), C channels, h w patch grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.clip.towers.attention import Heads, global_attention

# Parts of the heads that are compared with themselves in each attention, or both as trained.
_COMPARED = {
    "trained": ("query", "key"),
    "identity": (),
    "qq": ("query",),
    "kk": ("key",),
    "vv": ("value",),
    "csa": ("query", "key"),
    "neighbour": ("key",),
    "external": (),
}
ATTENTIONS = tuple(_COMPARED)
RESIDUALS = ("patch", "class", "none")


@dataclass(frozen=True)
class DenseForm:
    """What the dense path does in a tower's last block; the other blocks run as they were trained.

    Attributes:
        attention: "trained" (query to key); "identity" (each token its own value); "qq", "kk", "vv"
            (softmax of one part's likeness to itself); "csa" (the sum of qq and kk, whose rows sum
            to 2); "neighbour" (kk with a Gaussian of the patches' distance added to the logits);
            "external" (rows of an affinity that is passed in).
        scale: Whether logits are divided by the root of E, as in training.
        rotary: Whether query and key are rotated, where the tower rotates.
        residual: "patch" (the block's input), "class" (that of the class token for every patch) or
            "none".
        mlp: Whether the block's MLP follows.
        layers: Number n of last blocks; the outputs of this attention in each are summed.
        gate: Whether values are weighted for each token and head by a sigmoid that is learned and
            shared by the layers.
        sigma: Deviation of the neighbours' Gaussian, cells.

    Raises:
        ValueError: If there is no such attention or residual, or a number is not above 0.
    """

    attention: str = "identity"
    scale: bool = True
    rotary: bool = True
    residual: str = "patch"
    mlp: bool = True
    layers: int = 1
    gate: bool = False
    sigma: float = 5.0

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.attention not in ATTENTIONS or self.residual not in RESIDUALS:
            raise ValueError(
                f"a dense form has attention {self.attention!r} and residual {self.residual!r}; "
                f"expected one of {ATTENTIONS} and of {RESIDUALS}"
            )
        # The last 0 of a list are all of it.
        if self.layers < 1 or self.sigma <= 0:
            raise ValueError(f"{self.layers} layers and sigma {self.sigma} must be above 0")

    def __str__(self) -> str:
        """Name of the form, or its fields where it has none."""
        return next((name for name, form in DENSE_FORMS.items() if form == self), repr(self))

    @property
    def reads(self) -> frozenset[str]:
        """Which of query, key and value the last block computes."""
        return frozenset({"value", *_COMPARED[self.attention]})

    @property
    def as_trained(self) -> bool:
        """Whether the last block is the block as it was trained."""
        return self == DENSE_FORMS["attention"]


# What each is, and its source, is in docs/dense_forms.md.
DENSE_FORMS = {
    "clipself": DenseForm(),
    "attention": DenseForm(attention="trained"),
    "catseg": DenseForm(residual="class"),
    "clipself3": DenseForm(layers=3),
    "maskclip": DenseForm(residual="none", mlp=False),
    "sclip": DenseForm(attention="csa", rotary=False),
    "clearclip": DenseForm(attention="qq", rotary=False, residual="none", mlp=False),
    "naclip": DenseForm(attention="neighbour", rotary=False, residual="none", mlp=False),
    "proxyclip": DenseForm(attention="external", residual="none", mlp=False),
    "declip_qq": DenseForm(attention="qq", scale=False, rotary=False, residual="none", mlp=False),
    "declip_csa": DenseForm(attention="csa", scale=False, rotary=False, residual="none", mlp=False),
    "denserc": DenseForm(residual="none", mlp=False, layers=3, gate=True),
}


def dense_form(form: "DenseForm | str") -> DenseForm:
    """Look up a form by its name in ``DENSE_FORMS``; a form is returned as it is."""
    if isinstance(form, DenseForm):
        return form
    if form not in DENSE_FORMS:
        raise ValueError(f"the dense form is {form!r}, not one of {tuple(DENSE_FORMS)}")
    return DENSE_FORMS[form]


def mix_values(
    form: DenseForm,
    heads: Heads,
    *,
    grid: tuple[int, int],
    num_prefix: int,
    attend: Callable[[Heads], Tensor] = global_attention,
    affinity: Tensor | None = None,
) -> Tensor:
    """Mix the values of a block as a form other than identity attention says: (N, A, T, E).

    ``attend`` is global or in windows; neighbours and external affinities are always global. For
    the latter ``affinity`` is (N, h * w, h * w), weights of the patches for each patch.
    """
    if form.attention == "external":
        if affinity is None:
            raise ValueError(f"the dense form {form} needs the affinity of the patches, or a proxy")
        # One affinity for all heads; prefix tokens keep their own values.
        patches = affinity[:, None].to(heads.value.dtype) @ heads.value[:, :, num_prefix:]
        return torch.cat([heads.value[:, :, :num_prefix], patches], dim=2)
    # Attention divides by the root of E; without a scale that is taken back.
    factor = 1.0 if form.scale else heads.value.shape[-1] ** 0.5
    if form.attention == "trained":
        return attend(heads._replace(query=heads.query * factor) if factor != 1.0 else heads)
    # Each part is compared with itself: two softmaxes for csa, one for the others.
    parts = [getattr(heads, name) for name in _COMPARED[form.attention]]
    if form.attention == "neighbour":
        (key,) = parts
        prior = neighbour_prior(grid, form.sigma, num_prefix).to(key)
        return F.scaled_dot_product_attention(key * factor, key, heads.value, attn_mask=prior)
    mixed = [attend(Heads(part * factor, part, heads.value)) for part in parts]
    return mixed[0] + mixed[1] if len(mixed) > 1 else mixed[0]


def neighbour_prior(grid: tuple[int, int], sigma: float, num_prefix: int = 0) -> Tensor:
    """Compute what is added to the logits of patches near to each other, (T, T) float32.

    ``sigma`` is the deviation of the Gaussian in cells; tokens before the patches get 0, and
    the diagonal of the patches is 1.

    Reference: NACLIP, arXiv 2404.08181.
    """
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    places = torch.stack([rows, columns], dim=-1).flatten(0, 1).float()
    squared = (places[:, None] - places).square().sum(-1)
    # Added to logits, so that it lifts a neighbour by at most 1, whatever the features.
    prior = torch.exp(-squared / (2 * sigma**2))
    return F.pad(prior, (num_prefix, 0, num_prefix, 0))


def proxy_affinity(
    features: Tensor, grid: tuple[int, int], *, beta: float = 1.2, gamma: float = 3.0
) -> Tensor:
    """Turn the features of another model into the affinity of a form of "external" attention.

    Args:
        features: (N, C, h', w'), of any norm; resized to the tower's grid.
        grid: The tower's grid (h, w).
        beta: Multiple of the mean likeness of all pairs, below which patches do not see each other.
        gamma: Sharpness of the softmax.

    Returns:
        (N, h * w, h * w) float32, rows that sum to 1.

    Reference: ProxyCLIP, arXiv 2408.04883, which resizes the values to the proxy's grid instead. A
    patch always sees itself here, so that no row is empty.
    """
    features = F.interpolate(features.float(), grid, mode="bilinear", align_corners=False)
    unit = F.normalize(features.flatten(2), dim=1)
    likeness = unit.transpose(1, 2) @ unit  # (N, h * w, h * w) cosines
    logits = gamma * (likeness - beta * likeness.mean((1, 2), keepdim=True))
    itself = torch.eye(logits.shape[-1], dtype=torch.bool, device=logits.device)
    return logits.masked_fill((logits < 0) & ~itself, float("-inf")).softmax(-1)
