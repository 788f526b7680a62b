"""The core of the server and of the demo: pictures to concepts, concepts and prompts to pictures."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from escdiff.backbone import Backbone
from escdiff.backbone.presets import load_preset
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.data.limits import time_limit
from escdiff.data.pictures import decode_image, to_mask
from escdiff.encoder import ConceptEncoder
from escdiff.serving.jobs import Job, check_concept, make_job
from escdiff.serving.limits import Limits
from escdiff.serving.painter import Painter, Progress, Ticket
from escdiff.support.errors import TooLarge, UserError
from escdiff.support.logging import quiet_libraries

DECODING = 5.0  # seconds that a picture may take
GIVEN = "the file you gave"  # what errors call an upload


@dataclass(eq=False)
class Engine:
    """The models of one process, for any number of threads.

    References are encoded one after the other, pictures painted by the `painter`'s thread; the two go on at once, since
    they share no module.

    Attributes:
        guidance: scale for those who name none.
    """

    backbone: Backbone
    encoder: ConceptEncoder
    guidance: float = 3.0
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self.painter = Painter(self.backbone, self.limits)
        self._encoding = threading.Lock()

    @classmethod
    def load(
        cls, backbone: str = "mini", encoder: str | Path | None = None, guidance: float | None = None,
        device: str = "auto", dtype: str = "auto", limits: Limits | None = None,
    ) -> "Engine":  # fmt: skip
        """Read the models; see `load_preset` and `ConceptEncoder.from_pretrained`.

        Raises:
            UserError: one that is missing.
        """
        quiet_libraries()
        model, scale = load_preset(backbone, device, dtype, guidance)
        reader = ConceptEncoder.from_pretrained(encoder, model).to(model.device)
        return cls(model, reader, scale, limits or Limits())

    def read_picture(self, data: bytes) -> Image.Image:
        """An uploaded picture, as RGB.

        Raises:
            TooLarge: more bytes or pixels than are read.
            UserError: it is no picture, or takes too long.
        """
        if len(data) > self.limits.picture_bytes:
            raise TooLarge(f"a picture has more than {self.limits.picture_bytes / 1e6:g} MB; make it smaller")
        with time_limit(DECODING, "a picture"):
            return decode_image(data, "upload", self.limits.picture_pixels)

    def encode(self, pictures: Mapping[str, Image.Image], mask: Image.Image | None = None, note: str = "") -> Concept:
        """The concept of references by attribute; one that serves for several is read once.

        Args:
            pictures: attribute -> RGB picture. mask: of a single picture, white on the object.
            note: the references' name, to be kept in the concept.

        Raises:
            UserError: no picture, or a mask of several or of another size.
        """
        if not pictures:
            raise UserError("nothing was given; expected a picture for the shape, the appearance or both")
        distinct = {id(picture): picture for picture in pictures.values()}
        if mask is not None and len(distinct) > 1:
            raise UserError("one mask was given for two pictures; read them one after the other")
        if mask is not None and mask.size != (size := next(iter(distinct.values())).size):
            raise UserError(f"the mask has {mask.size} pixels, its picture {size}; expected the same")
        area = None if mask is None else to_mask(mask, self.encoder.vision.image_size)
        with self._encoding:
            read = {key: self.encoder.encode(picture, area, note=note) for key, picture in distinct.items()}
        return Concept.combine(**{a: read[id(pictures[a])] for a in ATTRIBUTES if a in pictures})

    def read_concept(self, file: Path) -> Concept:
        """An uploaded concept file, checked against the backbone.

        Raises:
            TooLarge: it has more bytes than are read.
            UserError: it is damaged, or nothing that this backbone can paint.
        """
        if file.stat().st_size > self.limits.concept_bytes:
            most = self.limits.concept_bytes / 1e6
            raise TooLarge(f"the concept file has more than {most:g} MB; give one of this program")
        try:
            concept = Concept.load(file)
        except UserError as error:
            raise UserError(str(error).replace(str(file), GIVEN)) from None
        check_concept(self.backbone, concept)
        return concept

    def job(self, prompt: str = "", concepts: Mapping[str, Concept] | None = None, **options: Any) -> Job:
        """Make a checked job, see `make_job`; without a guidance scale it gets this engine's.

        Raises:
            UserError: as `make_job`.
        """
        if options.get("guidance") is None:
            options["guidance"] = self.guidance
        return make_job(self.backbone, self.limits, prompt, concepts, **options)

    def paint(self, *jobs: Job, owner: str = "") -> Iterator[tuple[int, Progress | Image.Image]]:
        """(number of a job, what happens to it): every step, then the picture, until all are painted.

        One who stops asking gives them up.

        Raises:
            Busy: too many are waiting. UserError: one cannot be painted.
        """
        events: queue.Queue = queue.Queue()
        tickets: list[Ticket] = []
        try:
            for i, job in enumerate(jobs):
                tickets.append(self.painter.submit(job, lambda event, i=i: events.put((i, event)), owner))
            left = len(jobs)
            while left:
                number, event = events.get()
                if isinstance(event, Exception):
                    raise event
                left -= isinstance(event, Image.Image)
                yield number, event
        finally:
            for ticket in tickets:
                ticket.cancel()

    def close(self) -> None:
        """Stop the painter."""
        self.painter.close()
