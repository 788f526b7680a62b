import pytest

from escdiff.data.latent_cache import without_latents

KEY = "0123456789abcdef-float32-512"


@pytest.mark.parametrize(
    "kept, words",
    [
        (["0123456789abcdef-float32-128", "0123456789abcdef-float32-64"], "of 64, 128 pixels and data.size is 512"),
        ([KEY], "unfinished"),
        (["ffffffffffffffff-float32-512"], "another VAE or dtype"),
        ([], "there are none"),
    ],
)
def test_latents_that_do_not_fit_are_named(kept, words):
    said = without_latents("data/photos", KEY, kept)
    assert words in said and "data_prep latents data/photos --size 512" in said
