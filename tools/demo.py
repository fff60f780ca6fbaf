"""Detect classes, or segment what an expression refers to, in your own pictures and videos."""

import argparse
import sys

from clipself_d2_cli.flags import count, positive, share, tool_parser, user_path

EXAMPLE = (
    "python tools/demo.py --config-file configs/emoji/fvit_clipself.yaml "
    '--input a.jpg folder "scenes/*.png" film.mp4 --output output/demo '
    '--custom-vocabulary "police car;squad car,dog" '
    "MODEL.WEIGHTS clipself_d2://emoji/fvit_clipself.pth"
)


def make_parser() -> argparse.ArgumentParser:
    """List the flags."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--config-file", required=True, help="yaml or .py file of the detector")
    add("--input", nargs="+", default=[], help="pictures, folders, quoted patterns, videos")
    add("--webcam", nargs="?", type=count, const=0, help="read camera number N, 0 if left out")
    add("--max-frames", type=count, default=0, help="most frames of a video or camera; 0 for all")
    add("--output", type=user_path, required=True, help="folder of results and detections.json")
    add("--vocabulary", default="custom", help="custom, a registered data set, or a file of names")
    add(
        "--custom-vocabulary",
        default="",
        help='classes between commas, synonyms of one behind semicolons: "dog,car;automobile"',
    )
    add(
        "--expression",
        action="append",
        default=[],
        help='what to segment with a CRIS config, such as "the dog on the left"; can be repeated',
    )
    add("--negative", default="", help="words between commas, scored and never reported")
    add(
        "--reference",
        action="append",
        default=[],
        help="NAME=PICTURE or NAME=PICTURE@left,top,right,bottom: a class by example; repeatable",
    )
    add(
        "--class-threshold",
        action="append",
        default=[],
        metavar="NAME=SCORE",
        help="least score of one class; repeatable",
    )
    add("--save-classes", type=user_path, help="file (.safetensors) to save the classes to")
    add("--classes", type=user_path, help="file that --save-classes wrote, in place of words")
    add("--slice", type=positive, help="side of slices of pictures larger than that, px")
    add("--slice-overlap", type=share, default=0.25, help="share of a slice its neighbour has")
    add("--embeddings", action="store_true", help="write embeddings.safetensors of detections")
    add("--confidence-threshold", type=share, default=0.25, help="0 to 1")
    add("--batch-size", type=positive, default=4, help="most pictures of one size at once")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs; for a .py file key=value")
    return parser


def main() -> int:
    """Parse the flags and run the demo."""
    args = make_parser().parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.predict.demo import (
        Wishes,
        choose_vocabulary,
        parse_reference,
        parse_threshold,
        run_demo,
    )
    from clipself_d2.apps.predict.detector_source import read_detector_config
    from clipself_d2.apps.predict.media import find_inputs
    from clipself_d2.apps.predict.refer_demo import run_refer_demo
    from clipself_d2.apps.predict.slices import SlicePlan
    from clipself_d2.engine.cli import load_config, run_tool, start_logging

    def action() -> None:
        start_logging()
        if not args.input and args.webcam is None:
            raise ValueError("there is nothing to look at; give --input or --webcam")
        if args.expression:
            if args.webcam is not None:
                raise ValueError("--expression reads pictures only; give --input, not --webcam")
            cfg = load_config(args.config_file, args.opts)
            run_refer_demo(cfg, find_inputs(args.input), args.output, args.expression)
            return
        words = None
        named = args.vocabulary != "custom" or args.custom_vocabulary.strip()
        # A saved set of classes, or references, need no words.
        if named or not (args.classes or args.reference):
            words = choose_vocabulary(args.vocabulary, args.custom_vocabulary)
        run_demo(
            read_detector_config(args.config_file, args.opts),
            args.input,
            args.output,
            words,
            args.confidence_threshold,
            webcam=args.webcam,
            batch_size=args.batch_size,
            max_frames=args.max_frames,
            wishes=Wishes(
                negative=args.negative.split(",") if args.negative.strip() else (),
                references=[parse_reference(text) for text in args.reference],
                thresholds=[parse_threshold(text) for text in args.class_threshold],
                load_classes=args.classes,
                save_classes=args.save_classes,
                slices=args.slice and SlicePlan(args.slice, args.slice_overlap),
                embeddings=args.embeddings,
            ),
        )

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
