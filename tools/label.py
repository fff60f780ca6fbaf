"""Label a folder of pictures or tar shards with words: a data set for any detector."""

import argparse
import sys
from functools import partial

from clipself_d2_cli.flags import count, positive, share, tool_parser, user_path

FORMS = ("coco", "yolo", "voc")
EXAMPLE = (
    "python tools/label.py --config-file configs/emoji/fvit_clipself.yaml "
    "--input datasets/emoji/val --ontology ontology.json --output output/labels "
    "MODEL.WEIGHTS clipself_d2://emoji/fvit_clipself.pth"
)


def run(args: argparse.Namespace) -> None:
    """Be one process of a run."""
    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.label.ontology import read_ontology
    from clipself_d2.apps.label.run import LabelOptions, label
    from clipself_d2.apps.predict.detector_source import read_detector_config
    from clipself_d2.apps.predict.predictor import OpenVocabPredictor
    from clipself_d2.engine.cli import start_logging

    start_logging()
    classes = read_ontology(args.ontology, args.confidence_threshold)
    predictor = OpenVocabPredictor(
        read_detector_config(args.config_file, args.opts),
        min_score=min(entry.threshold for entry in classes),
        batch_size=args.batch_size,
    )
    settings = " ".join([args.config_file, *args.opts])
    options = LabelOptions(args.input, args.output, classes, args.format, args.batch_size, settings)
    label(predictor, options)


def main() -> int:
    """Parse the flags and label."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--config-file", required=True, help="yaml or .py file of the detector")
    add("--input", required=True, help="folder, quoted pattern, or tar shards a-{000..099}.tar")
    add("--ontology", type=user_path, required=True, help="json file: class to prompts")
    add("--output", type=user_path, required=True, help="folder of the labels")
    add("--format", choices=FORMS, default="coco", help="default: coco")
    add("--confidence-threshold", type=share, default=0.3, help="of classes that name none")
    add("--batch-size", type=positive, default=8, help="most pictures of one size at once")
    add("--num-gpus", type=count, default=1, help="processes, where torchrun starts none")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs; for a .py file key=value")
    args = parser.parse_args()

    from clipself_d2.command_line.launch import run_processes
    from clipself_d2.engine.cli import run_tool

    flags = argparse.Namespace(
        num_gpus=args.num_gpus, num_machines=1, machine_rank=0, dist_url="auto"
    )
    return run_tool(partial(run_processes, run, (args,), flags), debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
