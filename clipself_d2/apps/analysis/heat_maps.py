"""Pictures of a tower's dense map: its similarity to typed words, and its principal components.

Legend: N images, K words, D joint embedding, h w patch grid.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor

from clipself_d2.apps.analysis.region_alignment import prepare_pixels
from clipself_d2.apps.analysis.tower_spec import TowerSpec, choose_device
from clipself_d2.clip import VisionTower
from clipself_d2.data.pictures import fit_longest, read_picture, to_tensor

logger = logging.getLogger(__name__)

COLOR_MAP = "inferno"
# Share of all cells that heat maps draw alike, so that the colours are left to what stands out.
LOW_END = 0.25
# Width of a panel, inches.
PANEL = 2.3
# Components whose share of the variance is below this are drawn as one grey.
LEAST_SHARE = 1e-6
# Percent of a component's cells that are clipped at either end of the colours.
TAIL = 1.0


def read_words(text: str) -> list[str]:
    """Split what is typed after --words, between commas; each word once, ValueError if none."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not words:
        raise ValueError('--words is empty; give words between commas, such as "dog,police car"')
    return words


@torch.no_grad()
def dense_map(tower: VisionTower, picture: Image.Image, form: str = "clipself") -> Tensor:
    """Embed every patch of a picture padded with black: (D, h, w) float32, unit norm, CPU."""
    pixels = prepare_pixels(tower, [to_tensor(picture)], picture.height, picture.width)
    return tower.forward_dense(pixels, form=form).embedding[0].cpu()


def similarity_maps(dense_Dhw: Tensor, text_KD: Tensor) -> Tensor:
    """Compare every cell with every word, unit norm both: (K, h, w) cosines in [-1, 1]."""
    return torch.einsum("dhw,kd->khw", dense_Dhw, text_KD)


