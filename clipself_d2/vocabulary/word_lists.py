"""Word lists of the noun chunker: what is no noun in a caption, and what only looks so."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words before which a verb's base form follows.
VERB_LEADERS = _words(
    """
    to that which who i you he she it we they this these those can could will would shall should
    may might must do does did not
    """
)

# Determiners, prepositions, conjunctions, pronouns, auxiliaries, adverbs: they end a phrase.
FUNCTION_WORDS = VERB_LEADERS | _words(
    """
    a an the his her its our their your my mine yours hers ours theirs some any no none every each
    either neither both all another other others such same enough much more most less least
    in on at of by for from with without within into onto upon over under above below beneath
    beside besides between among amongst amid against along alongside across around about after
    before behind beyond during near nearby next off out outside inside through throughout toward
    towards up down until till via per like unlike than except
    and or but nor so yet if while when where whose whom because since although though as what
    how why whether
    me him us them himself herself itself themselves myself yourself ourselves oneself anyone
    someone somebody anybody everyone everybody nobody something anything everything nothing one
    ones there here
    be is are was were been being am has have had having got get gets getting let lets
    very too also just only even still already almost quite rather really again once ever never
    always often together apart away back forth ahead aside abroad upside sideways downhill uphill
    downtown indoors outdoors upstairs downstairs closely nicely neatly quickly slowly partially
    fully completely currently apparently maybe perhaps now then soon today tonight later well
    oh hi hello yeah please etc vs aka
    """
)

# Verbs of captions that are seldom nouns in them, or told from nouns by their neighbours.
VERBS = _words(
    """
    sit stand lie lay hold ride wear eat drink play walk run jump fly hang look watch take make
    give go come drive travel cross carry catch throw hit swing kick reach lean wait rest sleep
    pose smile talk speak read write cook cut slice prepare serve fill cover top contain include
    feature show display depict appear seem use work move turn pull push pass stop start begin end
    keep leave put place set stack line surround decorate share enjoy feed graze chew lick bite
    sniff chase swim surf ski skate skateboard snowboard slide climb crouch kneel bend stretch
    perform practice compete race land approach enter exit board face point touch grab pick pet
    hug kiss wash brush blow grow float sail glide hover soar wander roam
    stare gaze peer peek laugh cry stick attach connect consist try want need attempt
    advertise offer sell buy shop bring tow tie lead follow herd gather
    celebrate converse relax lounge nap perch roost bathe dry splash wade drip burn shine reflect
    overlook rise fall drop spill pour mix stir bake fry grill roast toss flip balance spin
    """
)

# Words in -ing that are nouns.
NOUNS_ING = _words(
    """
    building ceiling painting wedding king ring string wing railing thing evening morning frosting
    topping stuffing seasoning clothing swing spring sibling duckling earring dressing icing
    lighting wiring awning opening crossing siding sling bling piping tubing molding flooring
    roofing fencing housing filling pudding dumpling seedling gosling viking wingding covering
    coating lettering writing drawing carving meeting gathering outing bedding
    rigging paneling plumbing scaffolding netting padding legging lining serving offering
    engraving
    """
)

# Words in -ed that are nouns.
NOUNS_ED = _words("bed shed sled seed weed reed breed steed moped seaweed bobsled flatbed feed")

# First words of fixed compounds that would not pass for nouns, with the words they belong to;
# empty: any noun.
COMPOUND_FIRST: dict[str, frozenset[str]] = {
    "hot": _words("dog dogs tub tubs sauce chocolate"),
    "polar": _words("bear bears"),
    "wild": _words("flower flowers boar"),
    "french": _words("fry fries toast bread horn"),
    "fried": _words("egg eggs"),
    "white": _words("board"),
    "black": _words("board"),
    "double": _words("decker"),
    "remote": _words("control controls controller controllers"),
    "traffic": frozenset(),
    "fire": frozenset(),
    "light": _words("bulb bulbs fixture fixtures pole poles switch house"),
    "open": _words("air"),
    "stuffed": _words("animal animals bear bears toy toys"),
    "mixed": _words("vegetables vegetable fruit"),
    "baked": _words("goods"),
    "parking": frozenset(),
    "dining": frozenset(),
    "living": frozenset(),
    "swimming": _words("pool pools trunks suit suits"),
    "washing": _words("machine machines"),
    "sewing": _words("machine machines"),
    "cutting": _words("board boards"),
    "chopping": _words("board boards"),
    "frying": _words("pan pans"),
    "baking": _words("sheet sheets pan pans dish tray"),
    "serving": _words("dish tray plate platter"),
    "rolling": _words("pin pins"),
    "steering": _words("wheel wheels"),
    "shopping": frozenset(),
    "sleeping": _words("bag bags"),
    "walking": _words("stick sticks path trail"),
    "racing": _words("car cars bike bikes"),
    "fishing": frozenset(),
    "wedding": frozenset(),
    "skiing": _words("gear equipment"),
    "boxing": _words("glove gloves ring"),
    "waiting": _words("room area"),
    "landing": _words("gear strip"),
    "running": _words("shoe shoes water"),
    "mixing": _words("bowl bowls"),
    "drinking": _words("glass glasses fountain"),
    "measuring": _words("cup cups"),
    "mounted": _words("police"),
}

ADJECTIVES = _words(
    """
    red green blue yellow white black brown pink purple grey gray beige tan maroon teal turquoise
    violet crimson golden colored colorful multicolored bright dark pale dim
    big small large little tiny huge giant enormous massive tall short long wide narrow thick thin
    high low deep shallow fat skinny slim mini miniature medium oversized
    old young new modern antique vintage ancient recent fresh aged elderly adult mature
    good bad nice great fine best better worst pretty beautiful cute lovely ugly gorgeous handsome
    attractive elegant fancy plain simple neat messy dirty clean dusty muddy wet dry damp moist
    soft hard rough smooth flat round square rectangular circular oval triangular curved straight
    steep sharp blunt hollow solid firm loose tight heavy light
    hot cold warm cool chilly frozen icy snowy rainy sunny cloudy foggy windy stormy hazy
    empty full open closed half whole complete partial broken cracked rusty rotten ripe raw cooked
    sweet sour salty spicy bitter tasty delicious yummy healthy juicy crispy crunchy creamy cheesy
    happy sad angry tired sleepy hungry thirsty scared lonely funny silly serious calm quiet loud
    busy lazy crazy wild tame friendly furry fluffy hairy fuzzy shaggy bald curly shiny glossy
    wooden metallic plastic leather concrete ceramic stainless wicker
    male female public private outdoor indoor urban rural suburban local foreign national
    american english british french german italian chinese japanese asian mexican indian african
    european western eastern northern southern
    left right front rear upper lower inner outer middle central main various different similar
    several first second third last single double triple separate certain special common usual
    strange weird odd unusual unique real fake artificial natural electric digital automatic manual
    professional casual formal traditional typical ordinary favorite famous popular important
    nude naked barefoot shirtless topless asleep awake alone alive dead sick injured visible
    grassy sandy rocky leafy wooded hilly mountainous lush vast scenic rustic decorative ornate
    floral striped spotted patterned checkered plaid leafless blurry blurred fast slow quick
    early late daily sized military free easy difficult ready own close entire teenage lone
    pregnant blonde blond brunette bearded chubby toy-like
    """
)

# Adjectives that are nouns where none follows.
NOUN_OR_ADJECTIVE = _words(
    "light orange square front middle adult male female left right plastic leather concrete cold"
)

# Nouns with the endings of adjectives and adverbs.
NOT_ADJECTIVES = _words(
    """
    vegetable timetable starfish goldfish polish finish jellyfish swordfish catfish crayfish forest
    harvest interest handful spoonful mouthful detective archive relative locomotive request
    contest conquest rubbish crucible family butterfly assembly monopoly
    """
)

NUMBERS = _words(
    """
    two three four five six seven eight nine ten eleven twelve dozen dozens hundred hundreds
    thousand thousands twenty thirty forty fifty several many few numerous various multiple
    """
)

# Crumbs of tokens, passed over in a phrase.
NO_NOUNS = _words("s t m re ve ll d o h e b c x am pm im dont cant th nd st rd")
