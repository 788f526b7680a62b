"""A judge's answers: asked again where they hold no score, never made up, kept by content, paid once."""

import json

import pytest
from judge_server import RuleJudge
from PIL import Image

from escdiff.evaluation.vlm.panel import Item, Panel
from escdiff.evaluation.vlm.rubrics import Question, Rubrics
from escdiff.support.errors import UserError

RUBRICS = Rubrics((Question("look", "whole", "How alike?"),), parallel=2, price_in=2.0, price_out=100.0)


def items(*shades, text="How alike?"):
    return [Item(text, (Image.new("RGB", (40, 40), "black"), Image.new("RGB", (40, 30), (s,) * 3))) for s in shades]


def test_scores_by_rule_are_kept_and_never_asked_for_twice(tmp_path):
    first = Panel(RuleJudge(), RUBRICS, tmp_path)
    through = []
    assert first.ask(items(0, 33, 70, 255), through.append) == [4, 3, 2, 0] and sum(through) == 4
    assert len(first.model.asked) == 4 and first.bill.paid == 4
    again = Panel(RuleJudge(), RUBRICS, tmp_path)
    assert again.ask(items(255, 0, 33, 70)) == [0, 4, 3, 2] and not again.model.asked
    assert (again.bill.paid, again.bill.stored) == (0, 4)
    assert again.summary().endswith("4,000 tokens in and 40 out, which cost 0.01")  # 4000 x 2 + 40 x 100, in millionths
    again.ask(items(34)), again.ask(items(0, text="How alike in shape?"))
    assert len(again.model.asked) == 2


def test_equal_questions_of_one_run_are_one(tmp_path):
    panel = Panel(RuleJudge(), RUBRICS, tmp_path)
    assert panel.ask(items(*[33] * 20)) == [3] * 20
    assert len(panel.model.asked) == 1 and (panel.bill.tokens_in, panel.bill.stored) == (1000, 0)


def test_a_wrong_answer_is_asked_again_with_a_reminder(tmp_path):
    said = []

    class Unsure(RuleJudge):
        def reply(self, messages):
            said.append(messages)
            return super().reply(messages)

    panel = Panel(Unsure(lambda text, before: "Hm." if before < 2 else None), RUBRICS, tmp_path)
    assert panel.ask(items(33)) == [3] and panel.bill.paid == 3 and panel.bill.missing == 0
    assert [role for role, _ in said[-1]] == ["user", "assistant", "user", "assistant", "user"]
    assert said[-1][1][1] == ["Hm."] and "no score" in said[-1][2][1][0]
    (file,) = (tmp_path / "judge").rglob("*.json")
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert [reply["text"] for reply in kept["replies"][:2]] == ["Hm.", "Hm."] and kept["score"] == 3


def test_a_refusal_is_missing_and_stays_so(tmp_path):
    refuses = lambda text, before: "I can't judge pictures of people." if "people" in text else None  # noqa: E731
    panel = Panel(RuleJudge(refuses), RUBRICS, tmp_path)
    assert panel.ask([*items(0), *items(0, text="people?")]) == [4, None]
    assert (panel.bill.paid, panel.bill.scored, panel.bill.missing) == (1 + RUBRICS.attempts, 1, 1)
    again = Panel(RuleJudge(), RUBRICS, tmp_path)
    assert again.ask(items(0, text="people?")) == [None] and not again.model.asked


def test_a_run_that_died_within_a_question_goes_on_behind_its_last_answer(tmp_path):
    class Dies(RuleJudge):
        def reply(self, messages):
            if len(self.asked) == 1:
                raise UserError("out of reach")
            return super().reply(messages)

    dies = Panel(Dies(lambda text, before: "Hm."), RUBRICS, tmp_path)
    with pytest.raises(UserError, match="out of reach"):
        dies.ask(items(33))
    again = Panel(RuleJudge(), RUBRICS, tmp_path)
    assert again.ask(items(33)) == [3] and len(again.model.asked) == 1 and again.bill.stored == 1


def test_half_a_file_counts_as_none(tmp_path):
    Panel(RuleJudge(), RUBRICS, tmp_path).ask(items(0))
    (file,) = (tmp_path / "judge").rglob("*.json")
    file.write_text(file.read_text(encoding="utf-8")[:40], encoding="utf-8")
    panel = Panel(RuleJudge(), RUBRICS, tmp_path)
    assert panel.ask(items(0)) == [4] and len(panel.model.asked) == 1


def test_opinions_are_averaged_over_those_that_hold_a_score(tmp_path):
    rubrics = Rubrics(RUBRICS.questions, repeats=3, attempts=1, parallel=1)
    answers = iter(['{"score": 1}', "no", '{"score": 4}'])
    panel = Panel(RuleJudge(lambda text, before: next(answers)), rubrics, tmp_path)
    assert panel.ask(items(0)) == [2.5] and panel.bill.missing == 1


def test_no_more_is_paid_than_allowed(tmp_path):
    panel = Panel(RuleJudge(), RUBRICS, tmp_path, most=2)
    with pytest.raises(UserError, match="2 answers are paid"):
        panel.ask(items(*range(0, 200, 20)))
    assert len(panel.model.asked) == 2
    assert len(Panel(RuleJudge(), RUBRICS, tmp_path).ask(items(*range(0, 200, 20)))) == 10


def test_a_judge_that_never_gives_a_score_is_given_up_early(tmp_path):
    panel = Panel(RuleJudge(lambda text, before: "As a language model ..."), RUBRICS, tmp_path)
    with pytest.raises(UserError, match="brought no score"):
        panel.ask(items(*range(200)))
    assert len(panel.model.asked) <= RUBRICS.attempts * (10 + RUBRICS.parallel)


def test_the_cost_is_told_before_most_of_it_is_paid(tmp_path, capsys):
    panel = Panel(RuleJudge(), RUBRICS, tmp_path)
    panel.expect(40)
    panel.ask(items(*range(40)))
    told = capsys.readouterr().err
    assert "40 questions" in told and "all 40 questions will take about 40,000 tokens in and 400 out" in told
