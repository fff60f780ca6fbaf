"""A web page on which models answer words, examples and sentences about uploaded pictures."""

import importlib
import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from clipself_d2.apps.predict.page_results import (
    Parts,
    PictureResult,
    box_parts,
    expression_parts,
    heat_map,
    panoptic_parts,
    part_colours,
    semantic_parts,
    write_coco,
)
from clipself_d2.apps.predict.page_session import (
    MOST_PICTURES,
    MOST_WORDS,
    Answer,
    Models,
    Question,
    find_examples,
)

logger = logging.getLogger(__name__)

Lister = Callable[[PictureResult, Sequence[str], float], Parts]
# How the parts of a tab are listed.
LISTERS: dict[str, Lister] = {
    "boxes": lambda result, names, least: box_parts(result, names, least, masks=False),
    "masks": lambda result, names, least: box_parts(result, names, least, masks=True),
    "panoptic": panoptic_parts,
    "semantic": semantic_parts,
    "expression": lambda result, _, least: expression_parts(result, least),
}
UPLOAD_LIMIT = "20mb"


def load_gradio() -> Any:
    """Import gradio, which is optional; a ValueError says how to install it."""
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError('the web page needs gradio; run pip install -e ".[demo]"') from error


class Page:
    """The page: pictures, words and options on the left, answers on the right.

    Args:
        gradio: The module, 5.0 or newer.
        models: What answers.
        threshold: Where the slider stands at first, 0 to 1.
        folder: Folder for the files that visitors download.
    """

    def __init__(self, gradio: Any, models: Models, threshold: float, folder: Path) -> None:
        self.gradio, self.models, self.folder = gradio, models, folder
        self.tabs = models.tabs
        self.has_words = models.predictor is not None
        with gradio.Blocks(title="Open vocabulary", analytics_enabled=False) as self.blocks:
            gradio.Markdown("# What is in your pictures?\nType words, show an example, or both.")
            self.answer = gradio.State(Answer())
            with gradio.Row():
                with gradio.Column(min_width=300, scale=2):
                    inputs = self._lay_questions(threshold)
                with gradio.Column(min_width=300, scale=3):
                    outputs = self._lay_answers()
            self._connect(inputs, outputs)

    def _lay_questions(self, threshold: float) -> list[Any]:
        gradio, words = self.gradio, self.has_words
        gallery = {"type": "filepath", "file_types": ["image"], "interactive": True}
        gallery["object_fit"] = "contain"
        chips = {"multiselect": True, "allow_custom_value": True, "choices": [], "value": []}
        files = gradio.Gallery(
            label=f"Pictures, at most {MOST_PICTURES}",
            columns=3,
            height=240,
            elem_id="pictures",
            **gallery,
        )
        typed = gradio.Dropdown(
            label=f"Words, at most {MOST_WORDS}",
            info="Press Enter after each; synonyms behind semicolons: police car;squad car",
            visible=words,
            elem_id="words",
            **chips,
        )
        expression = gradio.Textbox(
            label="Expression",
            placeholder="the dog on the left",
            visible="expression" in self.tabs,
            elem_id="expression",
        )
        with gradio.Accordion(
            "Examples, negative words, large pictures", open=False, visible=words
        ):
            references = gradio.Gallery(
                label="Pictures of one class, cut out",
                columns=4,
                height=140,
                elem_id="references",
                **gallery,
            )
            name = gradio.Textbox(label="Its name", placeholder="like the example")
            negative = gradio.Dropdown(label="Negative words, never reported", **chips)
            every = gradio.Checkbox(label="No words: look for all of a built-in list (LVIS)")
            slices = gradio.Dropdown(
                label="Cut larger pictures into slices of, px", choices=[0, 320, 640, 1024], value=0
            )
        self.threshold = gradio.Slider(
            0.0, 1.0, value=threshold, step=0.01, label="Least score", elem_id="threshold"
        )
        self.button = gradio.Button("Look", variant="primary", elem_id="look")
        self.typed, self.files, self.expression = typed, files, expression
        return [files, typed, negative, name, references, every, slices, expression]

    def _lay_answers(self) -> list[Any]:
        gradio = self.gradio
        self.shown = gradio.Dropdown(label="Picture", choices=[], visible=False)
        self.word = gradio.Dropdown(label="Word", choices=[], elem_id="word", render=False)
        if "heat map" not in self.tabs:
            self.word = gradio.State()
        self.notes = gradio.Markdown(visible=False, elem_id="notes")
        drawings = []
        with gradio.Tabs():
            for tab in self.tabs:
                with gradio.Tab(tab.capitalize()):
                    if tab == "heat map":
                        self.word.render()
                        drawings.append(gradio.Image(label="Heat map", interactive=False))
                    else:
                        drawings.append(gradio.AnnotatedImage(label=tab.capitalize()))
        self.found = gradio.Textbox(
            label="Found", interactive=False, lines=2, max_lines=8, elem_id="found"
        )
        self.download = gradio.DownloadButton("Download as COCO json", interactive=False)
        return [*drawings, self.found, self.download]

    def _connect(self, inputs: list[Any], outputs: list[Any]) -> None:
        gradio = self.gradio
        shown = [self.answer, self.shown, self.word, self.threshold]
        first = [self.answer, self.shown, self.word, self.notes]
        for event in (self.button.click, self.expression.submit):
            asked = event(self.ask, inputs, first)
            asked.then(self.show, shown, outputs)
        # While the slider moves, only its last place is drawn.
        changes = [self.threshold.input, self.shown.input]
        changes += [self.word.input] if "heat map" in self.tabs else []
        for event in changes:
            event(self.show, shown, outputs, trigger_mode="always_last", show_progress="hidden")
        examples = find_examples(self.models.cfg) if self.has_words else []
        if examples:
            gradio.Examples(
                [[[file], words] for file, words in examples],
                [self.files, self.typed],
                label="Examples: click one, then Look",
                example_labels=[", ".join(words) for _, words in examples],
            )

    def ask(
        self,
        files: list[tuple[str, str | None]] | None,
        words: list[str] | None,
        negative: list[str] | None,
        name: str,
        references: list[tuple[str, str | None]] | None,
        every_word: bool,
        slice_size: int,
        expression: str,
    ) -> list[Any]:
        """Answer a visitor; the arguments are the widgets of the left column.

        Returns values of the answer, the two choices and the notes.
        """
        question = Question(
            files=[path for path, _ in files or []],
            words=[word.strip() for word in words or [] if word.strip()],
            negative=negative or [],
            reference_name=name or "",
            references=[path for path, _ in references or []],
            every_word=every_word,
            slice_size=int(slice_size or 0),
            expression=expression or "",
        )
        try:
            answer = self.models.answer(question)
        except (ValueError, FileNotFoundError) as error:
            raise self.gradio.Error(str(error)) from error
        gradio, names = self.gradio, [result.name for result in answer.results]
        pictures = [(name, number) for number, name in enumerate(names)]
        heat = answer.results[0].heat_Khw is not None and "heat map" in self.tabs
        choices = [(name, number) for number, name in enumerate(answer.names)] if heat else []
        notes = "\n".join(f"- {note}" for note in answer.notes)
        return [
            answer,
            gradio.Dropdown(choices=pictures, value=0, visible=len(pictures) > 1),
            gradio.Dropdown(choices=choices, value=0 if heat else None, visible=heat),
            gradio.Markdown(f"**Note**\n{notes}", visible=bool(notes)),
        ]

    def show(self, answer: Answer, number: int, word: int, least: float) -> list[Any]:
        """Draw a picture of an answer; the model is not asked again.

        Returns values of the tabs, the list of what was found and the download.
        """
        gradio = self.gradio
        if not answer.results:
            return [gradio.skip()] * (len(self.tabs) + 2)
        result, names = answer.results[number or 0], answer.names
        values: list[Any] = []
        found: list[str] = []
        for tab in self.tabs:
            if tab == "heat map":
                values.append(self._heat(result, names, word or 0))
                continue
            parts = LISTERS[tab](result, names, least)
            colours = part_colours(parts, names)
            values.append(gradio.AnnotatedImage((result.image, parts), color_map=colours))
            if not found:
                found = [label for _, label in parts]
        path = self.folder / answer.key / "detections.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_coco(answer.results, names, least, path)
        text = ", ".join(found) or "nothing found; a lower least score shows more"
        return [*values, text, gradio.DownloadButton(value=str(path), interactive=True)]

    def _heat(self, result: PictureResult, names: Sequence[str], word: int) -> Any:
        if result.heat_Khw is None:
            return None
        drawn, low, high = heat_map(result, word)
        label = f"{names[word]}: from {low:.2f} (dark) to {high:.2f} (bright)"
        return self.gradio.Image(drawn, label=label)


def serve(
    cfg: CfgNode,
    *,
    host: str,
    port: int,
    threshold: float = 0.25,
    referring: CfgNode | None = None,
) -> None:
    """Serve the page until a keyboard interrupt.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is the model.
        host: Address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 all networks.
        port: Port, 1 to 65535.
        threshold: Where the slider stands at first, 0 to 1.
        referring: Config of a CRIS beside a detector; None: none.
    """
    gradio = load_gradio()
    with tempfile.TemporaryDirectory(prefix="clipself_d2_") as folder:
        page = Page(gradio, Models(cfg, referring), threshold, Path(folder))
        logger.info("Serving http://%s:%d; stop with Ctrl-C", host, port)
        examples = [str(Path(file).parent) for file, _ in find_examples(cfg)]
        try:
            page.blocks.launch(
                server_name=host,
                server_port=port,
                max_file_size=UPLOAD_LIMIT,
                allowed_paths=[folder, *dict.fromkeys(examples)],
            )
        except OSError as error:
            raise ValueError(
                f"cannot listen at {host}:{port} ({error}); give another --port or --host"
            ) from error
