"""DreamBench++ from end to end on a miniature of its layout; its judge is a stub that answers by rule."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from judge_server import RuleJudge, serving
from miniatures import SUBJECTS, write_dreambench_plus
from PIL import Image

from escdiff.evaluation.protocols.cases import PROMPTS, REAL, SWAP, cases
from escdiff.evaluation.protocols.dreambench_plus import place, read_dreambench_plus
from escdiff.evaluation.protocols.opinions import questions_of
from escdiff.evaluation.protocols.run import Run
from escdiff.evaluation.report.runs import compare_runs
from escdiff.evaluation.vlm.panel import Panel
from escdiff.evaluation.vlm.rubrics import read_rubrics
from escdiff.support.errors import UserError

ROOT = Path(__file__).parents[3]
METRICS = {"clip_t": {"kind": "text", "model": "mini"}}
RUBRICS = read_rubrics("dreambench_plus")


@pytest.fixture(scope="session")
def plus(tmp_path_factory):
    root = tmp_path_factory.mktemp("dreambench_plus") / "data"
    write_dreambench_plus(root)
    return root


def make(plus, painter, out, judge=None, tasks=(REAL, PROMPTS, SWAP)):
    panel = Panel(judge, RUBRICS, out) if judge else None
    return Run("dreambench_plus", read_dreambench_plus(plus), painter, out, METRICS, images=1, tasks=tasks, panel=panel)


def test_the_layout_is_read(plus):
    cat, mug, style = read_dreambench_plus(plus.parent)
    assert [s.name for s in (cat, mug, style)] == [
        "live_subject_animal_00_ginger_cat", "object_01_mug", "style_02_ink_painting_style"
    ]  # fmt: skip
    assert cat.templates == ("A {} in the snow", "an oil painting of a {}") and mug.templates[1] == "a red {}"
    assert style.templates == ("a horse, <appearance>", "a castle in <appearance> style")
    assert cat.texts == SUBJECTS["live_subject/animal/00"][1:] and cat.pictures[0].name == "00.jpg"
    assert place("a t-shirt", "shirt", "{}") == "a t-{}" and place("dogs", "dog", "{}") == "dogs, {}"


def test_mistakes_in_the_layout_are_named(plus, tmp_path):
    with pytest.raises(UserError, match="no captions"):
        read_dreambench_plus(tmp_path)
    (tmp_path / "captions" / "object").mkdir(parents=True)
    (tmp_path / "captions" / "object" / "00.txt").write_text("mug", encoding="utf-8")
    with pytest.raises(UserError, match="1 lines"):
        read_dreambench_plus(tmp_path)
    (tmp_path / "captions" / "object" / "00.txt").write_text("mug\na mug", encoding="utf-8")
    with pytest.raises(UserError, match="no picture"):
        read_dreambench_plus(tmp_path)


def test_a_swap_is_held_against_both_of_its_references(plus):
    subjects = read_dreambench_plus(plus)
    (swap,) = cases(SWAP, subjects, 0, range(1))
    cat, mug = subjects[0].name, subjects[1].name
    assert [(name, names) for name, _, names in questions_of(swap, RUBRICS)] == [
        ("vlm_shape", (cat,)), ("leak_vlm_shape", (mug,)), ("vlm_color", (mug,)), ("leak_vlm_color", (cat,)),
        ("vlm_texture", (mug,)), ("leak_vlm_texture", (cat,)), ("vlm_prompt", ()),
    ]  # fmt: skip
    whole, styled = (cases(PROMPTS, subjects, i, range(1))[0] for i in (0, 2))
    assert [name for name, *_ in questions_of(whole, RUBRICS)] == [
        "vlm_concept", "vlm_shape", "vlm_color", "vlm_texture", "vlm_prompt"
    ]  # fmt: skip
    assert [name for name, *_ in questions_of(styled, RUBRICS)] == [
        "vlm_concept",
        "vlm_color",
        "vlm_texture",
        "vlm_prompt",
    ]
    assert cases(SWAP, subjects, 2, range(1)) == []  # a style has no shape


def paint_flat(run, color):
    """A painter whose pictures are of one colour, so that the rule's scores are known."""

    def paint(wanted, concepts, done):
        for i, _ in enumerate(wanted):
            done(i, Image.new("RGB", (32, 32), color))

    run.painter.paint = paint


