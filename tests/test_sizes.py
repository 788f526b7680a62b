"""The documented sizes are those of the real configuration."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def sizes():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import sizes

        yield sizes


def test_the_documented_sizes_are_those_of_the_configuration(sizes):
    found = sizes.tables()
    for page in sizes.PAGES:
        text = (sizes.DOCS / page).read_text(encoding="utf-8")
        assert sizes.MARKED.search(text), page
        assert sizes.filled(text, found) == text, f"{page}: run python benchmarks/sizes.py"


def test_a_stale_table_is_written_anew_and_nothing_else(sizes):
    page = "before\n<!-- sizes.py: scaling -->\n| 6.98 M |\n<!-- sizes.py: end -->\nafter\n"
    assert sizes.filled(page, {"scaling": "| 25.35 M |"}) == page.replace("6.98", "25.35")


def test_real_sizes_are_those_of_stable_diffusion_15(sizes):
    counted = {name: sum(p.numel() for p in part.parameters()) for name, part in sizes.shapes().items()}
    assert counted["unet"] == 859_520_964  # the published model's
    assert (counted["vae"], counted["text_encoder"]) == (83_653_863, 123_060_480)
    assert counted["vision"] == 303_179_776


@pytest.mark.slow
def test_the_recipes_operations_and_activations_are_the_models(sizes):
    model, found = sizes.recipe.MODELS["sd15"], sizes.recipe.count("sd15", 512, 768)
    assert found == {key: pytest.approx(getattr(model, key), rel=5e-3) for key in found}
