"""Captions without what they say about appearance, and the noun of what they show. English."""

import re
from typing import NamedTuple


def _words(text: str) -> set[str]:
    return set(text.split())


COLOURS = _words(
    """
    red orange yellow green blue purple pink brown black white gray grey beige tan cyan teal turquoise navy maroon
    magenta violet indigo crimson scarlet olive ivory cream gold golden silver bronze copper khaki lavender mint
    peach salmon coral charcoal azure amber lime burgundy aqua blonde reddish bluish greenish yellowish colorful
    colourful colored coloured multicolored multicoloured monochrome rainbow
    """
)
SURFACES = _words(
    """
    shiny glossy matte metallic polished rusty transparent translucent glittery sparkly striped stripy spotted
    dotted polka-dot polka-dotted checkered chequered checked checkerboard plaid floral patterned speckled marbled
    tartan zigzag wavy swirled mottled mosaic camouflage gradient plain textured wooden woollen woolen knitted furry
    fuzzy fluffy velvet velvety leathery stony ringed banded
    """
)
MATERIALS = _words(
    """
    wood metal plastic ceramic glass leather stone marble concrete rubber fabric wool denim paper cardboard clay
    porcelain steel iron brass silk cotton linen wicker bamboo felt aluminum aluminium tin chrome granite brick
    """
)
PATTERNS = _words(
    """
    stripes dots spots checks squares swirls polka pattern patterns texture color colour colors colours
    """
)
SHADES = _words("light dark bright pale deep vivid pastel neon soft hot")
# Both a colour or material and a thing: a thing where nothing follows that it could describe.
THINGS = MATERIALS | _words("orange rose gold silver olive lime peach coral copper bronze cream mint salmon lavender")
JOINTS = {"and", "or", ",", "&"}
DETERMINERS = _words("a an the this that these those some one two three his her its their my your")
PREPOSITIONS = _words(
    """
    of in on at with by near under over behind beside between against from for to into onto upon inside outside
    above out below through across around
    """
)
VERBS = _words("is are was were be has have sits stands lies hangs runs made covered painted")
LOOKS = COLOURS | SURFACES | PATTERNS
PARTS = COLOURS | SURFACES | MATERIALS | SHADES | {"and", "toned", "ish", "tone"}  # of words with hyphens
LINKS = PREPOSITIONS | VERBS | JOINTS  # a noun phrase has ended before them
BOUNDS = LINKS | DETERMINERS
TEMPLATE = re.compile(
    r"^(?:(?:a|an|the)\s+)?(?:\w+\s+)?"
    r"(?:photo|photograph|picture|image|render|rendering|drawing|painting|close[ -]?up|view)\s+of\s+",
    re.IGNORECASE,
)
TOKEN = re.compile(r"[\w'-]+|[^\w\s]")
MAX_WORDS = 40  # of a caption that becomes a prompt: what stands behind would pass CLIP's 77 tokens
SLOT = "<concept>"  # in a caption: where its noun stood


def neutral(caption: str) -> str:
    """The caption without its colour, pattern, finish and material words.

    "a photo of a shiny red and white striped mug on a wooden table" -> "a photo of a mug on a table"
    """
    words = TOKEN.findall(caption)
    low = [word.lower() for word in words]
    dropped = _of_appearance(low)
    for i in reversed(range(len(words))):
        # "in red", "made of wood", "with stripes", "is blue": nothing is left behind them
        if low[i] in PREPOSITIONS | VERBS and _followed_by_nothing(low, dropped, i):
            dropped[i] = True
    return _joined([word for word, drop in zip(words, dropped, strict=True) if not drop])


class Described(NamedTuple):
    """A caption cut around the first thing it shows: "a " + "shiny red" + "coffee mug" + " on a table".

    `looks` are the words that say the thing's appearance; `noun` is the noun with its other words.
    """

    before: str
    looks: str
    noun: str
    after: str


def describe(caption: str, category: str = "") -> Described | None:
    """Cut a caption around its category's noun, or around the noun of its first phrase where the category is not in it.

    A caption may mark the place itself by `SLOT`. Only the first `MAX_WORDS` words are kept.

    Returns None where there is no noun.
    """
    tokens = list(TOKEN.finditer(caption))
    if len(tokens) > MAX_WORDS:
        tokens, caption = tokens[:MAX_WORDS], caption[: tokens[MAX_WORDS - 1].end()]
    if SLOT in caption:
        before, after = caption.split(SLOT, 1)
        return Described(before, "", category, after)
    low = [token[0].lower() for token in tokens]
    names = (TOKEN.findall(category.lower()), TOKEN.findall(noun(caption)))
    last = next((place for name in names if name and (place := _last_word(low, name)) is not None), None)
    if last is None:
        return None
    dropped, first = _of_appearance(low), last
    while first and _belongs(low, dropped, first - 1):
        first -= 1
    looks = " ".join(tokens[i][0] for i in range(first, last + 1) if dropped[i])
    noun_words = " ".join(tokens[i][0] for i in range(first, last + 1) if not dropped[i])
    return Described(caption[: tokens[first].start()], looks, noun_words, caption[tokens[last].end() :])


