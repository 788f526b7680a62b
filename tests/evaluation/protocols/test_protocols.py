"""DreamBench's protocol from end to end on a miniature of its layout: kept, resumed, shared out, judged, reported."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from escdiff.evaluation.protocols.cases import PROMPTS, REAL, SWAP
from escdiff.evaluation.protocols.run import Run
from escdiff.evaluation.protocols.subjects import Subject, read_dreambench, scored
from escdiff.support.errors import UserError

ROOT = Path(__file__).parents[3]
METRICS = {
    "clip_t": {"kind": "text", "model": "mini"}, "clip_i": {"kind": "image", "model": "mini"},
    "kid": {"kind": "kid", "model": "mini"}, "mask_iou": {"kind": "mask_iou"},
    "lab_distance": {"kind": "lab_distance"}, "gram_distance": {"kind": "gram_distance"},
}  # fmt: skip


def make(dreambench, painter, out, **options):
    options = {"masks": "plain", "images": 2, "tasks": (REAL, PROMPTS, SWAP)} | options
    return Run("dreambench", read_dreambench(dreambench), painter, out, METRICS, **options)


@pytest.fixture(scope="module")
def finished(dreambench, tiny_backbone, encoder_folder, tmp_path_factory):
    from escdiff.encoder import ConceptEncoder
    from escdiff.evaluation.protocols.painter import Painter

    out = tmp_path_factory.mktemp("finished")
    encoder = ConceptEncoder.from_pretrained(encoder_folder, tiny_backbone)
    painter = Painter(tiny_backbone, encoder, steps=1, guidance=1.0, batch_size=3, fingerprint="x")
    return out, make(dreambench, painter, out).run("the command")


def test_every_score_is_there(finished):
    out, got = finished
    assert {"prompts/clip_t", "prompts/clip_i", "prompts/clip_i_all", "prompts/kid", "prompts/mask_iou", "prompts/copy",
            "prompts/lab_distance", "prompts/gram_distance", "real/clip_i", "swap/leak_mask_iou", "swap/clip_t",
            "swap/leak_lab_distance"} <= set(got)  # fmt: skip
    assert "swap/clip_i" not in got and "real/clip_t" not in got
    assert got["prompts/clip_i"]["n"] == 2 and got["prompts/clip_i"]["mean"] < got["real/clip_i"]["mean"]
    assert json.loads((out / "metrics.json").read_text(encoding="utf-8")) == got
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert (
        about["command"] == "the command" and about["seeds"] == [0, 1] and about["subjects"]["mug_1"] == ["mug", 3, 2]
    )


@pytest.mark.parametrize("prompt", ["{} in a 5* hotel", "{} at < 3 metres"])
def test_a_text_that_clip_would_misread_ends_the_run_before_it_paints(painter, tmp_path, prompt):
    painter.paint = None  # would fail
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    mug = Subject("mug", (tmp_path / "a.png",), "mug", ("a photo of {}",))
    subjects = [mug, replace(mug, name="cup", category="cup", templates=(prompt,))]
    with pytest.raises(UserError, match=re.escape(scored(prompt, "cup"))) as caught:
        Run("folder", subjects, painter, tmp_path / "out", METRICS, images=1, shard=(0, 2)).run()
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_the_report_is_whole_and_fetches_nothing(finished):
    out, _ = finished
    page, text = (out / "report.html").read_text(encoding="utf-8"), (out / "report.md").read_text(encoding="utf-8")
    assert "://" not in page and 'src="pictures' not in page and "default-src 'none'" in page
    for word in ("prompts/clip_i", "a &lt;concept&gt; in the jungle", "the command"):
        assert word in page
    assert "| prompts/clip_i |" in text and "the command" in text


def test_nothing_is_painted_twice_and_new_metrics_paint_nothing(finished, dreambench, painter):
    out, got = finished
    painter.paint = None  # would fail
    assert make(dreambench, painter, out).run("the command") == got
    run = make(dreambench, painter, out)
    run.metrics = {"clip_t": METRICS["clip_t"]}

    def nothing_left(wanted, concepts, done):
        assert not wanted

    painter.paint = nothing_left
    assert set(run.run()) == {"prompts/clip_t", "swap/clip_t", "prompts/copy"}


@pytest.mark.slow
def test_shards_of_one_folder_give_the_same_figures(finished, dreambench, painter, tmp_path):
    _, got = finished
    assert make(dreambench, painter, tmp_path, shard=(1, 2)).run() is None
    assert make(dreambench, painter, tmp_path, shard=(0, 2)).run() is not None
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")).keys() == got.keys()
    for key, found in json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")).items():
        assert found["mean"] == pytest.approx(got[key]["mean"], abs=1e-4), key


@pytest.mark.slow
def test_a_perfect_painter_scores_as_the_reference_does(dreambench, painter, tmp_path):
    """It paints the reference itself: identical pictures, hence 1, and a copy; the reference left out, it is real."""
    run = make(dreambench, painter, tmp_path, tasks=(REAL, PROMPTS))

    def paint(wanted, concepts, done):
        for i, case in enumerate(wanted):
            done(i, run._shown[case.subject].reference)

    painter.paint = paint
    got = run.run()
    assert got["prompts/mask_iou"]["mean"] == 1 and got["prompts/copy"]["mean"] == 1
    assert got["prompts/lab_distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert got["prompts/gram_distance"]["mean"] == pytest.approx(0, abs=1e-6)
    assert got["prompts/clip_i_all"]["mean"] > got["prompts/clip_i"]["mean"]

    def shuffled(wanted, concepts, done):
        for i, case in enumerate(wanted):
            done(i, next(s for name, s in run._shown.items() if name != case.subject).reference)

    painter.paint, painter.fingerprint = shuffled, "y"
    worse = run.run()
    assert worse["prompts/clip_i"]["mean"] < got["prompts/clip_i"]["mean"]
    assert worse["prompts/lab_distance"]["mean"] > 1


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(dreambench, tiny_folder, encoder_folder, tmp_path):
    """kill -9 as soon as the first pictures are there; the second start keeps them and writes the report."""
    command = [
        sys.executable, "-m", "escdiff.evaluation", "dreambench", str(dreambench), "--out", str(tmp_path), "--backbone",
        str(tiny_folder), "--encoder", str(encoder_folder), "--metrics", "mini", "--images", "4", "--steps", "2",
        "--guidance", "2", "--batch-size", "1", "--masks", "plain", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = tmp_path / "stderr.txt"
    with open(said, "w", encoding="utf-8") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file)
    until = time.time() + 900  # a busy machine takes minutes to import torch
    while len(list(tmp_path.glob("pictures/prompts/*/*.png"))) < 3 and time.time() < until and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pictures/prompts/*/*.png")}
    assert len(kept) >= 3, said.read_text(encoding="utf-8")
    assert not (tmp_path / "report.html").exists()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    pictures = list(tmp_path.glob("pictures/prompts/*/*.png"))
    assert len(pictures) == 16 and all(Image.open(p).size == (128, 128) for p in pictures)
    assert (tmp_path / "report.html").is_file()
