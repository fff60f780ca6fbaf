"""Nouns of English captions by rules, without a trained parser.

Captions are short and plain: a noun phrase is a run of words between function words, verbs and
punctuation; its last noun is its head, and the nouns before it make a compound with it.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from clipself_d2.vocabulary.word_lists import (
    ADJECTIVES,
    COMPOUND_FIRST,
    FUNCTION_WORDS,
    NO_NOUNS,
    NOT_ADJECTIVES,
    NOUN_OR_ADJECTIVE,
    NOUNS_ED,
    NOUNS_ING,
    NUMBERS,
    VERB_LEADERS,
    VERBS,
)

PARSERS = ("rules", "spacy")
SPACY_MODEL = "en_core_web_sm"

_TOKEN = re.compile(r"[a-z][a-z\-]*(?:'[a-z]+)?|\d+|[^\sa-z\d]")
_WORD = re.compile(r"[a-z][a-z\-]*$")
_END = "."
_ADJECTIVE_ENDINGS = ("ful", "ous", "less", "ible", "able", "ish", "ive", "est", "ly")
_NOUN, _PASSED, _BREAK = "noun", "passed", "break"

# Plurals that no rule undoes.
IRREGULAR = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "persons": "person",
    "feet": "foot", "teeth": "tooth", "geese": "goose", "mice": "mouse", "lice": "louse",
    "oxen": "ox", "dice": "die", "leaves": "leaf", "knives": "knife", "wives": "wife",
    "lives": "life", "shelves": "shelf", "wolves": "wolf", "calves": "calf", "halves": "half",
    "loaves": "loaf", "scarves": "scarf", "hooves": "hoof", "thieves": "thief", "elves": "elf",
    "cacti": "cactus", "fungi": "fungus", "octopi": "octopus", "hippopotami": "hippopotamus",
    "potatoes": "potato", "tomatoes": "tomato", "mangoes": "mango", "mosquitoes": "mosquito",
    "heroes": "hero", "volcanoes": "volcano", "tornadoes": "tornado", "buffaloes": "buffalo",
    "avocadoes": "avocado", "buses": "bus", "gases": "gas", "lenses": "lens", "canvases": "canvas",
    "atlases": "atlas", "iris": "iris", "irises": "iris", "walruses": "walrus",
    "octopuses": "octopus", "cactuses": "cactus", "crocuses": "crocus", "viruses": "virus",
    "campuses": "campus", "circuses": "circus", "statuses": "status", "bonuses": "bonus",
    "menus": "menu", "gnus": "gnu", "emus": "emu", "axes": "ax", "quizzes": "quiz",
    "movies": "movie", "cookies": "cookie", "brownies": "brownie", "smoothies": "smoothie",
    "selfies": "selfie", "zombies": "zombie", "hoodies": "hoodie", "pies": "pie", "ties": "tie",
    "neckties": "necktie", "magpies": "magpie", "veggies": "veggie", "birdies": "birdie",
    "doggies": "doggie", "kiddies": "kiddie", "calories": "calorie", "prairies": "prairie",
    "collies": "collie", "huskies": "husky", "shoes": "shoe", "toes": "toe", "canoes": "canoe",
    "hoes": "hoe", "horseshoes": "horseshoe", "headaches": "headache", "moustaches": "moustache",
    "mustaches": "mustache", "aches": "ache", "caches": "cache", "quiches": "quiche",
    "mooses": "moose", "firemen": "fireman", "policemen": "policeman", "snowmen": "snowman",
}  # fmt: skip

# Words in -s that are no plural, or have no singular.
_UNCHANGED_TEXT = """
    sunglasses eyeglasses glasses scissors pants jeans shorts trousers tights leggings pajamas
    binoculars goggles headphones tongs pliers tweezers clothes goods stairs surroundings
    news series species means headquarters crossroads gymnastics athletics electronics graphics
    bus gas glass grass class dress mattress cactus octopus walrus hippopotamus rhinoceros lens
    canvas christmas atlas chess moss cross boss pass compass brass bass mass mess princess
    waitress actress cypress asparagus hummus citrus virus campus circus status bonus platypus
    lotus hibiscus crocus fungus focus genius radius abacus octopus texas paris kansas dallas swiss
    chaos cosmos tennis iris basis oasis ibis pelvis clematis this his its us yes less plus
    deer sheep fish moose bison shrimp salmon trout aircraft spacecraft
