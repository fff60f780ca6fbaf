"""Prompt to class: what a file may say, and what is refused."""

import json
from pathlib import Path

import pytest

from clipself_d2.apps.label.ontology import LabelClass, read_ontology


def test_a_class_has_prompts_and_a_threshold(tmp_path: Path) -> None:
    path = tmp_path / "ontology.json"
    content = {"truck": "lorry", "dog": ["dog", "puppy"], "cat": {"threshold": 0.5}}
    path.write_text(json.dumps(content))
    assert read_ontology(path, 0.3) == (
        LabelClass("truck", ("lorry",), 0.3),
        LabelClass("dog", ("dog", "puppy"), 0.3),
        LabelClass("cat", ("cat",), 0.5),
    )


@pytest.mark.parametrize("content", [{}, [], {"a": 1}, {"a": []}, {"a": {"threshold": 2}}])
def test_another_form_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "ontology.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"ontology\.json"):
        read_ontology(path, 0.3)
