"""A web page that shows what a detector, or a CRIS, finds in an uploaded picture."""

import importlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from PIL import Image

from clipself_d2.apps.predict.demo import draw, make_labels
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import parse_typed_classes
from clipself_d2.apps.predict.refer_demo import META_ARCHITECTURE, ReferringPredictor, draw_mask
from clipself_d2.data.pictures import upright_rgb

logger = logging.getLogger(__name__)

# From a picture (H, W, 3) uint8 RGB, what was typed, and a threshold in [0, 1] to a drawing
# (H', W', 3) uint8 RGB and a line of text.
Answer = Callable[[np.ndarray, str, float], tuple[np.ndarray, str]]


@dataclass(frozen=True)
class PageTask:
    """What a page does.

    Attributes:
        title: Headline.
        label: Name of the field for words.
        placeholder: An example of words, shown in grey.
        threshold_label: Name of the slider.
        threshold: Where the slider stands at first, 0 to 1.
        answer: Called for every question; raises ValueError with a message for the visitor.
    """

    title: str
    label: str
    placeholder: str
    threshold_label: str
    threshold: float
    answer: Answer


def load_gradio() -> Any:
    """Import gradio, which is optional; a ValueError says how to install it."""
    try:
        return importlib.import_module("gradio")
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError('the web page needs gradio; run pip install -e ".[demo]"') from error


def choose_task(cfg: CfgNode, threshold: float = 0.25) -> PageTask:
    """Load the model and say what to ask it.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is the model.
        threshold: Least score of a box at first, in [0, 1]; a CRIS starts at its own.

    Returns:
        Expressions for META_ARCHITECTURE CRIS, classes for a detector.
    """
    if cfg.MODEL.META_ARCHITECTURE == META_ARCHITECTURE:
        predictor = ReferringPredictor(cfg)
        return PageTask(
            title="Segment what a sentence refers to",
            label="Expression",
            placeholder="the dog on the left",
            threshold_label="Least probability of a pixel",
            threshold=predictor.model.mask_threshold,
            answer=segment_answer(predictor),
        )
    return PageTask(
        title="Detect the classes you name",
        label="Classes between commas, synonyms of one behind semicolons",
        placeholder="dog, police car;squad car",
        threshold_label="Least score of a box",
        threshold=threshold,
        answer=detect_answer(OpenVocabPredictor(cfg)),
    )


def segment_answer(predictor: ReferringPredictor) -> Answer:
    """Answer expressions: draw the mask and count its pixels."""

    def answer(image: np.ndarray, text: str, threshold: float) -> tuple[np.ndarray, str]:
        (output,) = predictor(image, [text])
        mask = (output["ref_mask_prob"] > threshold).numpy()
        share = f"{int(mask.sum())} pixels, {mask.mean():.1%} of the picture"
        return draw_mask(image, mask, text), share if mask.any() else "nothing found"

    return answer


def detect_answer(predictor: OpenVocabPredictor) -> Answer:
    """Answer lists of classes: draw the boxes and list them."""

    def answer(image: np.ndarray, text: str, threshold: float) -> tuple[np.ndarray, str]:
        predictor.set_classes(parse_typed_classes(text))
        output: Any = predictor(image)
        found = output["instances"].to("cpu")
        found = found[found.scores >= threshold]
        names = predictor.names
        labels = make_labels(found, names)
        return draw(image, found, names), ", ".join(labels) or "nothing found"

    return answer


def build_page(gradio: Any, task: PageTask) -> Any:
    """Lay the page out: picture, words and threshold on the left, the answer on the right.

    Args:
        gradio: The module, 4.0 or newer.
        task: What the page does.

    Returns:
        Gradio's page, not yet served.
    """
    # The model holds one vocabulary at a time.
    lock = threading.Lock()

    def respond(
        picture: Image.Image | None, text: str | None, threshold: float
    ) -> tuple[np.ndarray, str]:
        if picture is None:
            raise gradio.Error("there is no picture; upload one")
        try:
            image = np.asarray(upright_rgb(picture))
            with lock:
                return task.answer(image, text or "", threshold)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    with gradio.Blocks(title=task.title, analytics_enabled=False) as page:
        gradio.Markdown(f"# {task.title}")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(type="pil", label="Picture")
                text = gradio.Textbox(label=task.label, placeholder=task.placeholder)
                threshold = gradio.Slider(
                    0.0, 1.0, value=task.threshold, label=task.threshold_label
                )
                button = gradio.Button("Run")
            with gradio.Column():
                drawing = gradio.Image(label="Answer", interactive=False)
                found = gradio.Textbox(label="Found", interactive=False)
        for event in (button.click, text.submit):
            event(respond, [picture, text, threshold], [drawing, found])
    return page


def serve(cfg: CfgNode, *, host: str, port: int, threshold: float = 0.25) -> None:
    """Serve the page until a keyboard interrupt.

    Args:
        cfg: The whole config; MODEL.WEIGHTS is the model.
        host: Address to listen at; 127.0.0.1 is this machine alone, 0.0.0.0 all networks.
        port: Port, 1 to 65535.
        threshold: As of ``choose_task``.

    Raises:
        ValueError: If gradio is not installed, the port cannot be had, or as of ``choose_task``.
        FileNotFoundError: If a file is missing.
    """
    gradio = load_gradio()
    page = build_page(gradio, choose_task(cfg, threshold))
    logger.info("Serving http://%s:%d; stop with Ctrl-C", host, port)
    try:
        page.launch(server_name=host, server_port=port)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error}); give another --port or --host"
        ) from error
