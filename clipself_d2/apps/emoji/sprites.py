"""Sprite sheets of the emoji families, from fonts and packages of pictures."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPRITE_SIZE = 96
COLUMNS = 20
# SVG is rendered at this many pixels and then reduced, which keeps fine strokes smooth.
SVG_SIZE = 256
# Noto's bitmaps exist at one size only.
NOTO_FONT_SIZE = 109
WEBP_QUALITY = 80
# Haloes up to this opacity do not count as visible, 0 to 255.
FAINT_ALPHA = 16

Render = Callable[[str], Image.Image]


def fit_sprite(picture: Image.Image, size: int = SPRITE_SIZE) -> Image.Image:
    """Crop an RGBA picture to its visible part, scale it to a (size, size) cell, and centre it."""
    box = picture.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT_ALPHA)).getbbox()
    if box is None:
        raise ValueError("a sprite has no visible pixel; check that its source has this glyph")
    part = picture.crop(box)
    scale = size / max(part.size)
    width, height = (max(1, round(side * scale)) for side in part.size)
    part = part.resize((width, height), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (size, size))
    cell.paste(part, ((size - width) // 2, (size - height) // 2))
    return cell


def lay_out_sheet(sprites: Sequence[Image.Image], columns: int = COLUMNS) -> Image.Image:
    """Arrange (size, size) RGBA sprites row by row."""
    size = sprites[0].width
    rows = -(-len(sprites) // columns)
    sheet = Image.new("RGBA", (columns * size, rows * size))
    for number, sprite in enumerate(sprites):
        sheet.paste(sprite, (number % columns * size, number // columns * size))
    return sheet


def noto_renderer(font_file: Path) -> Render:
    """Draw glyphs of ``NotoColorEmoji.ttf`` from code points such as "1f436"."""
    font = ImageFont.truetype(str(font_file), NOTO_FONT_SIZE)

    def render(code_point: str) -> Image.Image:
        canvas = Image.new("RGBA", (160, 160))
        text = "".join(chr(int(part, 16)) for part in code_point.split("-"))
        ImageDraw.Draw(canvas).text((0, 0), text, font=font, embedded_color=True)
        return canvas

    return render


def svg_renderer(folder: Path, package: str, *, upper_case: bool = False) -> Render:
    """Draw the SVG files of a package, one a code point; ``package`` is named in messages."""
    try:
        import resvg_py
    except ImportError as error:
        raise ValueError("SVG sprites need resvg-py; run pip install resvg-py") from error

    def render(code_point: str) -> Image.Image:
        stem = code_point.upper() if upper_case else code_point
        path = _find(folder, stem, ".svg", package)
        data = resvg_py.svg_to_bytes(svg_path=str(path), width=SVG_SIZE, height=SVG_SIZE)
        with Image.open(io.BytesIO(bytes(data))) as image:
            return image.convert("RGBA")

    return render


def picture_renderer(folder: Path, package: str) -> Render:
    """Read the WebP pictures of a package, one a code point; ``package`` is named in messages."""

    def render(code_point: str) -> Image.Image:
        with Image.open(_find(folder, code_point, ".webp", package)) as image:
            return image.convert("RGBA")

    return render


def _find(folder: Path, stem: str, ending: str, package: str) -> Path:
    # Some packages name the emoji form of a sign by the variation selector FE0F.
    for name in (f"{stem}{ending}", f"{stem}-fe0f{ending}"):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder / (stem + ending)} is missing; unpack {package} there")


def read_code_points(index_file: Path) -> list[str]:
    """Read the code points of ``index.json`` in the order of the cells."""
    index = json.loads(index_file.read_text(encoding="utf-8"))
    layout = (index["sprite_size"], index["columns"])
    if layout != (SPRITE_SIZE, COLUMNS):
        raise ValueError(
            f"{index_file} has (sprite_size, columns) {layout}, expected {(SPRITE_SIZE, COLUMNS)}"
        )
    return [row["codepoint"] for row in index["sprites"]]


def build_sheet(render: Render, code_points: Sequence[str], output: Path) -> None:
    """Draw all sprites of a family and write its WebP sheet."""
    sheet = lay_out_sheet([fit_sprite(render(code_point)) for code_point in code_points])
    output.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(output, quality=WEBP_QUALITY, method=6)


def sheet_difference(first: Path, second: Path) -> float:
    """Mean absolute difference of two sheets' premultiplied channels, 0 to 255."""
    pair = []
    for path in (first, second):
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGBA"), np.float32)
        pair.append(np.concatenate([pixels[..., :3] * pixels[..., 3:] / 255, pixels[..., 3:]], 2))
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"{first} and {second} differ in size: {pair[0].shape}, {pair[1].shape}")
    return float(np.abs(pair[0] - pair[1]).mean())
