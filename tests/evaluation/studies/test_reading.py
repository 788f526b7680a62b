"""What an encoder reads, by encoders that know the answers or nothing."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch.nn.functional import one_hot

from escdiff.evaluation.studies import reading
from escdiff.evaluation.studies.reading import COLUMNS, KINDS, MIXTURES, Reading, nearest
from escdiff.training.encoder.word_targets import WordTargets

COUNT, LINEUP, PLACES = 4, 8, 4


class Knowing:
    """Sees the number of a picture, and knows which instance that is.

    Attributes:
        attributes: those that it knows; of the others it says nothing.
    """

    def __init__(self, questions: Reading, attributes) -> None:
        self.vision, self.config = SimpleNamespace(spec="numbers", image_size=8), SimpleNamespace(words={})
        self.embedding_scale, self.looked = torch.ones(()), 0
        self.questions, self.attributes = questions, attributes

    def tokens(self, pixels):
        numbers = torch.arange(self.looked, self.looked + len(pixels))
        self.looked += len(pixels)
        return [numbers]

    def features(self, attribute, tokens):
        """References first, then the line-ups of shapes, then those of materials."""
        places = (tokens[0].long() - COUNT) % (COUNT * LINEUP)
        own = torch.where(places % LINEUP == 0, places // LINEUP, COUNT + places)
        numbers = torch.where(tokens[0] < COUNT, tokens[0].long(), own)
        known = one_hot(numbers, COUNT + COUNT * LINEUP).float()
        return known if attribute in self.attributes else torch.ones_like(known)

    def anchor(self, attribute):
        return torch.zeros(PLACES, self.questions.targets.prompts.width)

    def residuals(self, attribute, features):
        kind, targets = KINDS[attribute], WordTargets(self.questions.targets.prompts)
        said = targets([MIXTURES[kind](members[0]) for members in self.questions.lineups[kind]], PLACES)[0]
        known = features[:, :COUNT] @ said.flatten(1) + features[:, COUNT:].argmax(1, keepdim=True)
        return known.unflatten(1, said.shape[1:])[:, None, None]

    def vectors(self, attribute, residuals):
        return residuals


@pytest.fixture
def questions(tiny_backbone, monkeypatch):
    monkeypatch.setattr(reading, "draw", lambda pictures: [Image.new("RGB", (8, 8)) for _ in pictures])
    monkeypatch.setattr(reading, "tellable", lambda instance: True)
    return Reading(tiny_backbone.prompts, COUNT)


def test_an_encoder_that_knows_everything_tells_everything(questions):
    told = questions(Knowing(questions, ("shape", "appearance")))
    assert set(told) == set(COLUMNS)
    assert {name: score["mean"] for name, score in told.items() if "leak" not in name} == {
        name: 1.0 for name in COLUMNS if "leak" not in name
    }


def test_what_the_other_attribute_knows_is_a_leak(questions):
    told = {name: score["mean"] for name, score in questions(Knowing(questions, ("shape",))).items()}
    assert (told["shape/features"], told["shape/vectors"], told["material/leak"]) == (1, 1, 1)
    assert (told["material/features"], told["material/vectors"], told["shape/leak"]) == (0, 0, 0)  # ties tell nothing


def test_only_what_can_be_told_is_counted(questions, monkeypatch):
    monkeypatch.setattr(reading, "tellable", lambda instance: instance in [r.shape for r in questions.references[:3]]
                        or instance in [r.material for r in questions.references])  # fmt: skip
    told = questions(Knowing(questions, ("shape", "appearance")))
    assert told["shape/words"]["n"] == 3 and told["material/words"]["n"] == COUNT


def test_nearest_by_hand():
    among = torch.eye(LINEUP).repeat(2, 1)
    assert nearest(torch.tensor([[2.0, 1, 0, 0, 0, 0, 0, 0], [1.0, 2, 0, 0, 0, 0, 0, 0]]), among) == [1.0, 0.0]


def test_an_encoder_of_the_loop_is_read(real_models, monkeypatch):
    monkeypatch.setattr(reading, "draw", lambda pictures: [Image.new("RGB", (8, 8)) for _ in pictures])
    told = Reading(real_models.backbone.prompts, 2)(real_models.encoder)
    assert set(told) == set(COLUMNS) and all(0 <= score["mean"] <= 1 for score in told.values())
