"""Command-line values that are text, taken as a person types them.

Hydra's override grammar gives commas, brackets, quotes, `=` and `$` a meaning of its own, so prompts and paths
are set aside before Hydra reads the rest, and put into the composed configuration unchanged.
"""

from collections.abc import Collection, Sequence


def set_aside(argv: Sequence[str], text_keys: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Split arguments into texts, key -> value as typed, and the rest for Hydra.

    `key=value` counts as text when the key is in `text_keys`; of a key given twice the last wins, as in Hydra.
    """
    texts: dict[str, str] = {}
    rest: list[str] = []
    for argument in argv:
        key, equals, value = argument.partition("=")
        if equals and key.strip() in text_keys:
            texts[key.strip()] = value
        else:
            rest.append(argument)
    return texts, rest


def put_back(config: dict, texts: dict[str, str]) -> None:
    """Set each text at its dotted key of a nested dict; an empty text or "null" means none."""
    for key, value in texts.items():
        *path, last = key.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = None if value in ("", "null") else value
