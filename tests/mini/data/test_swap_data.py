import pytest

from escdiff.data.index import Index
from escdiff.mini.data.swap_data import ensure_rendered
from escdiff.support.config.data import DataConfig


@pytest.mark.slow
def test_data_is_rendered_once_and_completed(tmp_path):
    root = tmp_path / "world"
    config = DataConfig(root=str(root), num_samples=32, size=64, shard_size=16)
    ensure_rendered(config)
    index = Index.load(root)
    assert index.samples == 32
    stamps = {path: path.stat().st_mtime_ns for path in root.glob("*.tar")}
    ensure_rendered(config)
    assert stamps == {path: path.stat().st_mtime_ns for path in root.glob("*.tar")}
    index.shards.pop()  # a run that was killed while rendering
    index.save(root)
    ensure_rendered(config)
    assert Index.load(root).samples == 32
