import pytest
import yaml

from escdiff.evaluation.vlm.build import make_panel
from escdiff.evaluation.vlm.rubrics import read_rubrics
from escdiff.support.config.folder import configs_folder
from escdiff.support.errors import UserError


def test_the_shipped_rubrics():
    plus, pairs = read_rubrics("dreambench_plus"), read_rubrics("omnicontext")
    assert plus.scale == 4 and plus.scores == ("concept", "shape", "color", "texture", "prompt")
    assert pairs.scale == 10 and pairs.scores == ("subjects", "prompt") and pairs.overall == "geometric"
    assert all("\n" not in question.text for question in plus.questions + pairs.questions)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"questions": {}}, "no questions"),
        ({"scal": 4}, "scal"),
        ({"scale": 0}, "scale: 0"),
        ({"attempts": "three"}, "attempts"),
        ({"parallel": True}, "parallel"),
        ({"overall": "sum"}, "product or geometric"),
        ({"overall_of": ["taste"]}, "taste"),
        ({"questions": {"q": {"text": "?", "against": "nothing"}}}, "against"),
        ({"questions": {"q": {"text": "?", "against": "text"}}}, "{prompt}"),
        ({"questions": {"q": {"text": "?", "against": "whole", "scale": 3}}}, "scale"),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    values = yaml.safe_load((configs_folder() / "judge" / "dreambench_plus.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values | change), encoding="utf-8")
    with pytest.raises(UserError, match=words):
        read_rubrics(str(path))


def test_judges_have_names(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert make_panel("none", "dreambench_plus", tmp_path, None, "cpu") is None
    for judge, words in {"gpt-4o": "openai:MODEL", "openai:": "openai:MODEL", "openai:m": "OPENAI_API_KEY"}.items():
        with pytest.raises(UserError, match=words):
            make_panel(judge, "dreambench_plus", tmp_path, None, "cpu")
    with pytest.raises(UserError, match="cannot be loaded"):
        make_panel(f"transformers:{tmp_path}", "dreambench_plus", tmp_path, None, "cpu")
    with pytest.raises(UserError, match="omnicontext"):
        read_rubrics("none")
