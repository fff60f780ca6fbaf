import pytest

from clipself_d2.distillation.terms import AffinityTerm, CropTerm, MapTerm, read_terms


def test_rows_become_terms_with_their_options() -> None:
    rows = [{"loss": "crop"}, {"loss": "affinity", "of": "query", "weight": 0.1}]
    assert read_terms(rows) == (CropTerm(), AffinityTerm(of="query", weight=0.1))


def test_terms_say_what_they_need() -> None:
    assert CropTerm().needs == frozenset()
    assert CropTerm(teacher="averaged").needs == {"averaged"}
    assert AffinityTerm(teacher="clip").needs == frozenset()
    assert MapTerm().needs == {"vfm", "texts"}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"loss": "crops"}], "it is one of"),
        ([{"loss": "crop", "colour": 1}], "it takes"),
        ([{"loss": "affinity", "of": "values"}], "not one of"),
        ([{"loss": "crop", "weight": -1.0}], "at least 0"),
        ([{"loss": "affinity", "temperature": 0.0}], "above 0"),
        ([], "no term"),
    ],
)
def test_rows_that_are_wrong_name_the_key(rows, words) -> None:
    with pytest.raises(ValueError, match=rf"MODEL\.DISTILL\.TERMS.*{words}"):
        read_terms(rows)
