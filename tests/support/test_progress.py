"""The bar of long work on data."""

from escdiff.support.progress import sample_progress


def test_nothing_to_do_shows_nothing(capfd):
    with sample_progress("pictures", 0) as advance:
        advance(0)
    assert capfd.readouterr().err == ""
    with sample_progress("pictures", 2) as advance:
        advance(2)
    assert "2/2" in capfd.readouterr().err
