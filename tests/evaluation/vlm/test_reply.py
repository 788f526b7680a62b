import pytest

from escdiff.evaluation.vlm.reply import read_score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"score": 3, "reason": "the handle is missing"}', 3),
        ('Here it is:\n```json\n{"reason": "{odd}", "score": 0}\n```', 0),
        ("Score: 4", 4),
        ("**Score:** 2/4", 2),
        ("score = 1 out of 4, since ...", 1),
        ('{"score": 3.0}', 3),
        ('{"score": "3"}', 3),
        ('{"score": 3, "reason": "cut off at the most tok', 3),
        ('{"score": 3} Again: {"score": 3}', 3),
    ],
)
def test_a_score_is_read(text, score):
    assert read_score(text, 4) == score


@pytest.mark.parametrize(
    "text",
    [
        "", "I'm sorry, I can't help with that.", "refused: content_filter", "Between 3 and 4.", "4", '{"score": 5}',
        '{"score": -1}', '{"score": 2.5}', '{"score": null}', '{"score": true}', '{"score": [3, 4]}',
        '{"score": 1} {"score": 2}', "Score: 1. Score: 3.", '{"rating": 3}', "Score: 7/10",
        "Score: 3/10", "a score of three", '{"score": 1e999}',
    ],
)  # fmt: skip
def test_nothing_is_guessed(text):
    assert read_score(text, 4) is None
