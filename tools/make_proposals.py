"""Write class-agnostic region proposals of a trained RPN as a COCO-format file."""

import sys

from clipself_d2_cli.flags import positive, share, train_parser, user_path

EXAMPLE = (
    "python tools/make_proposals.py --config-file configs/emoji/rpn.yaml "
    "--dataset emoji_train_images --output output/emoji/proposals_train.json "
    "MODEL.WEIGHTS output/emoji/rpn/model_final.pth"
)


def main() -> int:
    """Parse the flags and write the file."""
    parser = train_parser(EXAMPLE)
    parser.add_argument("--dataset", required=True, help="registered data set, or images:FOLDER")
    parser.add_argument("--output", required=True, type=user_path, help="json file to write")
    parser.add_argument("--max-per-image", type=positive, default=20, help="most of one image")
    parser.add_argument("--min-score", type=share, default=0.2, help="least objectness, 0 to 1")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.files.proposals import write_proposals
    from clipself_d2.command_line.ranges import check_registered
    from clipself_d2.data.datasets.custom import resolve_dataset_names
    from clipself_d2.engine.cli import run_tool, set_up
    from clipself_d2.engine.trainer import Trainer
    from clipself_d2.runs.checkpointer import StrictCheckpointer, self_contained

    def action() -> None:
        cfg = set_up(args)
        if not cfg.MODEL.WEIGHTS:
            raise ValueError("MODEL.WEIGHTS is empty; give the checkpoint of a trained RPN")
        resolve_dataset_names([args.dataset])
        check_registered([args.dataset], "--dataset")
        model = Trainer.build_model(self_contained(cfg))
        StrictCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        write_proposals(
            cfg,
            model,
            args.dataset,
            args.output,
            max_per_image=args.max_per_image,
            min_score=args.min_score,
        )

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
