"""The pairs of OmniContext, in both of its layouts, painted by a tiny model and judged by a rule."""

import io
import json

import numpy as np
import pytest
from judge_server import RuleJudge
from PIL import Image

from escdiff.evaluation.protocols.cases import PAIR
from escdiff.evaluation.protocols.omnicontext import as_prompt, read_omnicontext
from escdiff.evaluation.protocols.run import Run
from escdiff.evaluation.vlm.panel import Panel
from escdiff.evaluation.vlm.rubrics import read_rubrics
from escdiff.support.errors import UserError

TEXT = "The cat in the first image sits in the mug from image 2."
ROWS = [
    ("a1", "multi_object", TEXT, 2),
    ("b2", "multi_character", "Put them together.", 2),
    ("c3", "scene_object", TEXT, 2),
    ("d4", "single_object", "The cat in image 1 sleeps.", 1),
]


def picture(i):
    return Image.new("RGB", (40, 30), (200 * (i % 2), 50 * i, 30))


@pytest.fixture
def lines(tmp_path):
    root = tmp_path / "omnicontext"
    root.mkdir()
    rows = []
    for key, task, text, count in ROWS:
        names = [f"{key}-{i}.png" for i in range(count)]
        for i, name in enumerate(names):
            picture(i).save(root / name)
        rows.append({"key": key, "task_type": task, "instruction": text, "input_images": names})
    rows[1]["prompt"] = "a photo of <first> and <second>"
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("instruction", "prompt"),
    [
        (TEXT, "the <first> sits in the <second>."),
        ("Let the man sit by the woman in image 2, while the dog from image 1 looks on.",
         "Let the man sit by the <second>, while the <first> looks on."),
        ("A red vintage car from the first picture beside the boat of the second photo",
         "the <first> beside the <second>"),
        ("Put them together.", ""),
        ("The cat in image 1 and the cat in image 12", ""),
    ],
)  # fmt: skip
def test_places_in_instructions(instruction, prompt):
    assert as_prompt(instruction) == prompt


def test_pairs_without_a_scene_are_read(lines, tmp_path):
    first, second = read_omnicontext(lines, tmp_path / "unpacked")
    assert first.name == "multi_character-b2-1" and first.templates == ("a photo of <first> and <second>",)
    assert second.partner.name == "multi_object-a1-2" and second.texts == (TEXT,)
    assert second.partner.pictures[0].name == "a1-1.png"


def test_the_hubs_parquet_files_are_read(lines, tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def encoded(i):
        file = io.BytesIO()
        picture(i).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}

    rows = [
        {"key": key, "task_type": task, "instruction": text, "input_images": [encoded(i) for i in range(count)]}
        for key, task, text, count in ROWS
    ]
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "data" / "train-0.parquet")
    (pair,) = read_omnicontext(tmp_path / "data", tmp_path / "unpacked")
    assert pair.name == "multi_object-a1-1" and pair.partner.pictures[0].parent.name == "unpacked"
    assert np.array_equal(np.asarray(Image.open(pair.partner.pictures[0])), np.asarray(picture(1)))


def test_mistakes_are_named(lines, tmp_path):
    with pytest.raises(UserError, match="neither metadata.jsonl nor"):
        read_omnicontext(tmp_path / "none", tmp_path)
    path = lines / "metadata.jsonl"
    row = {"key": "x", "task_type": "multi", "instruction": TEXT, "input_images": ["../a.png", "a1-0.png"]}
    for text, words in {
        "no json": "line 'no json'", '{"key": "a"}': "has no task_type", json.dumps(row): "no picture ../a.png",
        json.dumps(row | {"input_images": ["a1-0.png"]}): "no rows of two",
    }.items():  # fmt: skip
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=words):
            read_omnicontext(lines, tmp_path)


def test_pairs_are_painted_with_both_concepts_and_judged(lines, painter, tmp_path):
    out, subjects = tmp_path / "out", read_omnicontext(lines, tmp_path)
    panel = Panel(RuleJudge(), read_rubrics("omnicontext"), out)
    metrics = {"clip_t": {"kind": "text", "model": "mini"}}
    run = Run("omnicontext", subjects, painter, out, metrics, images=2, tasks=(PAIR,), panel=panel)
    got = run.run()
    assert {"pair/clip_t", "pair/vlm_subjects", "pair/vlm_prompt", "pair/vlm_overall"} == set(got)
    case = run.cases(PAIR, 1)[0]
    assert case.names == ["multi_object-a1-1", "multi_object-a1-2"] and case.text == TEXT and not case.whole
    pictures = sorted((out / "pictures" / "pair").rglob("*.png"))
    assert len(pictures) == 4 and "multi_object-a1-2" in (out / "report.html").read_text(encoding="utf-8")
    given, _ = painter._vectors_of([case], {n: painter.concept(s, s0) for n, s, s0 in shown(run, case)})
    assert {"<first>", "<second>"} <= given.keys()
    assert not np.allclose(given["<first>"].numpy(), given["<second>"].numpy())
    overall = [r["values"] for r in records(out)]
    assert all(v["vlm_overall"] == pytest.approx((v["vlm_subjects"] * v["vlm_prompt"]) ** 0.5) for v in overall)


def shown(run, case):
    return [(name, run._shown[name].subject, run._shown[name].reference) for name in case.names]


def records(out):
    return [
        r for path in (out / "tasks").rglob("*.json") for r in json.loads(path.read_text(encoding="utf-8"))["records"]
    ]
