"""Build the text embeddings of a vocabulary, or take over those of another project."""

import sys

from clipself_d2_cli.flags import device, positive, tool_parser, user_path

EXAMPLE = (
    "python tools/build_text_embeddings.py --clip ViT-Ti-8-emoji --vocabulary coco "
    "--templates vild63 --output output/embeddings/coco.pt"
)


def main() -> int:
    """Parse the flags, write the file, and say what it holds."""
    parser = tool_parser(__doc__, EXAMPLE)
    add = parser.add_argument
    add("--clip", required=True, help="model name as open_clip knows it, or hf-hub:org/name")
    add("--weights", default="", help="pretrained tag, hf-hub:org/name or file of that CLIP")
    add("--vocabulary", required=True, help="lvis_v1, coco, emoji, a data set, or a file of names")
    add("--templates", default="", help="vild63 (default), imagenet80, regionclip81, single, emoji")
    add("--output", required=True, type=user_path, help="file for MODEL.VOCABULARY.EMBEDDINGS")
    add("--from", dest="source", type=user_path, help="another project's file, taken over as it is")
    add("--cache-dir", default="", help="folder of cached embeddings, as of training")
    add("--device", type=device, default="cpu", help="where the text tower runs, such as cuda")
    add("--batch-size", type=positive, default=256, help="prompts at a time")
    add("--force", action="store_true", help="overwrite the output")
    args = parser.parse_args()

    import clipself_d2  # noqa: F401  (registers everything)
    from clipself_d2.apps.files.text_embeddings import (
        build_embedding_file,
        convert_embedding_file,
        resolve_vocabulary,
    )
    from clipself_d2.engine.cli import run_tool, start_logging

    start_logging()

    def action() -> None:
        vocabulary = resolve_vocabulary(args.vocabulary)
        made_from = {"clip": args.clip, "weights": args.weights, "force": args.force}
        if args.source:
            report = convert_embedding_file(
                args.source, vocabulary, args.output, templates=args.templates, **made_from
            )
        else:
            made_from |= {"cache_dir": args.cache_dir, "templates": args.templates or "vild"}
            made_from |= {"device": args.device, "batch_size": args.batch_size}
            report = build_embedding_file(vocabulary, args.output, **made_from)
        prompts = f" x {report.num_templates} prompts" if report.num_templates else ""
        made = report.embeddings
        background = " and the background" if made.background_D is not None else ", no background"
        print(f"{report.output}: {made.vocabulary.num_classes} classes{prompts}{background}")
        print(f"{made.embed_dim}-d, {report.num_sentences} encoded, {report.seconds:.1f} seconds")

    return run_tool(action, debug=args.debug)


if __name__ == "__main__":
    sys.exit(main())