def noun(caption: str) -> str:
    """The last word of the first noun phrase: "mug" of "a photo of a red mug on a table"; "" if there is none."""
    words = [word.lower() for word in TOKEN.findall(TEMPLATE.sub("", neutral(caption)))]
    while words and words[0] in DETERMINERS:
        words = words[1:]
    phrase: list[str] = []
    for word in words:
        stops = word in BOUNDS or not word[0].isalpha()
        if stops or (phrase and word.endswith("ing") and len(word) > 5):
            break
        phrase.append(word)
    return phrase[-1] if phrase else ""


def _of_appearance(low: list[str]) -> list[bool]:
    """For each word whether it says a colour, pattern, finish or material, or joins two that do."""
    dropped = [False] * len(low)
    for i in reversed(range(len(low))):
        dropped[i] = _speaks_of_appearance(low, dropped, i)
    for i in range(1, len(low) - 1):
        # "red and white", "red, blue"
        if low[i] in JOINTS and dropped[i - 1] and dropped[i + 1]:
            dropped[i] = True
    return dropped


def _last_word(low: list[str], name: list[str]) -> int | None:
    """Index of the word that ends the first `name`, a noun of one or more words, or else its last word alone."""
    for words in (name, name[-1:]):
        for end in range(len(words), len(low) + 1):
            *head, tail = low[end - len(words) : end]
            if head == words[:-1] and tail in (words[-1], f"{words[-1]}s", f"{words[-1]}es"):
                return end - 1
    return None


def _belongs(low: list[str], dropped: list[bool], i: int) -> bool:
    """Whether the word at `i` describes the noun behind it."""
    word = low[i]
    if dropped[i]:
        return True
    ends = word in BOUNDS or not word[0].isalpha()
    return not ends and not (word.endswith("ing") and len(word) > 5)


def _speaks_of_appearance(low: list[str], dropped: list[bool], i: int) -> bool:
    word = low[i]
    if word in THINGS:
        return _describes(low, dropped, i) or _is_made_of(low, i)
    if word in LOOKS:
        return True
    if word in SHADES:
        return i + 1 < len(low) and dropped[i + 1]
    parts = word.split("-")
    return len(parts) > 1 and all(part in PARTS for part in parts)


def _describes(low: list[str], dropped: list[bool], i: int) -> bool:
    """Whether a noun follows that the word at `i` belongs to."""
    for j in range(i + 1, len(low)):
        if dropped[j] or (low[j] in JOINTS and j + 1 < len(low) and dropped[j + 1]):
            continue
        return low[j][0].isalpha() and low[j] not in BOUNDS
    return False


def _is_made_of(low: list[str], i: int) -> bool:
    """Whether the word at `i` is what something is made of: "made of wood and metal", "in gold"."""
    if i > 1 and low[i - 1] in JOINTS and low[i - 2] in THINGS:
        return _is_made_of(low, i - 2)
    after_verb = i > 1 and low[i - 2] in ("made", "out", "carved", "built")
    return i > 0 and (low[i - 1] == "in" or (after_verb and low[i - 1] in ("of", "from")))


def _followed_by_nothing(low: list[str], dropped: list[bool], i: int) -> bool:
    """Whether only dropped words (and their determiner) stand between the word at `i` and the phrase's end."""
    any_dropped = False
    for j in range(i + 1, len(low)):
        if dropped[j]:
            any_dropped = True
        elif low[j] not in DETERMINERS or any_dropped:
            return any_dropped and (not low[j][0].isalpha() or low[j] in LINKS)
    return any_dropped


def _joined(words: list[str]) -> str:
    text = " ".join(words)
    text = re.sub(r"\s+([,.;:!?])", r"\1", text)
    text = re.sub(r"(^|\s)[,;:]+(?=[,.;:!?])|^[,;:\s]+|[,;:\s]+$", "", text)
    text = re.sub(r"\b(a|an)(?=\s+(?:[^\w\s]|$|of\b|on\b|in\b))", "", text)
    text = re.sub(r"\b([Aa])n?\s+(\w)", lambda m: f"{m[1]}{'n' if m[2].lower() in 'aeio' else ''} {m[2]}", text)
    return re.sub(r"\s+", " ", text).strip()
