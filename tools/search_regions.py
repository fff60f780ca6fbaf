"""Search a folder of pictures for words or for pictures: build an index once, then ask it."""

import argparse
import sys

from clipself_d2_cli.flags import positive, tool_parser, user_path

EXAMPLE = (
    "python tools/search_regions.py --config-file configs/emoji/fvit_clipself.yaml "
    '--input folder --index output/index --words "police car,dog" --output output/search '
    "MODEL.WEIGHTS clipself_d2://emoji/fvit_clipself.pth"
)


def main() -> int:
    """Parse the flags, build the index, answer."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--config-file", required=True, help="yaml file of the detector that proposes regions")
    add("--index", type=user_path, required=True, help="folder of the index")
    add("--input", nargs="+", default=[], help="pictures to build the index of")
    add("--regions", type=positive, default=30, help="most regions of a picture")
    add("--words", default="", help='what to search, between commas: "dog,car;automobile"')
    add("--picture", nargs="+", default=[], help="pictures of what to search, each a question")
    add("--count", type=positive, default=10, help="most answers to a question")
    add("--output", type=user_path, help="folder of answers.json and a png for each question")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.predict.search import run_search
    from clipself_d2.engine.cli import load_config, run_tool, start_logging

    def action() -> None:
        start_logging()
        run_search(
            load_config(args.config_file, args.opts),
            args.index,
            inputs=args.input,
            regions=args.regions,
            words=args.words,
            pictures=args.picture,
            count=args.count,
            output=args.output,
        )

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
