"""The methods of the comparison, with the steps that each is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from escdiff.evaluation import choices


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        about: for the report. method: file of `configs/method`; "" is ESCDiff in one pass, or words.
        steps: of optimisation per reference, with --quick and without.
        learn: of learning its encoder once, likewise; (0, 0) for methods without one.
        lr: learning rate where the file's, made for a large U-Net, is too small for the bundled one.
        settings: keys of the method that differ from its file.
        words: length of the captions, of `captions.LENGTHS`, that are painted instead of a concept; "" for none.
    """

    about: str
    method: str = ""
    steps: tuple[int, int] = (0, 0)
    learn: tuple[int, int] = (0, 0)
    lr: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""

    def scaled(self, quick: bool, scale: float) -> tuple[int, int]:
        """(steps per reference, steps of learning), `scale` times as many."""
        own = [each[0 if quick else 1] for each in (self.steps, self.learn)]
        return tuple(max(1, round(scale * n)) if n else 0 for n in own)


LEARN = (60, 1500)  # of 16 samples, on the data of ESCDiff's encoder
CONTENDERS = {
    "escdiff": Contender("one forward pass"),
    "escdiff_5": Contender("one pass, then 5 steps", "escdiff_tuned", (5, 5)),
    "escdiff_15": Contender("one pass, then 15 steps", "escdiff_tuned", (15, 15)),
    "escdiff_50": Contender("one pass, then 50 steps", "escdiff_tuned", (50, 50)),
    "ti": Contender("one vector (paper: 5,000 steps)", "ti", (40, 500)),
    "compositional_inversion": Contender(
        "ti held near its word (paper: 5,000 steps)", "compositional_inversion", (40, 500)
    ),
    "xti": Contender("a vector per layer (paper: 500 steps)", "xti", (40, 500)),
    "prospect": Contender("a vector per stage (paper's code: 600 steps)", "prospect", (40, 400)),
    "matte": Contender("four tokens", "matte", (40, 200)),
    "neti": Contender("a network of time and layer (paper: 1,000 steps)", "neti", (40, 300)),
    "dreambooth": Contender("LoRA (paper: 1,000 steps, whole U-Net)", "dreambooth", (20, 250), lr=1e-3),
    "custom_diffusion": Contender("word, keys and values (paper: 250 steps)", "custom_diffusion", (20, 250), lr=1e-3),
    "e4t": Contender("encoder, offsets, 15 steps", "e4t", (15, 15), LEARN),
    "elite": Contender("encoder to words and patches", "elite", (0, 0), LEARN),
    "ip_adapter": Contender("image attention", "ip_adapter", (0, 0), LEARN),
    "fastcomposer": Contender("fused at the noun", "fastcomposer", (0, 0), LEARN),
    "instantbooth": Contender("word and gated patches", "instantbooth", (0, 0), LEARN),
    "words_brief": Contender("what a person would type", words="brief"),
    "words_full": Contender("all that words can say", words="full"),
}


def choose(names: str) -> dict[str, Contender]:
    """The named contenders, "all" or a list with commas, in the order of the table.

    Raises:
        UserError: one that does not exist, or none.
    """
    chosen = choices.choose("--methods", names, CONTENDERS)
    return {name: contender for name, contender in CONTENDERS.items() if name in chosen}
