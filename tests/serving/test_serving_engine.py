"""Jobs are checked before they wait, and encoding goes on while pictures are painted."""

import threading

import pytest
import torch
from trouble import bomb, encoded, noise

from escdiff.concept import Concept
from escdiff.serving.jobs import paint_together
from escdiff.support.errors import TooLarge, UserError

PICTURE = noise()


@pytest.fixture(scope="module")
def concept(engine):
    return engine.encode({"shape": PICTURE, "appearance": noise(seed=1)})


def pixels(picture):
    return torch.tensor(list(picture.tobytes()), dtype=torch.float)


def test_a_concept_is_the_encoders(engine, concept):
    one, two = engine.encoder.encode(PICTURE), engine.encoder.encode(noise(seed=1))
    assert torch.equal(concept.vectors["shape"], one.vectors["shape"])
    assert torch.equal(concept.vectors["appearance"], two.vectors["appearance"])


def test_together_is_as_alone(engine, concept):
    other = engine.encode({"shape": noise(seed=2), "appearance": PICTURE})
    jobs = [
        engine.job("a photo of a <shape>", {"": one}, seed=seed, steps=2)
        for seed, one in enumerate((concept, other, concept))
    ]
    assert len({job.kind for job in jobs}) == 1
    together = paint_together(engine.backbone, jobs)
    for job, picture in zip(jobs, together, strict=True):
        (alone,) = paint_together(engine.backbone, [job])
        assert (pixels(picture) - pixels(alone)).abs().max() <= 1
    assert together[0].tobytes() != together[2].tobytes()


def test_what_is_not_alike_is_not_painted_together(engine, concept):
    base = {"prompt": "a <shape>", "concepts": {"": concept}, "steps": 2}
    changes = [
        {"steps": 3}, {"guidance": 2.0}, {"width": 64}, {"negative_prompt": "red"},
        {"concepts": {"": concept.only("shape")}}, {"concepts": {"mug": concept}, "prompt": "a <mug>"},
        {"concepts": {}, "prompt": "a mug"},
    ]  # fmt: skip
    kinds = [engine.job(**base | change).kind for change in [{}, *changes]]
    assert len(set(kinds)) == len(kinds)
    assert engine.job(**base | {"seed": 5, "prompt": "one <appearance>", "previews": 3}).kind == kinds[0]


def test_concepts_with_names_share_a_prompt(engine, concept):
    job = engine.job("a <mug> and a <dog-shape>", {"mug": concept, "dog": concept}, steps=1)
    assert set(job.vectors) == {f"<{n}{a}>" for n in ("mug", "dog") for a in ("", "-shape", "-appearance")}
    assert len(paint_together(engine.backbone, [job])) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": "a photo of a mug"}, "no place for the concept"),
        ({"prompt": "<shape> " * 90}, "letters"),
        ({"negative_prompt": "x" * 500}, "letters"),
        ({"prompt": "a <shape> and a <hat>"}, "<hat>"),
        ({"prompt": "<shape> " * 45}, "ends at token"),
        ({"steps": 61}, "steps 61"),
        ({"steps": 1.5}, "steps 1.5"),
        ({"width": 4096}, "width 4096"),
        ({"height": 30}, "height=30"),
        ({"guidance": float("inf")}, "guidance inf"),
    ],
)
def test_a_job_that_cannot_be_painted_is_refused(engine, concept, change, said):
    with pytest.raises(UserError, match=said):
        engine.job(**{"prompt": "a <shape>", "concepts": {"": concept}} | change)


def test_a_concept_that_brings_weights_is_refused(engine, concept):
    with pytest.raises(UserError, match="weights of its own"):
        engine.job("a <shape>", {"": Concept(**vars(concept) | {"notes": {"adapter": "../../x"}})})


def test_references_have_limits(engine):
    with pytest.raises(TooLarge, match="megapixels"):
        engine.read_picture(bomb())
    with pytest.raises(TooLarge, match="more than 10 MB"):
        engine.read_picture(bytes(10_000_001))
    with pytest.raises(UserError, match="not an image"):
        engine.read_picture(b"<svg/>")
    with pytest.raises(UserError, match="mask has"):
        engine.encode({"shape": PICTURE}, noise(8, 8))
    with pytest.raises(UserError, match="one mask"):
        engine.encode({"shape": PICTURE, "appearance": noise(seed=1)}, PICTURE)
    assert engine.read_picture(encoded(PICTURE, "PNG")).size == PICTURE.size


def test_references_are_read_while_pictures_are_painted(engine, concept):
    """The painter's thread and others that encode and check prompts: each gets what it gets alone."""
    job = engine.job("a <appearance> <shape>", {"": concept}, seed=4, steps=12, negative_prompt="red")
    (expected,) = paint_together(engine.backbone, [job])
    wrong, enough = [], threading.Event()

    def read():
        try:
            while not enough.is_set():
                again = engine.encode({"shape": PICTURE, "appearance": noise(seed=1)})
                assert all(torch.equal(again.vectors[a], concept.vectors[a]) for a in concept.attributes)
                engine.job("a <shape> on grass", {"": again}, steps=1, negative_prompt="blue")
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        painted = [dict(engine.paint(job))[0] for _ in range(3)]
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert all(picture.tobytes() == expected.tobytes() for picture in painted)
