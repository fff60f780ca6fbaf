"""Dictionary forms of English nouns, by rules and a table of exceptions."""

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
