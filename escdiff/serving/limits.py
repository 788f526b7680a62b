"""Limits of a request, and the errors of requests beyond them."""

from dataclasses import dataclass

from escdiff.support.errors import UserError

MAX_SEED = 2**31 - 1


class Busy(UserError):
    """Too much is waiting already."""


class Late(UserError):
    """The answer would come too late, or never."""


class Unknown(UserError):
    """There is no such thing, or it is somebody else's."""


@dataclass(frozen=True)
class Limits:
    """Of a server; what exceeds them is refused before it costs more.

    Attributes:
        queue: pictures that may wait, and as many references.
        share: of them, of one API key.
        batch: pictures of the backbone's own size that are painted together.
        wait: seconds that a picture waits for others to be painted with.
        seconds: that a request may take.
        upload_seconds: that its body may take to arrive.
        picture_bytes, picture_pixels: of an uploaded picture.
        concept_bytes: of a concept file.
        concepts: that one API key may keep.
        prompt: letters.
        steps: of the sampler.
        side: pixels of a painted picture; None for twice the backbone's own.
    """

    queue: int = 64
    share: int = 64
    batch: int = 8
    wait: float = 0.02
    seconds: float = 600.0
    upload_seconds: float = 60.0
    picture_bytes: int = 10_000_000
    picture_pixels: int = 25_000_000
    concept_bytes: int = 4_000_000
    concepts: int = 1000
    prompt: int = 400
    steps: int = 100
    side: int | None = None

    @property
    def body(self) -> int:
        """Bytes of the largest request: four pictures, and what stands between them."""
        return 4 * self.picture_bytes + 100_000
