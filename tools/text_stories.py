"""Makes up the stories that models/text.lm is trained on: story(seed) gives the same text everywhere.

A story is about one village. World draws its people, places and things once; then episodes follow one another: talk at
the inn, errands, markets with sums, journeys, letters, songs, thefts. What an episode tells is kept as a question and
its answer, and later episodes ask: a reader who remembers the beginning can know what comes.

Templates: [a|b] is one of the two, <word> an entry of RULES, {a.name} a value. Capitals and "an" come afterwards.
"""
import random
import re

FEMALE = ("Ada|Alba|Anna|Berta|Bree|Clara|Cora|Dora|Edda|Elsa|Emma|Esther|Fay|Flora|Gerda|Greta|Hanna|Hazel|Hilda|Ida|"
          "Ines|Iris|Ivy|Jana|Joan|Judith|Katrin|Lena|Lotte|Lucy|Mara|Martha|Maud|Mina|Nell|Nora|Olga|Orla|Petra|Rosa|"
          "Ruth|Sanna|Sarah|Selma|Tessa|Thea|Tilda|Ursula|Vera|Wanda|Wilma|Yrsa|Zelda").split("|")
MALE = ("Abel|Adam|Albin|Arno|Basil|Bram|Carl|Conrad|Dan|Edgar|Edwin|Emil|Erik|Felix|Finn|Frank|Georg|Gregor|Gus|Hal|"
        "Hector|Hugo|Ivo|Jack|Jacob|Jasper|Jonas|Karl|Kurt|Lars|Leo|Ludwig|Marek|Martin|Max|Milo|Nils|Noah|Odo|Oscar|"
        "Otto|Paul|Pelle|Quentin|Ralf|Robin|Rolf|Samuel|Sten|Thomas|Tobin|Ulf|Victor|Walter|Wim").split("|")
FIRST = ("Alder|Amber|Ash|Barley|Beech|Birch|Black|Bracken|Bright|Broad|Clay|Cold|Copper|Crow|Dark|Deep|Eagle|East|Elm|"
         "Ember|Fen|Fern|Flint|Fox|Frost|Gold|Grey|Hare|Hawk|Heath|High|Holly|Iron|Kestrel|Lark|Long|Low|Maple|Marsh|"
         "Mill|Moss|North|Oak|Otter|Pine|Raven|Red|Reed|Rook|Rose|Salt|Sand|Silver|Snow|South|Sparrow|Stone|Storm|"
         "Summer|Swan|Thistle|Thorn|West|White|Wild|Willow|Winter|Wolf").split("|")
PLACE = ("bridge|brook|bury|dale|down|fell|field|ford|gate|ham|haven|hill|hollow|hurst|ley|mere|moor|mouth|stead|ton|"
         "water|well|wick|wood|worth").split("|")
FAMILY = "by|croft|ford|gate|land|ley|man|more|sen|shaw|smith|son|ton|ward|well|wick|win|wood|worth|wright".split("|")
TRADES = ("apothecary|baker|bargeman|basket maker|beekeeper|blacksmith|brewer|butcher|candle maker|carpenter|carter|"
          "charcoal burner|clerk|clockmaker|cobbler|cooper|dyer|farmer|ferryman|fisher|gardener|glassblower|goatherd|"
          "hatter|healer|hunter|locksmith|mapmaker|mason|midwife|miller|miner|musician|net maker|painter|pedlar|potter|"
          "ratcatcher|rope maker|saddler|scribe|shepherd|shipwright|tailor|tanner|teacher|thatcher|toll keeper|"
          "watchman|weaver|wheelwright|woodcutter").split("|")
TRAITS = ("brave|careful|cheerful|clever|cross|curious|dreamy|forgetful|gentle|greedy|honest|jealous|kind|lazy|loud|"
          "lucky|modest|nervous|patient|polite|proud|quick|quiet|restless|serious|shy|sly|stubborn|talkative|thrifty|"
          "vain|wise").split("|")
MATTER = ("amber|ash wood|bone|brass|bronze|cedar|clay|copper|crystal|ebony|glass|gold|green stone|horn|iron|ivory|"
          "jade|lead|leather|oak|pearl|pewter|silver|steel|tin|walnut|wax").split("|")
THING = ("arrow|bell|bowl|box|bracelet|brooch|button|candlestick|chain|chess king|coin|comb|compass|cup|dagger|dice "
         "box|drum|flute|hairpin|hammer|harp|horn|inkwell|jug|key|knife|lamp|lantern|locket|mask|medal|mirror|needle|"
         "plate|ring|scale|seal|spoon|star|statue|sundial|thimble|tray|whistle").split("|")
COLOUR = "black|blue|brown|crimson|golden|green|grey|orange|purple|red|scarlet|silver|white|yellow".split("|")
BEAST = ("badger|bear|boar|bull|cat|cock|crow|dog|duck|eagle|fox|goat|goose|hare|hedgehog|heron|horse|lamb|lion|mole|"
         "mouse|otter|owl|ox|pig|pike|rabbit|rat|raven|salmon|snail|sparrow|stag|swan|toad|trout|wolf|wren").split("|")
GOODS = ("apples|barley|beans|beeswax|bread|butter|candles|carrots|cheese|cherries|cider|cloth|eggs|feathers|figs|"
         "flour|garlic|ginger|herring|honey|hops|lamp oil|leeks|linen|malt|milk|mushrooms|nails|nuts|onions|paper|"
         "parsley|pears|peas|pepper|plums|rope|rye|salt|soap|tallow|tea|turnips|vinegar|wool").split("|")
MEASURE = "bags|baskets|boxes|bundles|crates|jars|pots|pounds|sacks|tubs".split("|")
HERB = ("bay|burdock|comfrey|dill|elder|fennel|foxglove|heather|hyssop|ivy|juniper|lavender|mallow|marigold|mint|"
        "mugwort|nettle|rosemary|rue|saffron|sage|sorrel|tansy|thyme|valerian|vervain|wormwood|yarrow").split("|")
ILLNESS = ("a broken heart|a cough|a fever|a sore throat|a stiff neck|a toothache|bad dreams|bee stings|cold feet|"
           "forgetfulness|gout|hiccups|sadness|snoring|sneezing|warts").split("|")
NUMBERS = ("no one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
           "seventeen eighteen nineteen twenty").split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
