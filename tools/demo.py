"""Detect classes, or segment what an expression refers to, in your own pictures."""

import argparse
import sys
from pathlib import Path

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import load_config, run_tool, start_logging
from clipself_d2.engine.demo import choose_vocabulary, run_demo
from clipself_d2.engine.refer_demo import run_refer_demo

EXAMPLE = """Example:

    python tools/demo.py --config-file configs/emoji/fvit_clipself.yaml --input a.jpg b.jpg \\
        --output output/demo --vocabulary custom --custom-vocabulary "police car,teddy bear" \\
        MODEL.WEIGHTS output/quickstart/fvit_clipself/model_final.pth
"""


def main() -> int:
    """Parse the flags and run the demo.

    Returns:
        Exit code.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="yaml file of the detector")
    parser.add_argument("--input", nargs="+", type=Path, required=True, help="pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--vocabulary", default="custom", help="custom, a registered data set, or a file of names"
    )
    parser.add_argument("--custom-vocabulary", default="", help="names between commas")
    parser.add_argument(
        "--expression",
        action="append",
        default=[],
        help='what to segment with a CRIS config, such as "the dog on the left"; can be repeated',
    )
    parser.add_argument("--confidence-threshold", type=float, default=0.25, help="0 to 1")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()

    def action() -> None:
        start_logging()
        cfg = load_config(args.config_file, args.opts)
        if args.expression:
            run_refer_demo(cfg, args.input, args.output, args.expression)
            return
        vocabulary = choose_vocabulary(args.vocabulary, args.custom_vocabulary)
        run_demo(cfg, args.input, args.output, vocabulary, args.confidence_threshold)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
