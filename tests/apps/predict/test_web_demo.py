import importlib
import sys
import types

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from clipself_d2.apps.predict import web_demo
from clipself_d2.apps.predict.web_demo import (
    PageTask,
    build_page,
    choose_task,
    detect_answer,
    load_gradio,
    segment_answer,
    serve,
)
from clipself_d2.engine.trainer import Trainer

SMALL = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 0, "INPUT.REFER_SIZE", 32]
PICTURE = Image.fromarray(np.full((20, 30, 3), 200, np.uint8))


class FakeGradio(types.SimpleNamespace):
    """What of gradio the page uses; parts remember how they were made and what they trigger."""

    class Error(Exception):
        pass

    class Part:
        def __init__(self, *args, **options):
            self.args, self.options, self.events = args, options, []

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def click(self, *event):
            self.events.append(event)

        submit = click

    def __init__(self):
        super().__init__(made=[], launched=[])

    def __getattr__(self, kind):
        def make(*args, **options):
            part = FakeGradio.Part(*args, **options)
            part.kind = kind
            part.launch = lambda **where: self.launched.append(where)
            self.made.append(part)
            return part

        return make

    def of(self, kind):
        return [part for part in self.made if part.kind == kind]


def page_task(answer):
    return PageTask("A title", "Words", "dog", "Least", 0.4, answer)


def responder(answer):
    gradio = FakeGradio()
    build_page(gradio, page_task(answer))
    return gradio.of("Button")[0].events[0][0]


def test_the_page_has_a_picture_words_and_a_threshold_and_answers_both_ways():
    gradio = FakeGradio()
    page = build_page(gradio, page_task(lambda image, text, threshold: (image, text)))
    assert page is gradio.of("Blocks")[0]
    assert page.options == {"title": "A title", "analytics_enabled": False}
    picture, drawing = gradio.of("Image")
    words, found = gradio.of("Textbox")
    (slider,) = gradio.of("Slider")
    assert (words.options["label"], words.options["placeholder"]) == ("Words", "dog")
    assert slider.options["value"] == 0.4
    assert [len(part.events) for part in (gradio.of("Button")[0], words)] == [1, 1]
    for _, inputs, outputs in gradio.of("Button")[0].events + words.events:
        assert inputs == [picture, words, slider]
        assert outputs == [drawing, found]


def test_an_upload_reaches_the_callable_upright_and_as_rgb():
    asked = []
    respond = responder(lambda *question: asked.append(question) or (question[0], "done"))
    turned = Image.new("L", (30, 20))
    turned.getexif()[0x0112] = 6  # to be shown turned by 90 degrees
    assert respond(turned, "dog", 0.25)[1] == "done"
    ((image, text, threshold),) = asked
    assert (image.shape, image.dtype) == ((30, 20, 3), np.uint8)
    assert (text, threshold) == ("dog", 0.25)


def test_faults_of_a_visitor_are_shown_on_the_page():
    def refuse(*_):
        raise ValueError("there is no class")

    with pytest.raises(FakeGradio.Error, match="there is no class"):
        responder(refuse)(PICTURE, "", 0.1)
    with pytest.raises(FakeGradio.Error, match="there is no picture; upload one"):
        responder(refuse)(None, "dog", 0.1)


def test_expressions_are_answered_by_a_mask_above_the_threshold():
    probability = torch.zeros(20, 30)
    probability[:10, :15] = 0.5

    def predictor(image, expressions):
        assert expressions == ["the dog"]
        return [{"ref_mask_prob": probability}]

    answer = segment_answer(predictor)
    drawing, text = answer(np.asarray(PICTURE), "the dog", 0.4)
    assert text == "150 pixels, 25.0% of the picture"
    assert drawing.shape[1] >= 640
    assert answer(np.asarray(PICTURE), "the dog", 0.6)[1] == "nothing found"


def test_classes_are_answered_by_boxes_above_the_threshold():
    class Predictor:
        def set_classes(self, vocabulary):
            self.names = vocabulary.names

        def __call__(self, image):
            found = Instances(image.shape[:2])
            found.pred_boxes = Boxes(torch.tensor([[1.0, 2.0, 9.0, 8.0], [3.0, 3.0, 20.0, 18.0]]))
            found.scores = torch.tensor([0.9, 0.2])
            found.pred_classes = torch.tensor([1, 0])
            return {"instances": found}

    answer = detect_answer(Predictor())
    drawing, text = answer(np.asarray(PICTURE), "dog, police car;squad car", 0.25)
    assert text == "police car 90%"
    assert drawing.shape[1] >= 640
    assert answer(np.asarray(PICTURE), "dog, cat", 0.1)[1] == "cat 90%, dog 20%"
    assert answer(np.asarray(PICTURE), "dog", 0.95)[1] == "nothing found"
    with pytest.raises(ValueError, match="there is no class; give names"):
        answer(np.asarray(PICTURE), " , ", 0.1)


def test_a_cris_is_asked_expressions(emoji_cfg, tmp_path):
    cfg = emoji_cfg("cris", *SMALL)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    task = choose_task(cfg)
    assert task.label == "Expression"
    assert task.threshold == 0.35
    drawing, text = task.answer(np.asarray(PICTURE), "the dog", -1.0)
    assert text == "600 pixels, 100.0% of the picture"
    with pytest.raises(ValueError, match="the expression is blank"):
        task.answer(np.asarray(PICTURE), " ", 0.3)


def test_a_detector_is_asked_classes(emoji_cfg, monkeypatch):
    monkeypatch.setattr(web_demo, "OpenVocabPredictor", lambda cfg: cfg)
    task = choose_task(emoji_cfg("fvit_untouched"), 0.5)
    assert task.label.startswith("Classes")
    assert task.threshold == 0.5


def test_without_gradio_there_is_one_clear_sentence(emoji_cfg, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ValueError, match=r"the web page needs gradio.*\.\[demo\]"):
        serve(emoji_cfg("cris"), host="127.0.0.1", port=7860)


def test_a_gradio_that_lacks_a_part_of_its_own_is_not_called_missing(monkeypatch):
    def broken(name):
        raise ModuleNotFoundError("No module named 'httpx'", name="httpx")

    monkeypatch.setattr(importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="httpx"):
        load_gradio()


def test_the_page_is_served_where_the_flags_say(emoji_cfg, monkeypatch):
    gradio = FakeGradio()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    monkeypatch.setattr(
        web_demo, "choose_task", lambda cfg, threshold: page_task(lambda *_: threshold)
    )
    serve(emoji_cfg("cris"), host="0.0.0.0", port=7999)
    assert gradio.launched == [{"server_name": "0.0.0.0", "server_port": 7999}]

    def taken(**_):
        raise OSError("port is busy")

    monkeypatch.setattr(web_demo, "build_page", lambda *_: types.SimpleNamespace(launch=taken))
    with pytest.raises(ValueError, match=r"cannot listen at h:80 \(port is busy\)"):
        serve(emoji_cfg("cris"), host="h", port=80)
