"""`--help` and the page of all keys are made from the dataclasses."""

import subprocess
import sys
from dataclasses import fields

from escdiff.cli import infer, train
from escdiff.support.config.control import KINDS
from escdiff.support.config.folder import groups_of
from escdiff.support.config.help import PAGE, page, show
from escdiff.support.config.infer import InferConfig
from escdiff.support.config.keys import keys_of
from escdiff.support.config.train import TrainConfig


def test_help_lists_every_key_and_every_group():
    for text, kind, door in (
        (train.help_text(), TrainConfig, "train"),
        (infer.help_text(), InferConfig, "infer"),
    ):
        for key in keys_of(kind):
            assert key.is_block or f"  {key.name}={show(key.default)}\n      {key.help}" in text
        assert all(f"\n  {group} " in text for group in groups_of(door) if " " not in group)
    assert all(f"  edit.{field.name}=" in infer.help_text() for field in fields(KINDS["edit"]["transfer"]))


def test_the_page_of_all_keys_is_up_to_date():
    """Write it anew by `python -m escdiff.support.config.help`."""
    assert PAGE.read_text(encoding="utf-8") == page()


def test_help_needs_no_heavy_library():
    code = (
        "import sys; from escdiff.cli import infer, train; infer.help_text(), train.help_text(); "
        "print(sorted({'torch', 'lightning', 'diffusers', 'hydra', 'omegaconf'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_values_are_shown_as_they_are_typed():
    assert [show(value) for value in (None, True, 1e-4, [1, "a"], {"a": [], "b": 2.0}, "x")] == [
        "null", "true", "0.0001", "[1,a]", "{a:[],b:2}", "x",
    ]  # fmt: skip
