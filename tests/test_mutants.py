"""The tests of training notice what would ruin a training."""

import mutants
import pytest


@pytest.mark.slow
def test_no_mutant_survives():
    assert mutants.main() == []


def test_a_mutant_whose_text_is_gone_is_an_error(tmp_path):
    gone = mutants.Mutant("gone", mutants.ENCODER, "no such text", "")
    with pytest.raises(ValueError, match="'no such text' stands 0 times"):
        mutants.killed(gone, tmp_path)
