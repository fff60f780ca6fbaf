"""Serve a web page on which a model answers words, examples and sentences about pictures.

Needs gradio: pip install -e ".[demo]".
"""

import argparse
import sys

from clipself_d2_cli.flags import share, tool_parser, whole

EXAMPLE = (
    "python tools/web_demo.py --config-file configs/emoji/cris.yaml "
    "MODEL.WEIGHTS clipself_d2://emoji/cris.pth"
)


def main() -> int:
    """Parse the flags and serve the page."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add(
        "--config-file",
        required=True,
        help="yaml file of a detector, a segmenting model, or a CRIS",
    )
    add("--referring-config", help="yaml file of a CRIS, for expressions beside words")
    add("--referring-weights", help="its checkpoint")
    add("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all networks")
    add("--port", type=whole(1, 65535), default=7860, help="1 to 65535")
    add("--confidence-threshold", type=share, default=0.25, help="of boxes, at first; 0 to 1")
    add("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.predict.web_demo import serve
    from clipself_d2.engine.cli import load_config, run_tool, start_logging

    def action() -> None:
        start_logging()
        cfg = load_config(args.config_file, args.opts)
        referring = None
        if args.referring_config:
            weights = args.referring_weights or ""
            referring = load_config(args.referring_config, ["MODEL.WEIGHTS", weights])
        serve(
            cfg,
            host=args.host,
            port=args.port,
            threshold=args.confidence_threshold,
            referring=referring,
        )

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