"""
UNCHANGED = frozenset(_UNCHANGED_TEXT.split())

_VOWELS = frozenset("aeiou")
# Endings before which the plural adds -es.
_HISSING = ("ss", "sh", "ch", "x", "zz")


def noun_chunks(text: str) -> list[str]:
    """List the concepts of a sentence.

    Args:
        text: A caption, any case.

    Returns:
        The head noun of every noun phrase as its singular, behind the nouns that make a compound
        with it, in order of appearance with repetitions. Pronouns and possessors are left out, and
        so are adjectives but for those of fixed compounds such as "hot dog".

    Reference: what RegionCLIP, arXiv 2112.09106, section 3.2, takes from a language parser.
    Differs: rules and word lists take the place of the parser, so that nothing is downloaded;
    ``load_parser`` gives the parser's.
    """
    tokens = ["", *_TOKEN.findall(text.lower().replace("\u2019", "'")), _END]
    found: list[str] = []
    run: list[str] = []
    for before, token, after in zip(tokens[:-1], tokens[1:], [*tokens[2:], _END], strict=True):
        word, possessive, _ = token.partition("'")
        kind = _classify(word, before, after, run)
        if possessive:
            # A possessor belongs to the phrase that follows.
            run = []
        elif kind == _NOUN:
            run.append(word)
        elif kind == _BREAK:
            found += _close(run)
            run = []
    return found


def load_parser(name: str) -> Callable[[str], Sequence[str]]:
    """Look up a parser of captions: "rules", or "spacy", which the extra ``concepts`` installs.

    A ValueError says that there is no such parser, or that spaCy or its model is not installed.
    """
    if name == "rules":
        return noun_chunks
    if name != "spacy":
        raise ValueError(f"the parser is {name!r}; expected one of {PARSERS}")
    try:
        import spacy

        language = spacy.load(SPACY_MODEL)
    except (ImportError, OSError) as error:
        raise ValueError(
            f"the parser spacy needs spaCy and its model {SPACY_MODEL}; run pip install "
            f"'clipself_d2[concepts]' and python -m spacy download {SPACY_MODEL}, or take rules"
        ) from error
    return lambda text: document_chunks(language(text.lower()))


def document_chunks(document: Any) -> list[str]:
    """List the concepts, as ``noun_chunks``, of a document that spaCy has parsed."""
    found = []
    for chunk in document.noun_chunks:
        if chunk.root.pos_ == "PRON":
            continue
        parts = [child.lemma_ for child in chunk.root.children if child.dep_ == "compound"]
        name = " ".join([*parts, chunk.root.lemma_]).strip()
        if len(name) > 1 and not name.isdecimal():
            found.append(name)
    return found


def _classify(word: str, before: str, after: str, run: Sequence[str]) -> str:
    """Tell whether a word is a noun of the phrase, passed over in it, or ends it."""
    if word in NUMBERS:
        return _BREAK
    if not _WORD.match(word) or word in FUNCTION_WORDS:
        return _BREAK
    seconds = COMPOUND_FIRST.get(word)
    if seconds is not None and _is_noun_like(after) and (not seconds or after in seconds):
        return _NOUN
    if word in COMPOUND_FIRST.get(before, ()):
        return _NOUN
    # "an orange cat", but "an orange".
    if word in NOUN_OR_ADJECTIVE:
        return _PASSED if _is_noun_like(after) else _NOUN
    if word in NO_NOUNS or _is_adjective(word):
        return _PASSED
    return _BREAK if _is_verb(word, before, run) else _NOUN


def _is_noun_like(word: str) -> bool:
    """Whether a following word may go on with the phrase."""
    plain = bool(_WORD.match(word)) and word not in FUNCTION_WORDS
    return plain and word not in NUMBERS and not _is_participle(word)


def _is_adjective(word: str) -> bool:
    if word in ADJECTIVES:
        return True
    return len(word) > 5 and word.endswith(_ADJECTIVE_ENDINGS) and word not in NOT_ADJECTIVES


def _is_participle(word: str) -> bool:
    if word.endswith("ing") and len(word) > 4:
        return word not in NOUNS_ING
    return word.endswith("ed") and len(word) > 3 and word not in NOUNS_ED


def _is_verb(word: str, before: str, run: Sequence[str]) -> bool:
    """Whether a word is a verb here, given the word before and the nouns so far."""
    if _is_participle(word):
        return True
    base = _verb_base(word)
    if base is None:
        return False
    if before in VERB_LEADERS:
        return True
    # Subject and verb agree: "a man rides", "men ride"; but "a bus ride", "bus rides".
    return bool(run) and (word != base) != is_plural(run[-1])


def _verb_base(word: str) -> str | None:
    """The base of a verb in its base form or third person, where the list has it."""
    if word in VERBS:
        return word
    for ending, rest in (("ies", "y"), ("es", ""), ("s", "")):
        base = word[: -len(ending)] + rest
        if word.endswith(ending) and base in VERBS:
            return base
    return None


def _close(run: Sequence[str]) -> list[str]:
    """The concept of a finished phrase, or none."""
    nouns = [word for word in run if len(word) > 1]
    if not nouns:
        return []
    first = [word if word in COMPOUND_FIRST else lemmatize_noun(word) for word in nouns[:-1]]
    return [" ".join([*first, lemmatize_noun(nouns[-1])])]


def lemmatize_noun(word: str) -> str:
    """Give a lower-case noun's singular; what the rules do not take for a plural stays as it is."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    # Policewomen, salesmen and the like, but not specimen.
    if word.endswith(("women", "smen", "kmen", "remen", "cemen", "ermen")):
        return word[:-2] + "an"
    if len(word) < 4 or not word.endswith("s") or word in UNCHANGED or word.endswith("ss"):
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith("es") and word[:-2].endswith(_HISSING):
        return word[:-2]
    # Latin singulars such as walrus; but menus and gnus, of the table, are plurals.
    if word.endswith("us") and word[-3] not in _VOWELS:
        return word
    return word[:-1]


def is_plural(word: str) -> bool:
    """Tell whether a lower-case noun is written in the plural."""
    return lemmatize_noun(word) != word
