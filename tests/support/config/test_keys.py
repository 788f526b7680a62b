"""A key says what it may be, and refuses the rest; the defaults are what they say."""

from dataclasses import dataclass

import pytest

from escdiff.support.config.control import KINDS
from escdiff.support.config.infer import InferConfig
from escdiff.support.config.keys import block, check, key, keys_of
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError

ALL = [one for kind in (TrainConfig, InferConfig) for one in keys_of(kind)]
ALL += [one for group, kinds in KINDS.items() for kind in kinds.values() for one in keys_of(kind, f"{group}.")]


@dataclass
class Inner:
    """Things."""

    share: float = key(0.5, "a share", low=0, high=1)
    word: str | None = key(None, "a word", choices=("red", "blue", "green"))


@dataclass
class Outer:
    """More things."""

    count: int | str = key("auto", "how many", low=1, choices=("auto",))
    weights: dict[str, float] = key({"a": 1.0}, "by name")
    inner: Inner = block(Inner)


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_every_key_says_what_it_is_and_its_default_will_do(one):
    if one.is_block:
        assert one.field.type.__doc__
        return
    assert one.help and one.help[0] != " " and "\n" not in one.help and one.expected
    if not (isinstance(one.default, str) and "${" in one.default):
        one.check(one.default)


def test_keys_have_dotted_names():
    assert [one.name for one in keys_of(Outer)] == ["count", "weights", "inner", "inner.share", "inner.word"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Outer(count=0), "count=0 given; expected auto or a whole number, 1 or more"),
        (Outer(count="many"), "count=many given; expected auto or a whole number, 1 or more"),
        (Outer(count=2**32), "count=4294967296 given"),
        (Outer(weights={"b": 1.0}), "weights={'b': 1.0} given; expected the keys a"),
        (Outer(inner=Inner(share=1.5)), "inner.share=1.5 given; expected a number from 0 to 1"),
        (Outer(inner=Inner(share=float("nan"))), "inner.share=nan given; expected a number from 0 to 1"),
        (Outer(inner=Inner(word="pink")), "inner.word=pink given; expected null, red, blue or green"),
    ],
)
def test_what_is_out_of_bounds_is_refused(config, sentence):
    with pytest.raises(UserError) as caught:
        check(config)
    assert str(caught.value).startswith(sentence)


def test_what_is_within_bounds_passes():
    check(Outer(count=3, inner=Inner(share=1.0, word="red")))


def test_no_two_configurations_share_a_default():
    Outer().weights["a"] = 2.0
    assert Outer().weights == {"a": 1.0}
