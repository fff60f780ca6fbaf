from pathlib import Path

import pytest
import torch
import yaml
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.modeling import META_ARCH_REGISTRY
from torch.multiprocessing.spawn import ProcessRaisedException

from clipself_d2.command_line.errors import is_users, sentence


def raised(action) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def fail() -> None:
    assert not fail, "an invariant of our own"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (raised(lambda: Path("/none/a.txt").read_text()), "/none/a.txt: No such file"),
        (FloatingPointError("Loss became infinite"), "SOLVER.BASE_LR"),
        (yaml.YAMLError("a\n  b"), "a b"),
        (RecursionError("too deep"), "contains itself"),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "IMS_PER_BATCH"),
        (raised(lambda: META_ARCH_REGISTRY.get("Nope")), "No object named 'Nope'"),
        (raised(lambda: get_detection_dataset_dicts("no_such_set")), "is not registered"),
        (
            ValueError("Caught ValueError in DataLoader worker process 0.\nx\nValueError: m: n"),
            "m: n",
        ),
        (ProcessRaisedException("\n\nTraceback\n  x\nValueError: m: n", 0, 1), "m: n"),
    ],
)
def test_users_errors_are_one_line(error: Exception, words: str) -> None:
    assert is_users(error)
    assert words in sentence(error)
    assert "\n" not in sentence(error)


@pytest.mark.parametrize(
    "error",
    [
        raised(fail),
        raised(lambda: {}["p6"]),
        raised(lambda: build_detection_train_loader(None, mapper=None)),
        ProcessRaisedException("Traceback\nTypeError: x", 0, 1),
        RuntimeError("shapes differ"),
    ],
)
def test_errors_of_the_code_keep_their_traceback(error: Exception) -> None:
    assert not is_users(error)


def test_a_sentence_is_bounded() -> None:
    assert len(sentence(ValueError("x" * 90_000))) < 1600
