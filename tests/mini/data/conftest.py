from pathlib import Path

import pytest
import recorder

from escdiff.mini.data.still_life import StillLifeOptions, make_still_life

OPTIONS = StillLifeOptions(seed=5, size=32, shard_size=32)


@pytest.fixture(scope="session")
def still_life_folder(tmp_path_factory) -> Path:
    """160 samples of 32 pixels in 5 shards."""
    folder = tmp_path_factory.mktemp("still_life")
    make_still_life(folder, 150, OPTIONS)
    return folder


@pytest.fixture
def fit():
    """fit(data, root, steps, resume=None, every=None) -> the Recorder, whose `seen` lists samples."""
    return recorder.fit
