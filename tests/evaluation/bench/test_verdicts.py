"""Readings and scores of many scene requests at once, by a judge whose readings are known."""

import pytest
import torch

from escdiff.evaluation.bench.scenes import faces, verdicts
from escdiff.evaluation.bench.scenes.requests import identity, scene


@pytest.fixture
def requests():
    """Two requests with things, and two with faces between them."""
    things, portraits = scene(0, 2), identity(0, 2)
    return [things[0], portraits[0], things[1], portraits[1]]


def test_only_faces_have_line_ups(requests, monkeypatch):
    asked = []

    def portraits(oracle, shapes, seed=0):
        asked.extend(shapes)
        return [torch.full((8, 2), float(i)) for i in range(len(shapes))]

    monkeypatch.setattr(verdicts, "portraits", portraits)
    galleries = verdicts.known_faces(None, requests)
    assert list(galleries) == [1, 3] and galleries[3][0, 0] == 1
    assert asked == [requests[i].expected.things[0].shape.params for i in (1, 3)]


@pytest.mark.parametrize(("same", "right", "everything"), [(1.0, True, 1.0), (1.0, False, 0.0), (0.0, True, 0.0)])
def test_all_is_the_face_with_the_asked_expression(requests, monkeypatch, same, right, everything):
    """`face_id` of faces alone, each picture beside its own line-up, and `all` only where both are right."""
    words = [request.expected.names.get("expression", "") for request in requests]
    readings = [{"things": [], "expression": word if right else "none"} for word in words]
    seen = {}

    def identify(oracle, galleries, pixels):
        seen.update(zip((float(gallery[0, 0]) for gallery in galleries), pixels[:, 0, 0, 0].tolist(), strict=True))
        return [same] * len(galleries)

    def judge(request, reading):
        if request.kind != "identity":
            return {"there": 0.0}
        return {"expression": float(reading["expression"] == request.expected.names["expression"])}

    monkeypatch.setattr(verdicts, "read", lambda oracle, pixels: readings)
    monkeypatch.setattr(verdicts, "judge", judge)
    monkeypatch.setattr(verdicts, "identify_faces", identify)
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 2, 2)
    galleries = {1: torch.ones(8, 2), 3: torch.full((8, 2), 3.0)}
    found, values = verdicts.judged(None, requests, pixels, galleries)
    assert found is readings and seen == {1.0: 1.0, 3.0: 3.0}
    for i in (1, 3):
        assert values[i] == {"expression": float(right), "face_id": same, "all": everything}
    assert values[0] == values[2] == {"there": 0.0}


def test_a_face_is_looked_for_among_its_own_line_up():
    """The picture's vector equals that of the line-up's first face; a tie with another is wrong."""
    own, others = torch.eye(8)[:1], torch.eye(8)[1:]

    class Judge:
        def embed(self, name, pixels):
            return own.expand(len(pixels), -1)

    pixels = torch.zeros(2, 3, 4, 4)
    right, wrong = torch.cat([own, others]), torch.cat([others[:1], own, others[1:]])
    assert faces.identify_faces(Judge(), [right, wrong], pixels) == [1.0, 0.0]
    assert faces.identify_faces(Judge(), [torch.cat([own, own, others[1:]])], pixels[:1]) == [0.0]
    assert faces.identify_faces(Judge(), [], pixels[:0]) == []