def principal_components(dense_Dhw: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Project the cells of a map on the directions in which they differ most.

    Args:
        dense_Dhw: A dense map.
        count: Number of components.

    Returns:
        (count, h, w) centred coordinates, largest variance first, and (count,) shares of the
        variance, all float32. The largest entry of every direction is positive. Components that
        the map does not have are zero.
    """
    cells = dense_Dhw.flatten(1).T.to(torch.float64)
    centred = cells - cells.mean(0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    # The sign of a singular vector is arbitrary, and changes with the library.
    peak = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(peak < 0, -1.0, 1.0)
    # A map of one cell, or of equal cells, has no variance to divide by.
    share = spread.square() / spread.square().sum().clamp(min=torch.finfo(spread.dtype).tiny)
    coordinates = torch.where(share[:, None] > LEAST_SHARE, directions @ centred.T, 0.0)
    missing = max(0, count - len(share))
    coordinates = torch.nn.functional.pad(coordinates[:count], (0, 0, 0, missing))
    share = torch.nn.functional.pad(share[:count], (0, missing))
    return coordinates.reshape(count, *dense_Dhw.shape[1:]).float(), share.float()


def component_colors(coordinates_3hw: Tensor) -> np.ndarray:
    """Turn three components into (h, w, 3) float32 colours that fill [0, 1]; 0.5 if constant."""
    planes = []
    for plane in coordinates_3hw.numpy():
        low, high = np.percentile(plane, [TAIL, 100 - TAIL])
        low, high = (low, high) if high > low else (plane.min(), plane.max())
        flat = np.full_like(plane, 0.5)
        planes.append(np.clip((plane - low) / (high - low), 0, 1) if high > low else flat)
    return np.stack(planes, axis=-1)


def draw_heat_maps(
    spec: TowerSpec,
    image: Path,
    words: Sequence[str],
    output: Path,
    *,
    size: int = 0,
    forms: Sequence[str] = ("clipself",),
    templates: str = "",
    device: str = "",
) -> Tensor:
    """Draw where a picture looks like each of some words.

    Args:
        spec: The tower.
        image: The picture.
        words: K words, a panel each; all panels share one scale of colours, which
            begins at the lower quartile of their cosines.
        output: The picture to write.
        size: Longest side of the tower's input, px; 0 keeps the picture's.
        forms: Names of forms of dense features, a row each.
        templates: Prompt set; "" takes that of the CLIP.
        device: Where the tower works; "" is the accelerator of this machine, or its CPU.

    Returns:
        (S, K, h, w) cosines of the S forms.
    """
    picture = _read(image, size)
    place = choose_device(device)
    tower = spec.load(device=place)
    text_KD = spec.embed(words, templates=templates, device=place).embeddings_KD
    maps = torch.stack(
        [similarity_maps(dense_map(tower, picture, kind), text_KD) for kind in forms]
    )
    figure, grid = _panels(picture, len(forms), len(words))
    low, high = float(maps.quantile(LOW_END)), float(maps.max())
    for row, form in enumerate(forms):
        _show(grid[row, 0], np.asarray(picture), picture, tower.patch_size)
        grid[row, 0].set_title(f"{spec.label}\nform: {form}", fontsize=9)
        for axes, word, cosines in zip(grid[row, 1:], words, maps[row], strict=True):
            options = {"cmap": COLOR_MAP, "vmin": low, "vmax": high}
            shown = _show(axes, cosines.numpy(), picture, tower.patch_size, **options)
            axes.set_title(f"{word} (max {float(cosines.max()):.2f})", fontsize=9)
    figure.colorbar(shown, ax=grid, label="cosine", extend="min", shrink=0.9, pad=0.01)
    _save(figure, output)
    return maps


def draw_components(
    specs: Sequence[TowerSpec],
    image: Path,
    output: Path,
    *,
    size: int = 0,
    forms: Sequence[str] = ("clipself",),
    device: str = "",
) -> Tensor:
    """Draw the first three principal components of each tower's dense map as red, green and blue.

    Args:
        specs: T towers, a panel each; every map has components of its own.
        image: The picture.
        output: The picture to write.
        size: Longest side of the towers' input, px; 0 keeps the picture's.
        forms: Names of forms of dense features, a row each.
        device: Where the towers work; "" is the accelerator of this machine, or its CPU.

    Returns:
        (S, T, 3) shares of the variance.
    """
    picture = _read(image, size)
    place = choose_device(device)
    figure, grid = _panels(picture, len(forms), len(specs))
    shares = torch.zeros(len(forms), len(specs), 3)
    for column, spec in enumerate(specs):
        tower = spec.load(device=place)
        for row, form in enumerate(forms):
            coordinates, shares[row, column] = principal_components(dense_map(tower, picture, form))
            axes = grid[row, column + 1]
            _show(axes, component_colors(coordinates), picture, tower.patch_size)
            explained = 100 * float(shares[row, column].sum())
            axes.set_title(f"{spec.label}\n{explained:.0f} % of the variance", fontsize=9)
    for axes, form in zip(grid[:, 0], forms, strict=True):
        _show(axes, np.asarray(picture), picture, 1)
        axes.set_title(f"form: {form}", fontsize=9)
    _save(figure, output)
    return shares


def _read(image: Path, size: int) -> Image.Image:
    if size < 0:
        raise ValueError(f"--size is {size}; it is 0 for the picture's own, or positive pixels")
    picture = read_picture(image)
    return fit_longest(picture, size) if size else picture


def _panels(picture: Image.Image, rows: int, maps: int) -> tuple[Figure, np.ndarray]:
    """A figure of the picture and a number of maps in every row."""
    height = PANEL * picture.height / picture.width + 0.5
    figure = Figure(figsize=(PANEL * (1 + maps) + 0.9, height * rows), layout="constrained")
    return figure, figure.subplots(rows, 1 + maps, squeeze=False)


def _show(
    axes: Axes, values: np.ndarray, picture: Image.Image, patch: int, **options: object
) -> AxesImage:
    """Show a map in the picture's pixels, and of its padded cells what lies in the picture."""
    if values.shape[:2] == (picture.height, picture.width):
        patch = 1
    extent = (0, values.shape[1] * patch, values.shape[0] * patch, 0)
    shown = axes.imshow(values, extent=extent, interpolation="nearest", **options)  # type: ignore[arg-type]
    axes.set(xlim=(0, picture.width), ylim=(picture.height, 0))
    axes.set_axis_off()
    return shown


def _save(figure: Figure, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100, bbox_inches="tight", pad_inches=0.05)
    logger.info("%s", output)
