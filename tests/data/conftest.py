import pytest
import recorder


@pytest.fixture
def fit():
    """fit(data, root, steps, resume=None, every=None) -> the Recorder, whose `seen` lists samples."""
    return recorder.fit
