from clipself_d2.parts.words import did_you_mean, shortened


def test_the_near_word_is_named_whatever_its_case() -> None:
    assert did_you_mean("adamw", ["SGD", "AdamW"]) == "; did you mean 'AdamW'?"
    assert did_you_mean("banana", ["SGD", "AdamW"]) == ""


def test_a_long_list_is_cut_with_a_count() -> None:
    assert shortened(range(1200), 2) == "0, 1 and 1198 more"
    assert shortened(["a", "b"], 2) == "a, b"