SEASONS = "spring summer autumn winter".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
RHYMES = [words.split() for words in (
    "light night knight|hay day bay|rain lane plain grain|sea tree bee key|gold cold fold|snow crow bow|"
    "stone bone throne|door floor shore war|hill mill till|ground hound sound|fire briar choir|song throng gong|"
    "well bell dell spell|house mouse louse|bread bed shed thread").split("|")]
RIDDLES = [
    ("It has teeth and cannot bite.", "A comb"),
    ("The more you take from it, the larger it grows.", "A hole"),
    ("It runs all day and never leaves its bed.", "The river"),
    ("It has a neck and no head.", "A bottle"),
    ("It goes up the hill and down the hill and never moves.", "The road"),
    ("It has hands and cannot wave.", "A clock"),
    ("It is full of holes and holds water.", "A sponge"),
    ("It dies when it drinks.", "A fire"),
    ("It is washed all its life and never gets clean.", "A fish"),
    ("Everybody has one and nobody can lose it.", "A shadow"),
    ("It flies without wings and weeps without eyes.", "A cloud"),
    ("It belongs to you, but others use it more.", "Your name"),
    ("You break it when you speak of it.", "Silence"),
    ("It eats wood all winter and is never full.", "The stove"),
    ("It is always coming and never here.", "Tomorrow"),
    ("It has an eye and cannot see.", "A needle")]

RULES = {
    "hiding": "behind the [altar|clock|loose brick|mirror|oven|stove|woodpile|tapestry]|in a [barrel of salt|boot|"
              "broken drum|flour bin|hollow tree|jar of peas|sack of wool|bird's nest|pot of honey]|in the [bell tower|"
              "chimney|churchyard wall|dovecote|hayloft|old kiln|mill race|pigsty]|under the [bed|bridge|doorstep|"
              "floor of the mill|roots of the great oak|stairs|stone bench|third beehive|blue cushion|seventh step]",
    "weather": "A [cold|cool|soft|warm|sharp] wind blew from the [north|south|east|west]|[rain|sleet|hail] [beat|"
               "drummed|rattled] on the [roofs|shutters|windows]|the sun [shone|stood high|was low and red]|[fog|mist] "
               "lay over the [fields|river|marsh|meadows]|snow had fallen [in the night|since noon|for two days]|the "
               "sky was [grey|clear|full of stars|the colour of slate]|thunder rolled [far away|over the hills]|frost "
               "[glittered on the grass|covered every branch]|the air smelled of [smoke|hay|wet leaves|the sea|apples]",
    "when": "that [morning|evening|night|afternoon]|the next [day|morning|evening]|[two|three|four|five|ten] days "
            "later|a week later|at [dawn|noon|dusk|midnight|first light]|on [Monday|Tuesday|Wednesday|Thursday|Friday|"
            "Saturday|Sunday]|when the bell rang [six|seven|eight|nine]|[before|after] [breakfast|supper|sunset]|late "
            "in [spring|summer|autumn|winter]|soon afterwards|after the [harvest|fair|storm|first frost]",
    "said": "said|said|said|said|answered|replied|whispered|murmured|muttered",
    "asked": "asked|asked|asked|inquired",
    "how": "[kindly|calmly|slowly|softly|at last|with a smile|with a sigh|with a frown|without looking up|in a low "
           "voice|after a while|and laughed|and shook {his} head|and nodded|and put down {his} cup]",
    "feel": "afraid|angry|ashamed|calm|content|glad|grateful|hopeful|lonely|proud|sad|sorry|surprised|tired|uneasy|"
            "worried",
    "greet": "good [morning|evening|day]|welcome|come in and shut the door|you are late|sit down by the fire|I have "
             "been waiting|well met|I did not hear you come in|you look tired|there you are at last",
    "drink": "ale|cider|mead|milk|tea|mulled wine|elderberry wine|water from the well|hot broth",
    "meal": "barley soup|bean stew|bread and cheese|cold mutton|dumplings|eel pie|fried trout|goose with apples|"
            "mushroom soup|onion tart|pancakes|pea soup|porridge with honey|roast duck|smoked herring",
    "sound": "a dog barked|a door creaked|an owl called|the floor groaned|somebody coughed|the bell rang|the fire "
             "crackled|the wind howled in the chimney|water dripped from the roof|the clock struck",
    "wisdom": "a borrowed coat does not keep you warm|a closed door tells no tales|a good neighbour is better than a "
              "high wall|an empty sack cannot stand|even a small key opens a great gate|[he|she] who counts the clouds "
              "never sows|every river was once a spring|a short answer saves a long road|still water hides the deepest "
              "mud|the dog that barks at the moon wakes only its master|the longest road begins at the doorstep|those "
              "who ask are lost only once|two lanterns are better than one sword|what is written in snow is gone by "
              "spring|[a|every] [fool|thief|king|child] [can count|likes] [other people's|his own] [money|songs|bread]|"
              "[bread|silence|time|patience|sleep|an open window] [costs nothing|heals many wounds|is worth more than "
              "gold|has no master|cannot be stolen]|[do not|never] [wake|feed|praise|sell|trust] the [cat|cow|dog|"
              "goose|horse|mule] [before|after] [supper|the storm|the harvest]|[nobody|a wise man|an old woman|a good "
              "soldier] [looks for|finds|throws away] [a friend|a shoe|honey|water] [in a burning house|at the bottom "
              "of the sea|while it rains]|a [small|wet|late|blind] [bird|fish|mouse|guest] is still a [bird|fish|mouse|"
              "guest]|if you [want|look for] [eggs|milk|peace|the truth], [do not kick the hen|bring a bucket|learn to "
              "wait|go yourself]",
    "trail": "a broken bridge|a burned farmhouse|a chapel without a roof|a crossroads with three signposts|a dry well|"
             "a field of poppies|a forge long cold|a fallen pine|a hut of turf|a lake as round as a coin|a milestone "
             "with no number|a narrow gorge|a rope bridge|a ruined tower|a shepherd's cross|a stone giant|a toll gate|"
             "a waterfall|a windmill with two sails|an abandoned quarry|an apple orchard|an old gallows|an ice cave|an "
             "iron gate|a [lonely|burned|hollow|crooked|giant] [ash|birch|elm|oak|pine|willow]|a [grey|green|nameless|"
             "flooded|frozen] [pond|valley|meadow|village]|the [hermit's|giant's|bishop's|witch's|king's] [bench|chair|"
             "grave|staircase|well]",
    "trouble": "the river had carried off the bridge|a wheel of the cart broke|the path was lost in the fog|three "
               "robbers barred the way|the [mule|horse|donkey] would not go on|snow closed the pass|the lamp went out|"
               "a landslide had buried the road|a bear stood on the path|the ice began to crack|the ferry lay on the "
               "other bank|a pack of wolves followed at a distance",
    "way_out": "{he} [tied|bound] [the pieces|two ropes|three branches] together and it held|{he} waited until the "
               "moon rose and then went on|{he} sang so loudly that nobody dared to come near|{he} gave away {his} "
               "[bread|supper|last cheese] and was let through|{he} remembered an old path and took it|{he} lit a fire "
               "and kept it burning until dawn|{he} turned back twice and the third time found the way|a stranger in a "
               "<colour> coat helped and would not tell {his} name",
    "colour": "|".join(COLOUR),
    "thanks": "I shall not forget it|you have my thanks|I never thought to see it again|that was well done|the whole "
              "village will hear of it|you kept your word, and I keep mine|I knew I had asked the right one",
    "gossip": "the [miller|priest|toll keeper] waters his beer|there will be a war in the south|the well at the "
              "crossroads has run dry|a ship of gold lies in the lake|the old tower is haunted|the duke wants a new "
              "tax on [salt|windows|chimneys|geese]|wolves have been seen near the [bridge|mill|sheepfold]|the harvest "
              "will be poor|a star fell behind the hill|someone is digging in the churchyard at night|the bridge will "
              "not last the winter|the [king|queen|duke|bishop] has [lost|sold|hidden] [a crown|a horse|three ships|"
              "the keys of the city]|[two|three|forty] [soldiers|pilgrims|monks|dragons] were seen on the road to "
              "{w.town}|a [mermaid|talking horse|giant eel|white stag] lives [in the {w.river}|in the wood|behind the "
              "mill]",
    "doubt": "people say many things|I believe what I see|that is an old tale|then somebody must do something|my "
             "grandmother said the same|I would not bet a copper on it|we shall know by spring|nobody asked me",
}


