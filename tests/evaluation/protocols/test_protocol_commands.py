"""The protocols' commands: what each one runs by default, and mistakes that end before anything is made."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from escdiff.evaluation import __main__ as door
from escdiff.evaluation.protocols import painter, run
from escdiff.evaluation.protocols.cases import PAIR, PROMPTS, REAL, SWAP
from escdiff.support.errors import UserError


def invoke(*arguments):
    return CliRunner().invoke(door.app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """A folder with one picture, and one with a file of prompts."""
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (8, 8)).save(data / "mug.png")
    (tmp_path / "prompts.txt").write_text("a photo of a <concept>\n", encoding="utf-8")
    return data


@pytest.fixture
def plus(tmp_path):
    """DreamBench++ with a single subject."""
    data = tmp_path / "plus"
    for name in ("captions", "images"):
        (data / name / "object" / "kind").mkdir(parents=True)
    (data / "captions/object/kind/00.txt").write_text("mug\na mug on a table\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(data / "images/object/kind/00.jpg")
    return data


@pytest.fixture
def started(monkeypatch):
    """Runs that note how they were made, and paint nothing."""
    made = {}

    def load(*arguments):
        made["load"] = arguments
        return "painter"

    class Run:
        def __init__(self, *arguments):
            names = ("name", "subjects", "painter", "out", "metrics", "masks", "images", "seed", "reference", "tasks",
                     "shard", "device", "panel")  # fmt: skip
            made.update(zip(names, arguments, strict=True))

        def run(self, command):
            made["command"] = command
            return {} if made["shard"] == (0, 1) else None

    monkeypatch.setattr(painter.Painter, "load", staticmethod(load))
    monkeypatch.setattr(run, "Run", Run)
    return made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "3/2"], "--shard is '3/2'"),
        (["--metrics", "nothing"], "--metrics is 'nothing'; give one of full, mini, standard"),
        (["--judge", "oracle"], "--judge is 'oracle'; give none, openai:MODEL or transformers:FOLDER"),
        (["--judge", "openai:m", "--rubrics", "nothing"], "--rubrics is 'nothing'"),
        (["--device", "cuda:7"], "cuda:7"),
        (["--swap"], "there is one subject, 'mug'"),
    ],
)
def test_a_mistake_is_one_sentence_and_paints_nothing(folder, started, tmp_path, arguments, words):
    out = tmp_path / "out"
    result = invoke("folder", folder, "--prompts", tmp_path / "prompts.txt", "--out", out, *arguments)
    assert isinstance(result.exception, UserError) and words in str(result.exception), result.exception
    assert not started and not list(out.glob("*"))


@pytest.mark.parametrize(("name", "words"), [
    ("dreambench", "prompts_and_classes"), ("dreambench_plus", "captions"), ("p_plus", "holds no images"),
    ("omnicontext", "parquet"),
])  # fmt: skip
def test_a_folder_of_other_data_is_told_before_models_are_read(started, tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    result = invoke(name, tmp_path / "empty", "--out", tmp_path / "out")
    assert isinstance(result.exception, UserError) and words in str(result.exception), result.exception
    assert not started and not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_told(folder, started, tmp_path):
    (tmp_path / "out").write_text("", encoding="utf-8")
    result = invoke("folder", folder, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")
    assert isinstance(result.exception, UserError) and "cannot be made a folder" in str(result.exception)
    assert not started


def test_folders_are_judged_by_the_bundled_models_and_others_by_the_fields(folder, plus, started, tmp_path):
    result = invoke("folder", folder, "--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out")
    assert result.exit_code == 0 and "report.html" in result.output
    assert started["load"][:1] + started["load"][3:6] == ("mini", 50, None, 4)
    assert (started["masks"], started["images"], started["seed"]) == ("plain", 4, 0)
    assert started["tasks"] == (REAL, PROMPTS) and [s.name for s in started["subjects"]] == ["mug"]
    (plus / "captions/object/kind/01.txt").write_text("cup\na cup on a table\n", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(plus / "images/object/kind/01.jpg")
    assert invoke("dreambench_plus", plus, "--out", tmp_path / "out", "--swap").exit_code == 0
    assert started["load"][:1] + started["load"][3:6] == ("sd15", 100, None, 4)
    assert (started["masks"], started["images"], started["seed"]) == ("none", 1, 42)
    assert started["tasks"] == (REAL, PROMPTS, SWAP) and "dinov2" in started["metrics"]


def test_a_process_of_several_says_who_writes_the_report(folder, started, tmp_path):
    common = ["--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "out"]
    result = invoke("folder", folder, *common, "--shard", "2/3")
    assert started["shard"] == (1, 3) and "2/3 is done; whichever process ends last writes" in result.output


def test_pairs_are_painted_together_and_nothing_else(started, tmp_path):
    data = tmp_path / "omni"
    data.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(data / f"{name}.png")
    row = {"key": "1", "task_type": "character_character", "input_images": ["a.png", "b.png"],
           "instruction": "The cat in the first image beside the dog in the second image"}  # fmt: skip
    (data / "metadata.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert invoke("omnicontext", data, "--out", tmp_path / "out").exit_code == 0
    assert started["tasks"] == (PAIR,) and started["reference"] == 0 and started["panel"] is None
    (subject,) = started["subjects"]
    assert subject.partner is not None and "<first>" in subject.templates[0]