@pytest.fixture
def judged(plus, painter, tmp_path):
    judge = RuleJudge(lambda text, before: "I'd rather not say." if "castle" in text else None)
    run = make(plus, painter, tmp_path, judge)
    paint_flat(run, (0, 40, 200))  # the cat's own colour
    return judge, run.run("the command")


def test_scores_are_the_rules_and_refusals_are_missing(judged, tmp_path):
    judge, got = judged
    near = [4 - int(np.floor(d / 32)) for d in (0, 80, 160)]  # levels from the cat, the mug, the style; 4, 2, -1
    concept = [near[0] / 4, near[1] / 4, 0.0]
    assert got["prompts/vlm_concept"]["mean"] == pytest.approx(np.mean(concept), abs=0.01)
    assert got["prompts/vlm_concept"]["n"] == 3 and got["prompts/vlm_shape"]["n"] == 2  # the style has none
    assert got["swap/vlm_shape"]["mean"] == pytest.approx((4 + 2) / 8) and got["swap/vlm_shape"]["n"] == 2
    assert got["swap/vlm_color"]["mean"] == pytest.approx((2 + 0) / 8)
    assert got["swap/leak_vlm_color"]["mean"] == got["swap/vlm_shape"]["mean"]
    product = got["prompts/vlm_concept"]["mean"] * got["prompts/vlm_prompt"]["mean"]
    assert got["prompts/vlm_overall"]["mean"] == pytest.approx(product)
    about = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["judge"]
    assert about["missing"] == 1 and about["model"] == "stub that answers by rule"
    assert sum("castle" in text for text in judge.asked) == RUBRICS.attempts
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no score in the judge" in page and "1 missing and in no mean" in page


def test_nothing_is_paid_twice_and_runs_compare(judged, plus, painter, tmp_path):
    _, got = judged
    again, silent = make(plus, painter, tmp_path, RuleJudge()), make(plus, painter, tmp_path)
    again.painter.paint = None  # would fail
    assert again.run("the command") == got and not again.panel.model.asked
    rows = compare_runs([tmp_path, tmp_path], tmp_path, "")
    assert "swap/vlm_color" in {key for _, key, *_ in rows}
    plain = silent.run("the command")
    assert plain == {key: value for key, value in got.items() if "vlm" not in key}


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill_and_pays_for_nothing_twice(plus, tiny_folder, encoder_folder, tmp_path):
    """kill -9 once the judge has answered some; the second start asks for the others alone."""
    out = tmp_path / "out"
    command = [
        sys.executable, "-m", "escdiff.evaluation", "dreambench_plus", str(plus), "--out", str(out), "--backbone",
        str(tiny_folder), "--encoder", str(encoder_folder), "--metrics", "mini", "--steps", "1", "--guidance", "1",
        "--device", "cpu", "--swap", "--judge", "openai:stub",
    ]  # fmt: skip

    def slow(body, number):
        time.sleep(0.2)

    with serving(slow) as (url, bodies):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENAI_BASE_URL": url}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        until = time.time() + 900
        while len(list(out.glob("judge/*/*.json"))) < 5 and time.time() < until and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kept = len(list(out.glob("judge/*/*.json")))
        time.sleep(0.5)  # answers on their way to the dead
        before = len(bodies)
        assert 5 <= kept < 42 and not (out / "report.html").exists()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        total = 4 * 5 + 2 * 4 + 2 * 7  # two prompts of cat and mug, two of the style, two swaps
        assert f"{total} questions" in done.stderr and f"{kept} from before" in done.stdout
        files = len(list(out.glob("judge/*/*.json")))
        assert len(bodies) - before == files - kept  # equal questions about equal pictures are one
    assert "prompts/vlm_overall" in json.loads((out / "metrics.json").read_text(encoding="utf-8"))
