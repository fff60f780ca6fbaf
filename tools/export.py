"""Export an image tower, detector or segmentor, with text embeddings as an input."""

import argparse
import sys
from typing import TYPE_CHECKING

from clipself_d2_cli.flags import count, tool_parser, user_path

if TYPE_CHECKING:
    from clipself_d2.apps.export.graphs import Graph

SPEC_FORM = "[LABEL=]NAME:TAG_OR_FILE[:TOWER_WEIGHTS]"
FORMATS = ("onnx", "torch_export", "torchscript")
EXAMPLE = (
    "python tools/export.py --config-file configs/emoji/fvit_clipself.yaml --format onnx "
    '--output output/fvit.onnx --words "police car,dog" '
    "MODEL.WEIGHTS clipself_d2://emoji/fvit_clipself.pth"
)


def read_graph(args: argparse.Namespace) -> "tuple[Graph, list[str]]":
    """Build the graph that the flags ask for, and list the words to embed."""
    from clipself_d2.apps.analysis.tower_spec import TowerSpec
    from clipself_d2.apps.export.graphs import default_words, model_graph, tower_graph
    from clipself_d2.apps.predict.detector_source import build_detector

    words = [word.strip() for word in args.words.split(",") if word.strip()]
    if args.tower:
        if args.config_file or words:
            raise ValueError("--tower has no words and no config; drop --config-file and --words")
        return tower_graph(TowerSpec.parse(args.tower).load(), args.blocks), []
    if not args.config_file:
        raise ValueError("there is nothing to export; give --config-file or --tower")
    source = build_detector(args.config_file, None, args.opts)
    graph = model_graph(source.model.cpu(), source.cfg)
    return graph, words or list(default_words(source.cfg)) * ("text" in graph.inputs)


def main() -> int:
    """Parse the flags and export."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--config-file", help="yaml or .py file of the model")
    add("--tower", help=f"export an image tower instead: {SPEC_FORM}")
    add("--blocks", type=count, nargs="+", default=[], help="blocks of --tower that are wanted too")
    add("--format", choices=FORMATS, default="onnx", help="default: onnx")
    add("--output", type=user_path, required=True, help="file to write")
    add("--words", default="", help="classes (CRIS: sentences) between commas, for .words.npz")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs; for a .py file key=value")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.export.run import export_graph
    from clipself_d2.engine.cli import run_tool, start_logging

    def action() -> None:
        start_logging()
        graph, words = read_graph(args)
        export_graph(graph, args.output, args.format, words=words)

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
