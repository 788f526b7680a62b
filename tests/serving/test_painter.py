"""The painting thread: who is painted with whom, who is refused, and that one's mistake harms no other."""

import queue
import threading

import pytest
import torch
from PIL import Image
from trouble import noise

from escdiff.serving.limits import Busy, Late, Limits
from escdiff.serving.painter import Painter, Progress
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def concept(engine):
    return engine.encode({"shape": noise(), "appearance": noise(seed=1)})


@pytest.fixture
def painter(engine):
    """A painter of its own, which waits long enough for all that a test submits."""
    painter = Painter(engine.backbone, Limits(queue=6, share=4, batch=4, wait=0.3))
    painter.sizes = []
    painter.on_batch = lambda size, seconds: painter.sizes.append(size)
    yield painter
    painter.close()


class Wish:
    """A submitted job and all that was told of it."""

    def __init__(self, painter, job, owner=""):
        self.told = queue.Queue()
        self.ticket = painter.submit(job, self.told.put, owner)

    def wait(self):
        """(progress, picture or exception)."""
        steps = []
        while isinstance(event := self.told.get(timeout=60), Progress):
            steps.append(event)
        return steps, event


def make(engine, concept, **options):
    return engine.job(**{"prompt": "a <shape>", "concepts": {"": concept}, "steps": 2} | options)


def test_those_that_wait_together_are_painted_together(engine, painter, concept):
    wishes = [Wish(painter, make(engine, concept, seed=seed)) for seed in range(3)]
    other = Wish(painter, make(engine, concept, steps=3, previews=8), "b")
    for wish in wishes:
        steps, picture = wish.wait()
        assert isinstance(picture, Image.Image)
        assert [(step.step, step.total, step.preview) for step in steps] == [(1, 2, None), (2, 2, None)]
    steps, picture = other.wait()
    assert [step.preview is not None for step in steps] == [True, True, False]
    assert painter.sizes == [3, 1]


def test_a_batch_has_a_size_and_larger_pictures_have_less_room(engine, painter, concept):
    for wish in [Wish(painter, make(engine, concept, seed=seed), str(seed % 2)) for seed in range(6)]:
        wish.wait()
    assert painter.sizes == [4, 2]
    painter.sizes.clear()
    side = make(engine, concept).height
    larger = {"height": 2 * side, "width": side}
    for wish in [Wish(painter, make(engine, concept, **larger)) for _ in range(3)]:
        wish.wait()
    assert painter.sizes == [2, 1]


def test_a_full_queue_and_a_full_share_are_told(engine, painter, concept):
    job = make(engine, concept)
    wishes = [Wish(painter, job, "a") for _ in range(3)]
    slow = make(engine, concept, steps=40)  # another kind, so that nothing starts before its time
    wishes.append(Wish(painter, slow, "a"))
    if painter.waiting == 4:
        with pytest.raises(Busy, match="4 of your pictures"):
            Wish(painter, slow, "a")
        wishes += [Wish(painter, slow, "b") for _ in range(2)]
        with pytest.raises(Busy, match="6 pictures are waiting"):
            Wish(painter, slow, "c")
    for wish in wishes:
        wish.ticket.cancel()
    assert painter.waiting == 0


def test_whom_nobody_waits_for_is_given_up(engine, painter, concept):
    long = Wish(painter, make(engine, concept, steps=60))
    assert isinstance(long.told.get(timeout=60), Progress)
    long.ticket.cancel()
    gone = Wish(painter, make(engine, concept))
    gone.ticket.cancel()
    _, picture = Wish(painter, make(engine, concept, seed=3)).wait()
    assert isinstance(picture, Image.Image)
    assert painter.sizes == [1], "only the last was painted to its end"
    assert gone.told.empty()


def test_ones_mistake_harms_no_other(engine, painter, concept):
    """Vectors so large that its picture is no picture."""
    vectors = {name: torch.full_like(value, 3e38) for name, value in concept.vectors.items()}
    spoilt = concept.__class__(**vars(concept) | {"vectors": vectors})
    good = [Wish(painter, make(engine, concept, seed=seed)) for seed in range(2)]
    bad = Wish(painter, make(engine, spoilt))
    assert all(isinstance(wish.wait()[1], Image.Image) for wish in good)
    assert isinstance(bad.wait()[1], UserError)
    assert painter.healthy


def test_it_is_unwell_after_faults_in_a_row(engine, painter, concept, monkeypatch):
    def broken(*_):
        raise RuntimeError("the device is lost")

    with monkeypatch.context() as patch:
        patch.setattr("escdiff.serving.painter.paint_together", broken)
        for seed in range(3):
            assert painter.healthy
            assert isinstance(Wish(painter, make(engine, concept, seed=seed)).wait()[1], RuntimeError)
    assert not painter.healthy
    Wish(painter, make(engine, concept)).wait()
    assert painter.healthy, "it paints again"


def test_at_the_end_all_are_told(engine, concept):
    painter = Painter(engine.backbone, Limits(wait=0.0))
    first = Wish(painter, make(engine, concept, steps=60))
    assert isinstance(first.told.get(timeout=60), Progress)
    second = Wish(painter, make(engine, concept))
    closing = threading.Thread(target=painter.close)
    closing.start()
    assert isinstance(second.wait()[1], Late) and isinstance(first.wait()[1], Late)
    closing.join(60)
    assert not closing.is_alive() and not painter.healthy
    with pytest.raises(Late, match="stopping"):
        Wish(painter, make(engine, concept))


def test_an_ended_event_loop_ends_nothing_else(engine, painter, concept):
    def ended(_event):
        raise RuntimeError("Event loop is closed")

    painter.submit(make(engine, concept), ended)
    assert isinstance(Wish(painter, make(engine, concept, seed=1)).wait()[1], Image.Image)
