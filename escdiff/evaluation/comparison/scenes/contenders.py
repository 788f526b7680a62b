"""Who is compared in which task of scenes, with the steps that each is given."""

from escdiff.evaluation.comparison.contenders import LEARN, Contender

ESCDIFF, CAPTION = "escdiff", "caption"
ONE_PASS, WORDS = Contender("one forward pass"), Contender("the words alone")
FACES = (60, 2000)  # steps that learn faces, of 16 samples
CONTENDERS: dict[str, dict[str, Contender]] = {
    "several": {
        ESCDIFF: ONE_PASS,
        "break_a_scene": Contender("words, then weights (paper: 800 steps)", "break_a_scene", (20, 400), lr=5e-3,
                                   settings={"second_lr": 1e-3}),
        "without_attention": Contender("without its attention loss", "break_a_scene", (20, 400), lr=5e-3,
                                       settings={"second_lr": 1e-3, "attention": 0.0}),
        CAPTION: WORDS,
    },
    "compose": {
        ESCDIFF: ONE_PASS,
        "fastcomposer": Contender("fused at the nouns", "fastcomposer", learn=LEARN),
        "without_localisation": Contender("without its attention loss", "fastcomposer", learn=LEARN,
                                          settings={"localised": 0.0}),
        CAPTION: WORDS,
    },
    "relation": {
        "reversion": Contender("a word for the relation (paper: 3,000 steps)", "reversion", (20, 500)),
        "ti": Contender("without steering, at uniform times", "reversion", (20, 500),
                        settings={"steer": 0.0, "high_noise": 0.0}),
        CAPTION: WORDS,
    },
    "action": {
        ESCDIFF: ONE_PASS,
        "adi": Contender("masked gradients (paper: 3,000 steps)", "adi", (20, 300)),
        "xti": Contender("nothing masked", "adi", (20, 300), settings={"masked": 0.0}),
        CAPTION: WORDS,
    },
    "identity": {
        ESCDIFF: ONE_PASS,
        "portraitbooth": Contender("fused at the face's noun", "portraitbooth", learn=FACES),
        "without_losses": Contender("without its losses of identity and attention", "portraitbooth", learn=FACES,
                                    settings={"dip": 0.0, "ecac": 0.0}),
        CAPTION: WORDS,
    },
}  # fmt: skip
