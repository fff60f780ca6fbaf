"""Compare how towers name regions: by image crops and by dense features; draw dense maps."""

import argparse
import logging
import sys

from clipself_d2_cli.flags import count, device, positive, user_path

TOOL = "python tools/analyze_region_alignment.py"
EXAMPLE = (
    f"{TOOL} accuracy --dataset emoji_panoptic_val --towers ViT-Ti-8-emoji:emoji "
    "--sizes 96 192 --limit 20 --output output/alignment"
)
PRECISIONS = ("fp32", "bf16", "fp16", "auto")
SPEC_FORM = "[LABEL=]NAME:TAG_OR_FILE[:TOWER_WEIGHTS]"


def parse_arguments() -> argparse.Namespace:
    """Read the command line; ``analysis`` is accuracy, heatmap, pca or segment."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Example:\n\n    {EXAMPLE}\n\nFlags of each: {TOOL} accuracy --help\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kinds = parser.add_subparsers(dest="analysis", required=True)
    score = kinds.add_parser("accuracy", help="crops against dense features over input sizes")
    heat = kinds.add_parser("heatmap", help="similarity of a picture to typed words")
    parts = kinds.add_parser("pca", help="three principal components of the dense map")
    label = kinds.add_parser("segment", help="mIoU of label maps by the dense map alone, by form")
    for command in (score, parts, label):
        command.add_argument("--towers", required=True, nargs="+", metavar="T", help=SPEC_FORM)
    heat.add_argument("--tower", required=True, metavar="T", help=SPEC_FORM)
    heat.add_argument("--words", required=True, help='between commas, such as "dog,police car"')
    label.add_argument("--proxy", default="", help="NAME[:FILE] of proxyclip's vision model")
    score.add_argument("--dataset", required=True, help="registered panoptic data set")
    label.add_argument("--dataset", required=True, help="label maps, as emoji_ov_sem_seg_val")
    score.add_argument("--sizes", required=True, nargs="+", type=positive, help="longest sides, px")
    score.add_argument("--batch-size", type=positive, default=1, help="images at a time")
    score.add_argument("--keep-shape", action="store_true", help="do not pad images to squares")
    score.add_argument("--precision", default="fp32", choices=PRECISIONS)
    score.add_argument("--num-workers", type=count, default=0, help="processes that read images")
    for command in (heat, parts):
        command.add_argument("--image", required=True, type=user_path, help="a picture")
    for command in (score, label):
        command.add_argument("--limit", type=count, default=0, help="first N images; 0: all")
    for command in (heat, parts, label):
        command.add_argument("--size", type=count, default=0, help="longest side, px; 0: its own")
    for command in (score, heat, parts, label):
        usual = ["clipself", "attention"] if command is score else ["clipself"]
        command.add_argument("--forms", nargs="+", default=usual, help="dense forms, by name")
    for command in (score, heat, label):
        command.add_argument("--templates", default="", help="prompt set; default: the CLIP's")
    for command in (score, heat, parts):
        command.add_argument("--output", required=True, type=user_path, help="folder or picture")
    for command in (score, heat, parts, label):
        command.add_argument("--device", type=device, default="", help="default: a GPU")
        command.add_argument("--debug", action="store_true", help="show an error's traceback")
    return parser.parse_args()


def analyze(args: argparse.Namespace) -> None:
    """Run the analysis that was asked for."""
    from clipself_d2.apps.analysis.alignment_report import report_accuracy
    from clipself_d2.apps.analysis.heat_maps import draw_components, draw_heat_maps, read_words
    from clipself_d2.apps.analysis.region_alignment import AlignmentOptions
    from clipself_d2.apps.analysis.segment_forms import form_table, score_forms
    from clipself_d2.apps.analysis.tower_spec import TowerSpec

    names = ["output", "device", "templates", "size", "limit", "batch_size", "precision", "forms"]
    names += ["num_workers", "proxy"]
    given = {name: value for name, value in vars(args).items() if name in names}
    if args.analysis == "heatmap":
        spec, words = TowerSpec.parse(args.tower), read_words(args.words)
        draw_heat_maps(spec, args.image, words, **given)
        return
    specs = [TowerSpec.parse(text) for text in args.towers]
    if args.analysis == "segment":
        print(form_table(score_forms(args.dataset, specs, **given)))
        return
    if args.analysis == "pca":
        draw_components(specs, args.image, **given)
        return
    sizes, output = tuple(args.sizes), given.pop("output")
    given["forms"] = tuple(args.forms)
    options = AlignmentOptions(sizes=sizes, pad_to_square=not args.keep_shape, **given)
    print(report_accuracy(args.dataset, specs, options, output))


def main() -> int:
    """Parse the flags and run the analysis."""
    arguments = parse_arguments()
    # Every score stands in the table at the end.
    logging.getLogger("clipself_d2.evaluation").setLevel(logging.WARNING)

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()
    return run_tool(lambda: analyze(arguments), debug=arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