def spell(n):
    """A number below 1000 in words."""
    if n <= 20:
        return NUMBERS[n]
    if n < 100:
        return TENS[n // 10] + ("-" + NUMBERS[n % 10] if n % 10 else "")
    return NUMBERS[n // 100] + " hundred" + (" and " + spell(n % 100) if n % 100 else "")


def count(n, one, many=None):
    return f"{spell(n)} {one if n == 1 else many or one + 's'}"


def polish(text):
    """Capitals at the beginning of sentences and quotations, "an" before vowels."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])(?!one\b|uni|use|eu)", r"\1n ", text)
    return re.sub(r'(?:^|(?<=\n)|(?<=[.!?] )|(?<=[A-Z]: )|(?<=[.!?]" "))[a-z]|(?<=\." )[a-z]|(?:^|(?<=[ \n]))"[a-z]',
                  lambda m: m.group().upper(), text)


class Person:
    def __init__(self, world):
        rng = world.rng
        woman = rng.random() < 0.5
        self.name = world.fresh(lambda: rng.choice(FEMALE if woman else MALE))
        self.family = rng.choice(FIRST) + rng.choice(FAMILY)
        self.full = f"{self.name} {self.family}"
        self.trade = world.fresh(lambda: rng.choice(TRADES))
        self.trait, self.other_trait = rng.sample(TRAITS, 2)
        self.he, self.him, self.his = ("she", "her", "her") if woman else ("he", "him", "his")
        self.thing = world.thing()
        self.age = rng.randint(17, 80)


class World:
    def __init__(self, rng):
        self.rng, self.used, self.facts, self.day = rng, set(), [], rng.randrange(7)
        self.village = rng.choice(FIRST) + rng.choice(PLACE)
        self.town = self.fresh(lambda: rng.choice(FIRST) + rng.choice(PLACE))
        self.river = rng.choice("Aller|Brenn|Elde|Isk|Lenn|Mirra|Orne|Sill|Tarn|Ulla|Wend|Yar".split("|"))
        self.inn = f"{rng.choice(COLOUR)} {rng.choice(BEAST)}".title()
        self.year = rng.randint(3, 989)
        self.people = [Person(self) for _ in range(rng.randint(4, 7))]
        self.host = self.people[0]
        self.host.trade = "innkeeper"
        self.purse = {p.name: rng.randint(8, 60) for p in self.people}

    def fresh(self, draw):
        """Something that this story has not used yet."""
        value = draw()
        while value in self.used:
            value = draw()
        self.used.add(value)
        return value

    def thing(self):
        return self.fresh(lambda: f"{self.rng.choice(MATTER)} {self.rng.choice(THING)}")

    def cast(self, n):
        return self.rng.sample(self.people, n)

    def pick(self, options):
        """One of the alternatives of a template, split at the bars that are in no bracket."""
        parts, depth, begin = [], 0, 0
        for i, c in enumerate(options):
            depth += (c == "[") - (c == "]")
            if c == "|" and depth == 0:
                parts.append(options[begin:i])
                begin = i + 1
        return self.rng.choice(parts + [options[begin:]])

    def say(self, template, a=None, **values):
        """Fills in a template; {he}, {his}, {him} are those of a."""
        text = template
        while "[" in text or "<" in text:
            text = re.sub(r"\[([^\[\]]*)\]", lambda m: self.rng.choice(m.group(1).split("|")), text)
            text = re.sub(r"<(\w+)>", lambda m: self.pick(RULES[m.group(1)]), text, count=1)
        if a is not None:
            values.update(a=a, he=a.he, his=a.his, him=a.him)
        return text.format(w=self, **values)

    def stops(self, n):
        """n different places on the way."""
        stops = []
        while len(stops) < n:
            stop = self.say("<trail>")
            if stop not in stops:
                stops.append(stop)
        return stops

    def learn(self, question, answer):
        self.facts.append((question, answer))


# ---- episodes: each returns paragraphs -------------------------------------------------------------------------------

def opening(w):
    first, second = w.people[1], w.people[2]
    text = w.say(
        "[Once upon a time there was|There was once|Far from the capital lay|Between two hills lay|Where the river "
        "{w.river} bends there was] a village [called|by the name of] {w.village}. [It had|There were] {houses} "
        "houses, [a mill|a chapel|a forge|a school] and an inn, the {w.inn}. [The innkeeper was|The inn belonged to] "
        "{h.full}, who was {h.trait} and [often|sometimes|never] {h.other_trait}. [Above|Beside] the [door|fireplace|"
        "counter] hung a {h.thing}, and [nobody knew why|it was older than the house|it had come from {w.town}|"
        "strangers always asked about it]. In the year {w.year} [<weather>|the {w.river} froze|there was no summer|the "
        "old bridge fell], and [that is where|in that year|so] this story begins.", h=w.host,
        houses=spell(w.rng.randint(9, 60)))
    w.learn(f"What hung in the {w.inn}", f"a {w.host.thing}")
    w.learn(f"Who kept the {w.inn}", w.host.full)
    w.learn(f"In which year did the story of {w.village} begin", f"in the year {w.year}")
    return [text, portrait(w, first)[0], portrait(w, second)[0]]


def portrait(w, person=None):
    p = person or w.rng.choice(w.people[1:])
    w.learn(f"What was the trade of {p.full}", f"{p.name} was the {p.trade}")
    w.learn(f"What did {p.name} always carry", f"a {p.thing}")
    return [w.say(
        "[{a.full} was the {a.trade} of {w.village}.|The {a.trade} of {w.village} was called {a.full}.|Everybody in "
        "{w.village} knew {a.full}, the {a.trade}.] [{he} was {age} years old and {a.trait}|At {age}, {he} was still "
        "{a.trait}|{he} was {a.trait}, and {age} years old]. [{he} always carried a {a.thing}|Wherever {he} went, {he} "
        "had a {a.thing} with {him}|{he} owned little, but {he} would not have sold {his} {a.thing} for a {horse}], [a "
        "gift from {his} [mother|father|aunt|brother]|which {he} had found in the {w.river}|which {he} had won at "
        "[dice|cards]|and nobody was allowed to touch it]. [Some people thought {him} {a.other_trait}|In winter {he} "
        "was {a.other_trait}|{he} could be {a.other_trait}, too], but [<wisdom>|{he} did not care|they all liked {him}|"
        "{he} had {his} reasons].", p, age=spell(p.age), horse=w.rng.choice(["horse", "house", "ship", "farm"]))]


def hiding(w):
    a, b = w.cast(2)
    thing, place = w.thing(), w.say("<hiding>")
    w.learn(f"Where did {a.name} hide the {thing}", place)
    return [w.say(
        "<when> {a.name} [took|carried|brought] a {thing} out of the house and hid it {place}. [Nobody saw it|Only the "
        "[cat|moon|crows] saw it|{he} looked around twice|{he} told nobody but {b.name}]. \"[One day|Sooner or later] "
        "[somebody will ask for it|it will be needed|I shall be glad of it],\" {he} thought, and <sound>.",
        a, b=b, thing=thing, place=place)]


def watchword(w):
    guard = w.rng.choice(w.people)
    word = w.fresh(lambda: w.rng.choice(COLOUR) + " " + w.rng.choice(BEAST))
    w.learn(f"What was the watchword of {guard.name}", word)
    return [w.say("<when> {a.name} stood at the gate. \"The watchword is '{word}',\" {he} <said>. \"[Keep it to "
                  "yourself|Do not write it down|Whoever forgets it sleeps outside|It holds until the new moon].\"",
                  guard, word=word)]


def memory(w):
    """Questions about what was told before."""
    a, b = w.cast(2)
    lines = [w.say("<when> {a.name} and {b.name} [sat by the fire|walked along the {w.river}|met at the {w.inn}|were "
                   "peeling turnips|waited for the rain to stop] and [spoke of the past|asked each other questions|"
                   "tried to remember everything].", a, b=b)]
    for question, answer in w.rng.sample(w.facts, min(len(w.facts), w.rng.randint(2, 5))):
        lines.append(w.say("\"{question}?\" <asked> {a.name}.", a, question=question))
        lines.append(w.say("\"[{answer}|{answer}|I remember: {answer}],\" {b.name} <said>.", b, b=b, answer=answer))
        a, b = b, a
    return lines


def talk(w):
    a, b = w.cast(2)
    lines = [w.say("<weather>. <when> {a.name} came to the {w.inn} and [found|met] {b.name}, who was [drinking <drink>|"
                   "eating <meal>|mending a [boot|net|sack]|counting coins|warming {b.his} hands].", a, b=b)]
    topic = w.rng.choice(["gossip", "way", "thing", "trade", "gossip"])
    lines.append(w.say("\"<greet>,\" {b.name} <said>.", b, b=b))
    if topic == "gossip":
        lines.append(w.say("\"Have you heard? They say that <gossip>,\" {a.name} <said> <how>.", a))
        lines.append(w.say("\"<doubt>. <doubt>,\" {b.name} <said> <how>.", b, b=b))
        lines.append(w.say("\"But I heard it from the {c.trade},\" <said> {a.name}.", a, c=w.rng.choice(w.people)))
        lines.append(w.say("\"<wisdom>,\" said {b.name}, and <sound>.", b, b=b))
    elif topic == "way":
        lines.append(w.say("\"How do I get to {w.town}?\" {a.name} <asked>.", a))
        lines.append(w.say("\"Go [north|south|east|west] as far as <trail>. [Then follow the {w.river}|Then turn [left|"
                           "right]|Do not stop there] until you see <trail>. From there it is {n} miles,\" said "
                           "{b.name}.", b, b=b, n=spell(w.rng.randint(2, 30))))
        lines.append(w.say("\"And if [it snows|night falls|I lose the way]?\" <asked> {a.name} <how>.", a))
        lines.append(w.say("\"[Then wait|Then come back|Then light a fire]. <wisdom>,\" {b.name} <said>.", b, b=b))
    elif topic == "thing":
        lines.append(w.say("\"Is that your {b.thing}?\" <asked> {a.name}.", a, b=b))
        lines.append(w.say("\"[Yes, and it stays mine|It has always been mine|It was my grandfather's]. [Where is your "
                           "{thing}|Do you still have the {thing}|You have your {thing}, have you not]?\" {b.name} "
                           "<asked> <how>.", b, b=b, thing=a.thing))
        lines.append(w.say("\"[Here in my [pocket|bag|coat]|At home, {place}|I never go anywhere without it],\" "
                           "{a.name} <said>.", a, place=w.say("<hiding>")))
    else:
        lines.append(w.say("\"What does a {b.trade} do when [it rains|nobody comes|the days are short]?\" {a.name} "
                           "<asked>.", a, b=b))
        lines.append(w.say("\"[The same as a {c.trade}|What I always do|I sit and think]. <wisdom>,\" {b.name} <said> "
                           "<how>.", b, b=b, c=a))
        lines.append(w.say("{a.name} [laughed|nodded|was silent|felt <feel>] and ordered [<drink>|<meal>|<meal> and "
                           "<drink>] for both of them.", a))
    return lines


def errand(w):
    """Somebody asks for a lost thing; somebody finds it, or not; the reward is paid."""
    a, b = w.cast(2)
    thing, reward = w.thing(), w.rng.randint(3, 25)
    place, x, y = w.stops(3)
    lines = [
        w.say("<when> {a.name} [came to|called|sent for|stopped] {b.name}. \"My {thing} is gone,\" {he} <said> <how>. "
              "\"[I lost it near|I left it at|Somebody carried it to] {place}. Bring it back and I will give you "
              "{n}.\"", a, b=b, thing=thing, place=place, n=count(reward, "coin")),
        w.say("\"{n}? [That is fair|That is not much|For that I would go to the end of the world]. [I shall leave [at "
              "dawn|tomorrow|on Sunday|when the rain stops]|Give me two days|Keep the fire burning],\" <said> "
              "{b.name}.", b, b=b, n=count(reward, "coin")),
        w.say("{he} took {his} {a.thing} and [some bread|a rope|a lantern|a warm coat] and [left|set out|rode off]. "
              "First {he} came to {x}, then to {y}. There <trouble>. But <way_out>.", b, x=x, y=y)]
    if w.rng.random() < 0.75:
        w.purse[b.name] += reward
        w.learn(f"Where did {b.name} find the {thing}", f"at {place}")
        w.learn(f"How much did {a.name} pay for the {thing}", count(reward, "coin"))
        lines += [w.say("At {place} {he} [searched|dug|looked] [all day|for three hours|until dark] and found the "
                        "{thing} [under a stone|in the grass|in a nest|between the roots|in the mud].", b, place=place,
                        thing=thing),
                  w.say("When {b.name} [laid|put] the {thing} on the table, {a.name} was <feel>. \"<thanks>,\" {he} "
                        "<said> and counted out {n}. Now {b.name} had {total}.", a, b=b, thing=thing,
                        n=count(reward, "coin"), total=count(w.purse[b.name], "coin"))]
    else:
        w.learn(f"What did {b.name} never find", f"the {thing} of {a.name}")
        lines.append(w.say("At {place} there was nothing but [rain|nettles|snow|old leaves]. {he} came home with empty "
                           "hands. \"[I looked everywhere|The {thing} is lost|Somebody was faster],\" {he} <said>. "
                           "\"<wisdom>,\" said {a_.name}, but {a_.he} was <feel>.", b, place=place, thing=thing, a_=a))
    return lines


def market(w):
    a, b = w.cast(2)
    goods = w.rng.sample(GOODS, w.rng.randint(3, 6))
    prices = [w.rng.randint(1, 12) for _ in goods]
    lines = [w.say("<when> there was a market in {w.village}. {b.name} [sold|had set out] [what the [summer|winter|"
                   "year] had given|{n} kinds of goods|everything a kitchen needs]:", b, b=b, n=spell(len(goods)))]
    lines += [f"- {g}: {count(p, 'copper')} a {w.rng.choice(MEASURE)[:-1]}".replace("boxe", "box")
              for g, p in zip(goods, prices)]
    i, j = w.rng.sample(range(len(goods)), 2)
    n, m = w.rng.randint(1, 6), w.rng.randint(1, 4)
    x, y = n * prices[i], m * prices[j]
    paid = (x + y + 9) // 10 * 10
    lines.append(w.say("\"I take {n} of the {g} and {m} of the {h},\" {a.name} <said>.", a, n=spell(n), m=spell(m),
                       g=goods[i], h=goods[j]))
    lines.append(w.say("\"{n} times {p} is {x}, and {m} times {q} is {y}. {x} and {y} make {z},\" said {b.name} <how>.",
                       b, b=b, n=spell(n), m=spell(m), p=spell(prices[i]), q=spell(prices[j]), x=spell(x), y=spell(y),
                       z=spell(x + y)))
    lines.append(w.say("{a.name} paid {paid} and got {back} back.", a, paid=spell(paid), back=spell(paid - x - y))
                 if paid > x + y else w.say("{a.name} paid {paid}, and that was right to the copper.", a,
                                            paid=spell(paid)))
    w.learn(f"What did {a.name} buy from {b.name}", f"{goods[i]} and {goods[j]}")
    w.learn(f"What was the price of the {goods[i]} at the stall of {b.name}", count(prices[i], "copper"))
    return lines


def journey(w):
    """The way there and, in the opposite order, the way back."""
    a = w.rng.choice(w.people)
    stops = w.stops(w.rng.randint(3, 5))
    w.learn(f"What did {a.name} pass first on the way to {w.town}", stops[0])
    there, back = ", then ".join(stops), ", then ".join(reversed(stops))
    return [w.say("<when> {a.name} [set out for|walked to|rode to] {w.town} [to sell a [cow|cart|horse]|to see a "
                  "[doctor|cousin|judge]|because of a [letter|dream|debt]]. {he} passed {there}. <weather>. <trouble>. "
                  "But <way_out>. In {w.town} {he} stayed {n} and ate <meal>.", a, there=there,
                  n=count(w.rng.randint(2, 9), "night")),
            w.say("On the way home {he} passed the same places in the opposite order: {back}. When {he} [saw|reached] "
                  "the {w.inn} again, {he} was <feel>, and <sound>.", a, back=back)]


def letter(w):
    a, b = w.cast(2)
    lines = [w.say("{month} {day}", month=w.rng.choice(MONTHS), day=w.rng.randint(1, 28)), f"Dear {b.name},",
             w.say("[I write to you from {w.town}|I hope this letter finds you well|It is {n} days since I left "
                   "{w.village}]. <weather>. [Yesterday|<when>] I [ate|was given] <meal> and [thought of|dreamed of|"
                   "spoke about] the {w.inn}. [They say here that <gossip>. <doubt>.|There is a {c} here who knows "
                   "your name.]", n=spell(w.rng.randint(3, 60)), c=w.rng.choice(TRADES))]
    if w.facts and w.rng.random() < 0.8:
        question, answer = w.rng.choice(w.facts)
        lines.append(w.say("You asked me: {question}? [I have not forgotten|I know it well]: {answer}.",
                           question=question, answer=answer))
    place = w.say("<hiding>")
    w.learn(f"Where did {a.name} leave the money for {b.name}", place)
    lines.append(w.say("[One more thing|Before I forget|And please]: the money for you lies {place}. [Tell nobody|Give "
                       "half of it to {h.name}|Buy yourself a [coat|goat|hat]]. <wisdom>.", place=place, h=w.host))
    return lines + [w.say("[Your friend|Yours|With good wishes|Your old friend],"), a.name]


def song(w):
    a = w.rng.choice(w.people)
    lines = [w.say("<when> {a.name} [sang|hummed|played] an old song at the {w.inn}, and everybody [listened|joined in|"
                   "was silent]:", a), ""]
    for rhyme in w.rng.sample(RHYMES, w.rng.randint(2, 3)):
        first, second = w.rng.sample(rhyme, 2)
        lines += [w.say("[Oh, the|The|A|My] {c} {b} [came home|went out|sat down|lay down|was lost] [by|in|before|"
                        "without] the {x},", c=w.rng.choice(COLOUR), b=w.rng.choice(BEAST), x=first),
                  w.say("and [nobody|the miller|the ferryman|my sister|the king] [saw it|called it|followed it|knew "
                        "it] [by|in|before|without] the {x}.", x=second)]
    return lines + ["", w.say("\"[Another one|Once more|Who made that song]!\" {b.name} <said>.", a, b=w.host)]


def theft(w):
    """A clue, three suspects, one of whom it fits."""
    victim, *suspects = w.cast(4)
    thing = w.thing()
    clues = w.rng.sample([("red clay", "boots were covered with red clay"), ("flour", "sleeves were white with flour"),
                          ("a smell of fish", "coat smelled of fish"), ("candle wax", "hands were full of candle wax"),
                          ("straw", "hat was full of straw"), ("blue paint", "fingers were blue with paint"),
                          ("wet footprints", "shoes were wet"),
                          ("a grey feather", "pockets were full of grey feathers")], 3)
    guilty = w.rng.randrange(3)
    w.learn(f"Who took the {thing} of {victim.name}", suspects[guilty].name)
    lines = [w.say("<when> {a.name} cried out: \"My {thing} is gone!\" On the [floor|window sill|table] there was "
                   "{clue}, and nothing else.", victim, thing=thing, clue=clues[guilty][0])]
    lines += [w.say("{s.name} was [asked first|asked next|at the {w.inn}|at home]. {s.his} {clue}.", s=s, clue=clue[1])
              for s, clue in zip(suspects, clues)]
    s = suspects[guilty]
    return lines + [w.say("\"There was {clue} on the floor, and your {trace},\" said {a.name}. \"It was you, "
                          "{s.name}.\"", victim, clue=clues[guilty][0], trace=clues[guilty][1], s=s),
                    w.say("{s.name} [looked at the floor|turned red|began to cry|laughed] and gave the {thing} back. "
                          "\"[I only wanted to look at it|I would have brought it back|I owed somebody money],\" "
                          "{s.he} <said>. \"<wisdom>,\" said {a.name}.", victim, s=s, thing=thing)]


def fable(w):
    one, two = w.rng.sample(BEAST, 2)
    goods = w.rng.choice(GOODS)
    return [w.say("{a.name} told the children a story. \"A {one} and a {two} had {n} {m} of {goods}. [The {one} slept "
                  "all day|The {one} wanted everything|The {one} said that winter would never come], but the {two} "
                  "[worked|saved|counted them every evening|gave some to the poor]. Then [snow fell|the river rose|a "
                  "fire broke out|a thief came], and the {one} [had nothing|was hungry|came to the door]. 'Give me "
                  "some,' said the {one}. '[I will|I will not|Take half|You may work for it],' said the {two}. What do "
                  "you learn from it?\"",
                  w.rng.choice(w.people), one=one, two=two, n=spell(w.rng.randint(3, 20)), m=w.rng.choice(MEASURE),
                  goods=goods),
            w.say("\"<wisdom>,\" said the [eldest|youngest|smallest].")]


def lesson(w):
    a = w.rng.choice(w.people)
    lines = [w.say("{a.name} [taught the children to count|helped the teacher that day|asked the children sums]:", a)]
    for _ in range(w.rng.randint(3, 6)):
        x, y = sorted((w.rng.randint(1, 20), w.rng.randint(1, 20)))
        kind = w.rng.randrange(3)
        if kind == 2:
            x, y = x % 10 + 1, y % 10 + 1
        question, answer = [(f"{spell(x)} and {spell(y)}", x + y), (f"{spell(y)} less {spell(x)}", y - x),
                            (f"{spell(x)} times {spell(y)}", x * y)][kind]
        lines.append(f"\"What is {question}?\" - \"{spell(answer) if answer else 'nothing'}.\"")
    return lines


def recipe(w):
    herbs = w.rng.sample(HERB, 4)
    numbers = [w.rng.randint(2, 12) for _ in herbs]
    a = w.rng.choice(w.people)
    illness = w.fresh(lambda: f"{w.rng.choice(ILLNESS)} in {w.rng.choice(SEASONS)}")
    w.learn(f"Which herb comes first against {illness}", herbs[0])
    lines = [w.say("{a.name} wrote down what helps against {illness}:", a, illness=illness)]
    lines += [f"{i + 1}. {count(n, 'leaf', 'leaves')} of {h}" for i, (h, n) in enumerate(zip(herbs, numbers))]
    first, second, third, fourth = herbs
    return lines + [w.say("Boil the {first} and the {second} [until the water is green|for an hour|over a small fire], "
                          "add the {third} and the {fourth}, and drink it [hot|cold|with honey|before sleep]. That "
                          "makes {n} leaves in all.", first=first, second=second, third=third, fourth=fourth,
                          n=spell(sum(numbers)))]


def ledger(w):
    total = 0
    lines = [w.say("{a.name} [opened the book of the {w.inn}|took the chalk|wrote in the ledger]:", w.host)]
    for p in w.cast(min(4, len(w.people))):
        debt = w.rng.randint(2, 19)
        total += debt
        lines.append(w.say("{p.name}, {p.trade}: {debt} coins for [<meal>|<drink>|a bed|<meal> and <drink>]. Sum: "
                           "{total}.", p=p, debt=debt, total=total))
        w.learn(f"How much did {p.name} owe in the ledger", count(debt, "coin"))
    return lines


def day(w):
    today, w.day = DAYS[w.day], (w.day + 1) % 7
    a, b = w.cast(2)
    return [w.say("{today}. <weather>. {a.name} [mended|cleaned|painted|lost and found] [the gate|a bucket|the sign of "
                  "the {w.inn}|{his} {a.thing}|a pair of boots], and {b.name} [helped|watched|was ill|came too late|"
                  "brought <meal>]. [<sound>|nothing else happened|In the evening there was <meal>|They spoke of "
                  "{w.town}]. Tomorrow is {next}.", a, b=b, today=today, next=DAYS[w.day])]


def task(w):
    """A quest log, as games write it."""
    a, b = w.cast(2)
    thing = w.thing()
    steps = [w.say("Speak with {b.full}, the {b.trade}.", b=b), w.say("Go to <trail>."), f"Find the {thing}.",
             f"Bring the {thing} to {a.name}."]
    done = w.rng.randint(0, 4)
    w.learn(f"Who wanted the {thing}", a.name)
    lines = [f"QUEST: The {thing.title()}", f"Given by: {a.full}, {a.trade}",
             f"Reward: {count(w.rng.randint(5, 90), 'coin')}"]
    lines += [f"[{'x' if i < done else ' '}] {s}" for i, s in enumerate(steps)]
    return lines + [f"Status: {'complete' if done == 4 else f'{done} of 4 done'}"]


def riddle(w):
    a, b = w.cast(2)
    question, answer = w.rng.choice(RIDDLES)
    lines = [w.say("\"[Listen|Guess this|I know a riddle],\" <said> {a.name}. \"{q} What is it?\"", a, q=question)]
    for wrong in w.rng.sample(["the moon", "a fish", "the wind", "a lie", "an old man", "a mill"], w.rng.randint(0, 2)):
        lines.append(w.say("\"Is it {x}?\" <asked> {b.name}. \"No,\" said {a.name}.", a, b=b, x=wrong))
    return lines + [w.say("\"{x},\" {b.name} <said> <how>. \"[Right|Yes|You knew it],\" said {a_.name} and [paid for "
                          "<drink>|laughed|was <feel>].", b, b=b, a_=a, x=answer)]


def dice(w):
    a, b = w.cast(2)
    stake, points = w.rng.randint(1, 5), [0, 0]
    lines = [w.say("{a.name} and {b.name} played dice for {n} a round. Whoever threw more took it.", a, b=b,
                   n=count(stake, "coin"))]
    for turn in range(w.rng.randint(3, 5)):
        throws = [w.rng.randint(2, 12), w.rng.randint(2, 12)]
        result = "nobody won"
        if throws[0] != throws[1]:
            winner = int(throws[1] > throws[0])
            points[winner] += stake
            result = f"{(a, b)[winner].name} took {count(stake, 'coin')}"
        lines.append(w.say("Round {i}: {a.name} threw {x}, {b.name} threw {y}, and {r}.", a, b=b, i=spell(turn + 1),
                           x=spell(throws[0]), y=spell(throws[1]), r=result))
    lines.append(w.say("In the end {a.name} had won {x} and {b.name} {y}.", a, b=b, x=count(points[0], "coin"),
                       y=count(points[1], "coin")))
    if points[0] != points[1]:
        w.learn(f"Who won at dice, {a.name} or {b.name}", (a if points[0] > points[1] else b).name)
    return lines


def council(w):
    """A vote, counted."""
    plan = w.say("[build|paint|pull down|repair] the [bridge|chapel|mill|school|town wall|well]")
    a = w.rng.choice(w.people)
    votes = {p.name: w.rng.random() < 0.5 for p in w.people}
    yes = sum(votes.values())
    result = "carried" if yes > len(votes) - yes else "rejected"
    w.learn(f"What became of the plan to {plan}", f"it was {result}")
    lines = [w.say("<when> the people of {w.village} [met|gathered|came together] [at the {w.inn}|under the lime tree|"
                   "in the chapel]. {a.name} wanted to {plan}.", a, plan=plan)]
    lines += [w.say("{n} was [for it|for it, because <gossip>]." if vote else
                    "{n} was [against it|against it and said that it would cost {c} coins].", n=name,
                    c=spell(w.rng.randint(20, 400))) for name, vote in votes.items()]
    return lines + [w.say("That made {y} for and {n} against, and so it was {r}. {a.name} was <feel>.", a,
                          y=spell(yes) if yes else "none",
                          n=spell(len(votes) - yes) if len(votes) > yes else "none", r=result)]


def ghost(w):
    a, b = w.cast(2)
    return [w.say("<when> {a.name} [could not sleep|heard steps|woke up|saw a light] and [went to the window|took a "
                  "candle|opened the door]. <weather>, and <sound>. By [the well|the bridge|the churchyard gate|the "
                  "old mill] stood [a woman without a face|a child in a white shirt|a knight with a [broken|burning] "
                  "sword|a dog as big as a calf|{b.name}, or somebody who looked like {b.him}]. It [raised a hand|said "
                  "{his} name three times|pointed at {w.town}|wept without a sound]. {he} was <feel>, but {he} [asked "
                  "what it wanted|held up {his} {a.thing}|did not run|said a prayer].", a, b=b),
            w.say("\"[Seek|Find|Bury|Forget] [what lies|the bones|the crown|what was hidden] <hiding>,\" said the "
                  "[ghost|voice|stranger|shadow]. Then [the cock crew|the moon went behind a cloud|<sound>|it was gone "
                  "like smoke]. <when> {a.name} told {b.name} about it. \"<doubt>,\" said {b.name}, but {b.his} hands "
                  "shook.", a, b=b)]


def fight(w):
    a = w.rng.choice(w.people)
    foe = w.say("[a|the] [grey|one-eyed|young|old|drunken|northern] [wolf|robber|knight|bear|troll|soldier|smuggler]")
    return [w.say("<when> {foe} [stood in the way of|attacked|threatened] {a.name} [near|behind|not far from] <trail>. "
                  "{he} [drew {his} knife|picked up a branch|stepped back|threw a stone]. [They circled each other|It "
                  "was over quickly|They fought until both were out of breath|Twice {he} fell, and twice {he} got up]. "
                  "[In the end|At last] [{he} struck the hand that held the sword|{he} remembered what {b.name} had "
                  "taught {him}|the {a.thing} caught the blow|the enemy slipped on the wet leaves], and [that was "
                  "enough|the rest was running|the road was free]. {he} had a wound [on the arm|above the eye|in the "
                  "shoulder|on the hand], and {c.name} bound it with [linen|moss and linen|an old shirt]. "
                  "\"<wisdom>,\" {c.name} <said>.", a, foe=foe, b=w.rng.choice(w.people),
                  c=w.rng.choice([p for p in w.people if p is not a]))]


def mood(w):
    """A look at the village, without a plot."""
    a, b = w.cast(2)
    return [w.say("<weather>. [In the kitchen of the {w.inn}|On the square|By the {w.river}|In the lane behind the "
                  "chapel] [it smelled of <meal>|<sound>|the [children|geese|boys|women] [played|quarrelled|sang]|"
                  "nothing moved]. {a.name} [leaned against the wall|sat on an upturned bucket|looked out of the "
                  "window|carried water] and [thought of {w.town}|counted the [crows|chimneys|boats|days until the "
                  "fair]|was <feel> without knowing why|hummed a tune about a <colour> [horse|ship|rose]]. [{b.name} "
                  "came by with [a basket of {g}|two buckets|a letter|a goose under {b.his} arm] and [waved|said "
                  "nothing|stopped to talk|asked for the time].|Nobody came by.|It might have been any year.|Somewhere "
                  "{b.name} was hammering.]", a, b=b, g=w.rng.choice(GOODS))]


def player(w):
    """A talk as games have it: a name, a colon, a line."""
    b = w.rng.choice(w.people)
    lines = [w.say("{n}: <greet>, traveller. I am {b.name}, the {b.trade}.", b, n=b.name.upper(), b=b)]
    for kind in w.rng.sample(range(5), w.rng.randint(2, 4)):
        p = w.rng.choice(w.people)
        if kind == 0:
            lines += [w.say("PLAYER: Where can I [sleep|eat|hear news]?"),
                      w.say("{n}: At the {w.inn}. [Ask for {h.name}|{h.full} keeps it|Say that I sent you]. [The "
                            "<meal> is good there|It costs {c} a night|Mind the {h.thing}].", n=b.name.upper(),
                            h=w.host, c=count(w.rng.randint(1, 6), "coin"))]
        elif kind == 1:
            lines += [w.say("PLAYER: Tell me about {p.name}.", p=p),
                      w.say("{n}: {p.full}? The {p.trade}. {p.age} years old and {p.trait}. [Never without that "
                            "{p.thing}|Can be {p.other_trait}, too|I like {p.him}|I owe {p.him} money].", p=p,
                            n=b.name.upper())]
        elif kind == 2:
            lines += [w.say("PLAYER: What is new in {w.village}?"),
                      w.say("{n}: They say that <gossip>. <doubt>.", n=b.name.upper())]
        elif kind == 3:
            lines += [w.say("PLAYER: Do you have work for me?"),
                      w.say("{n}: [Bring me {k} [wolf skins|herbs|barrels|letters] from {w.town}|Find my {t}|Guard the "
                            "[bridge|mill|sheep] tonight]. I pay {c}.", n=b.name.upper(), k=spell(w.rng.randint(2, 12)),
                            t=w.thing(), c=count(w.rng.randint(4, 60), "coin"))]
        elif w.facts:
            question, answer = w.rng.choice(w.facts)
            lines += [w.say("PLAYER: {q}?", q=question), w.say("{n}: {x}.", n=b.name.upper(), x=polish(answer))]
    return lines + ["PLAYER: Farewell.", w.say("{n}: [Farewell|Safe travels|Mind the road|Come again]. [<wisdom>.|]",
                                               n=b.name.upper()).rstrip()]


EPISODES = [(hiding, 5), (watchword, 3), (memory, 9), (talk, 10), (errand, 7), (market, 4), (journey, 4), (letter, 5),
            (song, 2), (theft, 4), (fable, 3), (lesson, 2), (recipe, 2), (ledger, 2), (day, 4), (task, 3),
            (portrait, 4), (riddle, 2), (dice, 2), (council, 2), (ghost, 3), (fight, 3), (mood, 5), (player, 5)]


def ending(w):
    a = w.rng.choice(w.people)
    return [w.say("[And that is the story of {w.village}.|So it was in {w.village}, in the year {w.year}.|{a.name} "
                  "[blew out the candle|shut the book|locked the door of the {w.inn}], and <sound>.] [<wisdom>.|The "
                  "{a.thing} of {a.name} can still be seen there.|Whoever does not believe it may ask the {a.trade}.]",
                  a)]


def story(seed, size=0):
    """The text of a seed, about `size` bytes; 0: between half a kilobyte and 30."""
    rng = random.Random(seed)
    w = World(rng)
    size = size or int(500 * 60 ** (rng.random() ** 1.5))
    parts = []
    if rng.random() < 0.6:
        parts.append([f"{rng.choice(['The Story of', 'The Book of', 'Tales of', 'News from'])} {w.village}"])
    if rng.random() < 0.8:
        parts.append(opening(w))
    length, last = sum(len(line) for part in parts for line in part), None
    kinds, weights = zip(*EPISODES)
    while length < size:
        kind = rng.choices(kinds, weights)[0]
        if kind is last:
            continue
        last = kind
        parts.append(kind(w))
        length += sum(len(line) + 1 for line in parts[-1])
    parts.append(ending(w))
    return polish("\n\n".join("\n".join(part) for part in parts)) + "\n"
