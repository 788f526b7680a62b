"""Files of a dataset in a folder, or at any address that fsspec knows, with a cache on the disk."""

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from escdiff.data.index import FILE, Index, Shard, sha256
from escdiff.data.pictures import expand
from escdiff.data.shards import read_raw
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError, reason_of
from escdiff.support.files import replacing

CACHE = DataConfig.cache
TRIES = 3  # to open a shard that others may take away


def is_address(root: str | os.PathLike) -> bool:
    """Whether `root` is an address (`s3://...`) and no path."""
    return "://" in os.fspath(root)


class ShardStore:
    """The files of one dataset. Remote ones are fetched when they are first wanted, whole and compared with
    their SHA-256; several processes may share a cache.

    Args:
        root: folder, or address such as "s3://bucket/photos".
        cache: folder for what is fetched.
        cache_gb: when the cache grows beyond it, shards not used for longest go, from the disk when nobody has them
            open any more; 0 keeps all.
    """

    def __init__(
        self, root: str | os.PathLike, cache: str | os.PathLike = CACHE, cache_gb: float = DataConfig.cache_gb
    ) -> None:
        self.address = os.fspath(root).strip().rstrip("/") if is_address(root) else None
        self.cache_gb = cache_gb
        if self.address is None:
            self.folder = expand(root)
        else:
            name = hashlib.sha256(self.address.encode()).hexdigest()[:16]
            self.folder = expand(cache) / name

    def __str__(self) -> str:
        return self.address or str(self.folder)

    def index(self) -> Index:
        """The dataset's index, fetched afresh.

        Raises:
            UserError: there is none, or the address cannot be reached.
        """
        if self.address is not None:
            self._fetch(FILE, self.folder / FILE)
        return Index.load(self.folder)

    def check(self, index: Index, hashes: bool = False) -> None:
        """Compare local shards with the index; remote ones are compared when they are fetched."""
        if self.address is None:
            index.check(self.folder, hashes)

    def shard(self, shard: Shard) -> Path:
        """A shard as a local file.

        Raises:
            UserError: it cannot be fetched, or is not what the index says.
        """
        if self.address is None:
            return self.folder / shard.name
        # By its contents: shards made anew, which may well be as large, are others.
        path = self.folder / f"{Path(shard.name).stem}-{shard.sha256[:16]}.tar"
        try:
            if path.stat().st_size == shard.bytes:
                os.utime(path)
                return path
        except FileNotFoundError:
            pass
        self._make_room(shard)
        self._fetch(shard.name, path, shard)
        return path

    def read(self, shard: Shard, first: int = 0) -> Iterator[dict[str, Any]]:
        """The samples of a shard from number `first` on, see `escdiff.data.shards.read_raw`.

        Fetched again where another process made room of it before it was opened; what is open can be read on.
        """
        for left in range(TRIES)[::-1]:
            samples = read_raw(self.shard(shard), first=first)
            try:
                yield from islice(samples, 1)
            except UserError as error:
                if self.address is None or not left or not isinstance(error.__cause__, FileNotFoundError):
                    raise
                continue
            yield from samples
            return

    def file(self, name: str, afresh: bool = False) -> Path:
        """Another file of the dataset, e.g. "latents/KEY/photos-000000.safetensors".

        Args:
            afresh: fetch a remote one even if it is there.

        Raises:
            UserError: it cannot be fetched.
        """
        path = self.folder / name
        if self.address is not None and (afresh or not path.exists()):
            self._fetch(name, path)
        return path

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the dataset; none where it cannot be listed."""
        try:
            files, place = fsspec.core.url_to_fs(f"{self.address or self.folder}/{folder}")
            return {Path(name).name for name in files.ls(place, detail=False)}
        except Exception:  # every kind of storage has errors of its own, for a missing folder too
            return set()

    def _fetch(self, name: str, path: Path, shard: Shard | None = None) -> None:
        try:
            files, remote = fsspec.core.url_to_fs(f"{self.address}/{name}")
            with files.open(remote, "rb") as source, replacing(path) as file:
                shutil.copyfileobj(source, file, 1 << 20)
                file.flush()
                if shard is not None and (file.tell() != shard.bytes or sha256(Path(file.name)) != shard.sha256):
                    raise UserError(f"shard {self.address}/{name} is not what the index says; upload it again")
        except UserError:
            raise
        # Every kind of storage has errors of its own, and a library that is not installed is one of them.
        except Exception as error:
            raise UserError(
                f"cannot fetch {self.address}/{name} ({reason_of(error)}); check the address and your access"
            ) from error

    def _make_room(self, coming: Shard) -> None:
        if not self.cache_gb:
            return
        cached = sorted(_ages(self.folder.glob("*.tar")))
        size = sum(size for _, size, _ in cached) + coming.bytes
        for _, bytes_, path in cached:
            if size <= self.cache_gb * 1e9:
                return
            with suppress(PermissionError):  # Windows keeps what a process has open; elsewhere that reads on
                path.unlink(missing_ok=True)
                size -= bytes_


def _ages(paths: Iterable[Path]) -> Iterator[tuple[float, int, Path]]:
    """(last use, size, path) of those that are still there."""
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        yield status.st_mtime, status.st_size, path
