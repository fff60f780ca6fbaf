"""Find typed words by the weights that come with the package: boxes, segments and heat maps."""

import sys

from clipself_d2_cli.flags import count, share, tool_parser, user_path

EXAMPLE = 'python tools/first_look.py --words "police car,monkey,grass" --output output/look.png'


def main() -> int:
    """Parse the flags and draw."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--words", required=True, help='between commas, such as "police car,grass"')
    add("--image", type=user_path, help="picture to look at; left out, an emoji scene is drawn")
    add("--seed", type=count, default=0, help="which scene")
    add("--confidence-threshold", type=share, default=0.5, help="least score of boxes, 0 to 1")
    add("--output", type=user_path, required=True, help="picture to write")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.analysis.heat_maps import read_words
    from clipself_d2.apps.emoji.first_look import look
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()

    def action() -> None:
        options = {"image": args.image, "seed": args.seed, "score": args.confidence_threshold}
        look(read_words(args.words), args.output, **options)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
