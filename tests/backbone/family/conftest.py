"""One family's tiny model with inputs, for every test of this folder."""

import pytest
from families import CASES, Setup, make_setup


@pytest.fixture(params=list(CASES))
def setup(request) -> Setup:
    return make_setup(request.param)


@pytest.fixture(params=[name for name in CASES if name not in ("sd", "sdxl")])
def transformer(request) -> Setup:
    return make_setup(request.param)


@pytest.fixture(params=["sd3", "flux", "qwen"])
def joint(request) -> Setup:
    return make_setup(request.param)
