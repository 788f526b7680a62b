"""`benchmarks/serving.py` at a reduced size: clients, a tenth of their requests hostile, and a killed worker."""

import runpy
from argparse import Namespace
from pathlib import Path

import pytest
from artefacts import make_encoder

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "serving.py"


@pytest.fixture(scope="module")
def models(tiny_backbone, tmp_path_factory):
    """Options of a server of tiny models."""
    folder = tmp_path_factory.mktemp("models")
    tiny_backbone.pipeline().save_pretrained(folder / "backbone")
    encoder, _ = make_encoder(folder, tiny_backbone)
    encoder.save_pretrained(folder / "encoder")
    return ["--backbone", str(folder / "backbone"), "--encoder", str(folder / "encoder")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["uvicorn", "ray"])
def test_a_storm_and_a_kill(kind, models, capsys):
    flags = ["--workers", "2"]
    if kind == "ray":
        pytest.importorskip("ray.serve")
        flags = ["--ray", "--replicas", "2"]
    wrong = runpy.run_path(str(BENCHMARK))["run_storm"](Namespace(clients=6, requests=160, steps=1), flags + models)
    assert wrong == [], capsys.readouterr().out
