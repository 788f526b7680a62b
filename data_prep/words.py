"""Captions without what they say about appearance, and the noun of what they show. English."""

import re


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
TEMPLATE = re.compile(
    r"^(?:(?:a|an|the)\s+)?(?:\w+\s+)?"
    r"(?:photo|photograph|picture|image|render|rendering|drawing|painting|close[ -]?up|view)\s+of\s+",
    re.IGNORECASE,
)
TOKEN = re.compile(r"[\w'-]+|[^\w\s]")


def neutral(caption: str) -> str:
    """The caption without its colour, pattern, finish and material words.

    "a photo of a shiny red and white striped mug on a wooden table" -> "a photo of a mug on a table"
    """
    words = TOKEN.findall(caption)
    low = [word.lower() for word in words]
    gone = [False] * len(words)
    for i in reversed(range(len(words))):
        gone[i] = _speaks_of_appearance(low, gone, i)
    for i in range(1, len(words) - 1):
        # "red and white", "red, blue"
        if low[i] in JOINTS and gone[i - 1] and gone[i + 1]:
            gone[i] = True
    for i in reversed(range(len(words))):
        # "in red", "made of wood", "with stripes", "is blue": nothing is left behind them
        if low[i] in PREPOSITIONS | VERBS and _followed_by_nothing(low, gone, i):
            gone[i] = True
    return _joined([word for word, left in zip(words, gone, strict=True) if not left])


def noun(caption: str) -> str:
    """The last word of the first noun phrase: "mug" of "a photo of a red mug on a table"; "" if there is none."""
    words = [word.lower() for word in TOKEN.findall(TEMPLATE.sub("", neutral(caption)))]
    while words and words[0] in DETERMINERS:
        words = words[1:]
    phrase: list[str] = []
    for word in words:
        stops = word in PREPOSITIONS | VERBS | JOINTS | DETERMINERS or not word[0].isalpha()
        if stops or (phrase and word.endswith("ing") and len(word) > 5):
            break
        phrase.append(word)
    return phrase[-1] if phrase else ""


def _speaks_of_appearance(low: list[str], gone: list[bool], i: int) -> bool:
    word = low[i]
    if word in THINGS:
        return _describes(low, gone, i) or _made(low, i)
    if word in COLOURS | SURFACES | PATTERNS:
        return True
    if word in SHADES:
        return i + 1 < len(low) and gone[i + 1]
    parts = word.split("-")
    known = COLOURS | SURFACES | MATERIALS | SHADES | {"and", "toned", "ish", "tone"}
    return len(parts) > 1 and all(part in known for part in parts)


def _describes(low: list[str], gone: list[bool], i: int) -> bool:
    """Whether a noun follows that the word at `i` belongs to."""
    for j in range(i + 1, len(low)):
        if gone[j] or (low[j] in JOINTS and j + 1 < len(low) and gone[j + 1]):
            continue
        return low[j][0].isalpha() and low[j] not in PREPOSITIONS | VERBS | JOINTS | DETERMINERS
    return False


def _made(low: list[str], i: int) -> bool:
    """Whether the word at `i` is what something is made of: "made of wood and metal", "in gold"."""
    if i > 1 and low[i - 1] in JOINTS and low[i - 2] in THINGS:
        return _made(low, i - 2)
    made = i > 1 and low[i - 2] in ("made", "out", "carved", "built")
    return i > 0 and (low[i - 1] == "in" or (made and low[i - 1] in ("of", "from")))


def _followed_by_nothing(low: list[str], gone: list[bool], i: int) -> bool:
    """Whether only dropped words (and their determiner) stand between the word at `i` and the phrase's end."""
    seen = False
    for j in range(i + 1, len(low)):
        if gone[j]:
            seen = True
        elif low[j] not in DETERMINERS or seen:
            return seen and (not low[j][0].isalpha() or low[j] in PREPOSITIONS | VERBS | JOINTS)
    return seen


def _joined(words: list[str]) -> str:
    text = " ".join(words)
    text = re.sub(r"\s+([,.;:!?])", r"\1", text)
    text = re.sub(r"(^|\s)[,;:]+(?=[,.;:!?])|^[,;:\s]+|[,;:\s]+$", "", text)
    text = re.sub(r"\b(a|an)(?=\s+(?:[^\w\s]|$|of\b|on\b|in\b))", "", text)
    text = re.sub(r"\b([Aa])n?\s+(\w)", lambda m: f"{m[1]}{'n' if m[2].lower() in 'aeio' else ''} {m[2]}", text)
    return re.sub(r"\s+", " ", text).strip()
