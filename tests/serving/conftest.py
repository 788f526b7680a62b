"""A server's engine on tiny parts."""

import pytest
from artefacts import make_encoder

from escdiff.serving.engine import Engine
from escdiff.serving.limits import Limits


@pytest.fixture(scope="module")
def engine(tiny_backbone, tmp_path_factory):
    encoder, _ = make_encoder(tmp_path_factory.mktemp("serving"), tiny_backbone)
    engine = Engine(tiny_backbone, encoder, guidance=1.0, limits=Limits(queue=8, share=6, batch=4, steps=60))
    yield engine
    engine.close()
