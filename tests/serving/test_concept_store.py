"""Whose concepts are whose, and who may ask."""

import pytest
from painting import make_concept

from escdiff.serving.limits import Busy, Unknown
from escdiff.serving.web.keys import ANYONE, asks_own, hashed, is_own, owner_of, read_keys
from escdiff.serving.web.store import ConceptStore
from escdiff.support.errors import UserError

ANN, BOB = "a" * 20, "b" * 20


def test_each_sees_their_own(tiny_backbone, tmp_path):
    store, concept = ConceptStore(tmp_path, 2), make_concept(tiny_backbone)
    mine = store.add("ann", concept)
    assert store.path("ann", mine.id).read_bytes() and mine.bytes == store.path("ann", mine.id).stat().st_size
    assert [kept.id for kept in store.list("ann")] == [mine.id] and store.list("bob") == []
    for owner, identity in (
        ("bob", mine.id),
        ("ann", "0" * 32),
        ("bob", f"../ann/{mine.id}"),
        ("ann", ""),
        ("ann", "*"),
    ):
        with pytest.raises(Unknown):
            store.path(owner, identity)
    with pytest.raises(Unknown):
        store.remove("bob", mine.id)
    store.add("ann", concept)
    with pytest.raises(Busy, match="2 concepts"):
        store.add("ann", concept)
    store.remove("ann", mine.id)
    assert store.add("ann", concept) and store.add("bob", concept)


def test_keys_are_read_from_the_environment_and_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"bob:{BOB}\n\n", encoding="utf-8")
    owners = read_keys({"ESCDIFF_API_KEYS": f"ann:{ANN}, ", "ESCDIFF_API_KEYS_FILE": str(file)})
    assert owners == {hashed(ANN): "ann", hashed(BOB): "bob"}
    assert owner_of(owners, f"Bearer {ANN}") == "ann" and owner_of(owners, f"bearer  {BOB} ") == "bob"
    for wrong in ("", ANN, f"Basic {ANN}", "Bearer", "Bearer x", f"Bearer {hashed(ANN)}"):
        assert owner_of(owners, wrong) is None
    assert read_keys({}) == {} and owner_of({}, "") == ANYONE


@pytest.mark.parametrize(
    ("given", "said"),
    [(ANN, "no NAME:SECRET"), (f"../x:{ANN}", "no NAME:SECRET"), ("ann:short", "less than 16"),
     (f"ann:{ANN},bob:{ANN}", "same API key")],
)  # fmt: skip
def test_wrong_keys_are_refused_and_not_shown(given, said):
    with pytest.raises(UserError, match=said) as error:
        read_keys({"ESCDIFF_API_KEYS": given})
    assert ANN not in str(error.value) and "ann:short" not in str(error.value)


def test_a_file_of_keys_that_is_missing_is_told(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_keys({"ESCDIFF_API_KEYS_FILE": str(tmp_path / "none")})


def test_which_addresses_are_this_machines_own():
    assert all(map(is_own, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_own, ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")))
    assert all(map(asks_own, ("127.0.0.1:8000", "localhost", "[::1]:8000", "LOCALHOST:1")))
    assert not any(map(asks_own, ("evil.example.org:8000", "127.0.0.1.example.org", "[::1", "", "user@evil.example")))
