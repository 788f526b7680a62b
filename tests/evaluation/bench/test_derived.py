from dataclasses import replace

import pytest
import torch

from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.copies import copy, distance
from escdiff.evaluation.bench.derived import edit, floor, leak
from escdiff.evaluation.bench.pictures import draw
from escdiff.evaluation.bench.records import Record, save_pictures
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.evaluation.report import units


def records(task, count, read=lambda request: request.expected):
    """Records of a task whose pictures show what `read` says of the request."""
    task = TASKS[task]
    found = []
    for request in task.draw(0, count):
        reading = scores.truth(read(request))
        found.append(Record(request, reading, scores.judge(task.scores, reading, request.expected)))
    return found


def means(found):
    names = {name for record in found for name in record.values}
    return {n: units.summarise(n, [r.values[n] for r in found if n in r.values])["mean"] for n in names}


def test_leak_counts_the_reference_and_not_the_words():
    clean = {name: records(name, 12) for name in ("shape", "appearance")}
    assert set(means(leak(clean)).values()) == {0}
    leaking = {"shape": records("shape", 12, lambda r: r.shape), "appearance": clean["appearance"]}
    leaking["appearance"][:3] = records("appearance", 3, lambda r: r.appearance)
    got = means(leak(leaking))
    assert got["shape_to_appearance"] == 1 and got["appearance_to_shape"] == 0.25
    assert got["chance_appearance_to_shape"] == 0
    assert got["chance_shape_to_appearance"] < 0.5  # the other instance may share a second colour
    chance = {"shape": records("shape", 12, lambda r: r.other), "appearance": clean["appearance"]}
    assert means(leak(chance))["chance_shape_to_appearance"] == 1


def test_edit_asks_whether_the_words_won():
    done = {name: records(name, 6) for name in ("both", "shape", "appearance")}
    assert means(edit(done)) == {"background": 1, "color": 1, "family": 1}
    done["both"] = records("both", 6, lambda r: r.shape)  # the reference's own scene
    assert means(edit(done))["background"] == 0


def test_another_instance_is_a_floor():
    got = means(floor({"both": records("both", 20)}))
    assert got["other_family"] < 0.5 and got["other_delta_e"] > 5 and got["other_params"] > 0.1


def test_distance_sees_the_object_only():
    reference, mask = -torch.ones(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    mask[:, 16:32, 16:32] = True
    outside, inside = reference.clone(), reference.clone()
    outside[:, :, 40:] = 1
    inside[:, :, 16:32, 16:32] = 1
    assert distance(outside, reference, mask)[0] == 0 and distance(inside, reference, mask)[0] == 1


@pytest.mark.slow
def test_copies_are_caught_and_new_scenes_are_not(tmp_path):
    done = records("both", 8)
    for shows, rate in ((lambda r: r.shape, (1, 1)), (lambda r: r.expected, (0, 0.4))):
        pictures = draw([shows(r.request) for r in done])
        save_pictures(tmp_path, "both", done, [{"result": picture} for picture in pictures])
        got = means(copy({"both": [replace(r) for r in done]}, tmp_path, 0))
        assert rate[0] <= got["rate"] <= rate[1] and got["rate_of_renders"] <= 0.4
