import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from escdiff.evaluation import __main__ as door
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.bench.run import Bench
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.evaluation.report.page import THUMB, _embed

NUMBERS = dict.fromkeys(TASKS, 2) | {"swap": 4, "leak": 0, "edit": 0, "copy": 0}
ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_perfect_pictures_get_perfect_figures_in_flat_files(bench, tmp_path):
    names = [name for name, task in TASKS.items() if not task.judged]
    got = bench.run(names, "the command")
    assert got == json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    for key, found in got.items():
        assert key.split("/")[0] in TASKS and set(found) == {"mean", "low", "high", "n"}
        assert all(math.isfinite(v) for v in found.values())
    for key in ("text/family", "both/family", "both/pattern", "held_out/family", "swap/shape", "swap/appearance"):
        assert got[key]["mean"] == 1, key
    assert got["edit/background"]["mean"] == 1 and got["both/delta_e"]["mean"] == 0
    assert got["leak/shape_to_appearance"]["mean"] == got["leak/appearance_to_shape"]["mean"] == 0
    assert {"vae/psnr", "copy/rate", "oracle/family", "ceiling/delta_e", "floor/params"} <= set(got)
    about = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert about["command"] == "the command" and set(about["seconds"]) == set(names)


def test_the_report_is_one_page_that_fetches_nothing(bench, tmp_path):
    bench.run(["both", "swap"], "the command")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not list(tmp_path.glob("[!r]*.html")) and "://" not in page and 'src="pictures' not in page
    assert "both/family" in page and "the command" in page and (tmp_path / "pictures/swap/matrix.png").is_file()
    for record in bench.records["both"]:
        for path in record.pictures.values():
            assert _embed(tmp_path / path, THUMB) in page and Image.open(tmp_path / path).size == (128, 128)
    lines = (tmp_path / "report.md").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("| both/family | 100.0 %") for line in lines) and "the command" in " ".join(lines)


def test_wrong_pictures_come_first(bench, tmp_path):
    bench.run(["both"])
    last = bench.records["both"][-1]
    last.values["family"] = 0.0
    from escdiff.evaluation.bench.report import write_report

    write_report(tmp_path, bench.records, bench.metrics(), bench.about(""))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = page[page.index('<section id="both">') :]
    places = {page.index(_embed(tmp_path / r.pictures["result"], THUMB)): r for r in bench.records["both"]}
    assert places[min(places)] is last and f"not {last.request.expected.shape.family}" in page


def again(bench, **changes):
    values = {name: changes.get(name, getattr(bench, name)) for name in ("models", "out", "quick", "seed", "numbers")}
    return Bench(**values)


def test_finished_tasks_are_not_run_again(bench):
    first = bench.run(["both", "copy"])
    painted = bench.models.painted
    assert again(bench).run(["both", "copy"]) == first and bench.models.painted == painted
    again(bench, seed=1).run(["both"])
    assert bench.models.painted == painted + 3  # another seed is another bench
    bench.models.fingerprints = ("x", "y")
    again(bench, seed=1).run(["both"])
    assert bench.models.painted == painted + 6  # and so are other weights


def test_a_new_encoder_leaves_the_figures_of_the_backbone(bench):
    bench.run(["text"])
    bench.models.fingerprints = ("x", "y")
    got = again(bench).run(["both"])
    assert bench.models.painted == 6 and {"text/family", "both/family"} <= set(got)


def test_a_lost_picture_or_a_damaged_file_runs_its_task_again(bench, tmp_path):
    bench.run(["text", "both"])
    painted = bench.models.painted
    (tmp_path / bench.records["text"][0].pictures["result"]).unlink()
    (tmp_path / "tasks" / "both.json").write_text("{", encoding="utf-8")
    again(bench).run(["text", "both"])
    assert bench.models.painted == 2 * painted


@pytest.mark.slow
def test_the_whole_bench_runs_on_real_parts(real_models, tmp_path):
    got = Bench(real_models, tmp_path / "out", numbers=NUMBERS).run(list(TASKS))
    assert {key.split("/")[0] for key in got} == set(TASKS)
    assert not any("clip" in key for key in got)  # no CLIP, no figure


def test_a_picture_does_not_depend_on_its_batch(real_models):
    requests = TASKS["text"].draw(0, 3)
    real_models.batch_size = 3
    together = real_models.paint(requests, [{}] * 3, [7, 8, 9], lambda n: None)
    alone = real_models.paint(requests[1:2], [{}], [8], lambda n: None)
    difference = torch.tensor(list(together[1].tobytes())) - torch.tensor(list(alone[0].tobytes()))
    assert difference.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tasks", "text,ball"], "--tasks names ball"),
        (["--steps", "0"], "--steps is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--oracle", "/nowhere"], "no oracle in /nowhere"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluation", "esc-bench", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as end:
        door.main()
    sentence = capsys.readouterr().err
    assert end.value.code == 2 and said in sentence and len(sentence.strip().splitlines()) == 1


def test_an_output_that_is_a_file_is_refused_by_a_real_process(tmp_path):
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    command = [sys.executable, "-m", "escdiff.evaluation", "esc-bench", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 2 and "give a folder" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_missing_encoder_is_named_before_anything_is_painted(tiny_backbone, tiny_folder, oracle, tmp_path):
    from escdiff.support.errors import UserError

    oracle.save_pretrained(tmp_path / "oracle")
    with pytest.raises(UserError, match="no encoder in"):
        Models.load(str(tiny_folder), tmp_path / "none", tmp_path / "oracle", True, 1, 1.0)
    assert Models.load(str(tiny_folder), None, tmp_path / "oracle", False, 1, 1.0).encoder is None


def test_help_is_quick_to_load():
    code = "import sys, escdiff.evaluation.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
