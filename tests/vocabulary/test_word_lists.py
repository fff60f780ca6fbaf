from clipself_d2.vocabulary import word_lists

LISTS = {
    name: value
    for name, value in vars(word_lists).items()
    if name.isupper() and isinstance(value, frozenset | dict)
}


def test_lists_hold_lower_case_words() -> None:
    assert len(LISTS) > 8
    for name, words in LISTS.items():
        assert all(word and word == word.lower() for word in words), name


def test_a_verb_is_no_function_word() -> None:
    assert not word_lists.VERBS & word_lists.FUNCTION_WORDS


def test_nouns_in_ing_and_ed_have_their_ending() -> None:
    assert all(word.endswith("ing") for word in word_lists.NOUNS_ING)
    assert all(word.endswith("ed") for word in word_lists.NOUNS_ED)
