"""`/concepts`: pictures in, concept files out."""

import tempfile
from pathlib import Path
from typing import Annotated, Literal

import torch
from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse
from PIL import Image

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.serving.engine import Engine
from escdiff.serving.web.schema import ConceptAnswer, KeptAnswer, Strength
from escdiff.serving.web.service import Owner, Shared
from escdiff.serving.web.store import SUFFIX, Kept
from escdiff.sharing.layouts import LAYOUTS, export_embeddings
from escdiff.support.errors import TooLarge, UserError

BINARY = "application/octet-stream"
ANY_FILE = {"content": {BINARY: {}}}
router = APIRouter(prefix="/concepts", tags=["concepts"])
Picture = Annotated[UploadFile | None, File()]


@router.post("", status_code=201, response_model=ConceptAnswer, responses={201: ANY_FILE})
async def make_concept(
    service: Shared, owner: Owner, request: Request, picture: Picture = None, shape: Picture = None,
    appearance: Picture = None, mask: Picture = None, concept: Picture = None,
    shape_strength: Annotated[Strength, Form()] = 1.0, appearance_strength: Annotated[Strength, Form()] = 1.0,
    title: Annotated[str, Form(max_length=100)] = "",
):  # fmt: skip
    """Read a reference: `picture` for shape and appearance, or `shape` and `appearance` apart; or keep a `concept`, its
    file. `mask` is white on the object of a single picture. `Accept: application/octet-stream` gives the file itself.
    """
    uploads = {"picture": picture, "shape": shape, "appearance": appearance, "mask": mask, "concept": concept}
    strengths = {"shape": shape_strength, "appearance": appearance_strength}

    def work() -> tuple[Concept, Kept]:
        result = read_upload(service.engine, {k: v for k, v in uploads.items() if v is not None}, title)
        result = result.scaled({a: strengths[a] for a in result.attributes if a in strengths})
        return result, service.store.add(owner, result)

    result, stored = await service.read(work)
    headers = {"location": f"/concepts/{stored.id}"}
    if BINARY in request.headers.get("accept", ""):
        file = service.store.path(owner, stored.id)
        return FileResponse(file, 201, headers, media_type=BINARY, filename=f"{stored.id}{SUFFIX}")
    answer = ConceptAnswer(
        id=stored.id, attributes=list(result.attributes), placeholders=list(result.placeholders()), title=result.title,
        bytes=stored.bytes,
    )  # fmt: skip
    return Response(answer.model_dump_json(), 201, headers, media_type="application/json")


@router.get("", response_model=list[KeptAnswer])
def list_concepts(service: Shared, owner: Owner):
    """List the concepts of the caller, the newest first."""
    return [vars(entry) for entry in service.store.list(owner)]


@router.get("/{identity}", response_class=Response, responses={200: ANY_FILE})
def get_concept(
    service: Shared, owner: Owner, identity: str, half: bool = False,
    layout: Literal["escdiff", *LAYOUTS] = "escdiff", attribute: str = "shape",
):  # fmt: skip
    """The concept file, in float16 with `half`; or one attribute in another program's layout, see docs/formats.md."""
    file, name = service.store.path(owner, identity), f"{identity}{SUFFIX}"
    if layout == "escdiff" and not half:
        return FileResponse(file, media_type=BINARY, filename=name)
    with tempfile.TemporaryDirectory() as folder:
        file_out = Path(folder) / name
        if layout == "escdiff":
            Concept.load(file).save(file_out, torch.float16)
        else:
            export_embeddings(Concept.load(file), file_out, attribute, layout)
        return Response(file_out.read_bytes(), media_type=BINARY, headers={
            "content-disposition": f'attachment; filename="{name}"'
        })  # fmt: skip


@router.delete("/{identity}", status_code=204)
def delete_concept(service: Shared, owner: Owner, identity: str) -> None:
    """Delete it for good."""
    service.store.remove(owner, identity)


def read_upload(engine: Engine, uploads: dict[str, UploadFile], title: str) -> Concept:
    """The concept of what was uploaded, by field.

    Raises:
        UserError: fields that do not go together, or contents that cannot be used.
    """
    if "concept" in uploads:
        if len(uploads) > 1:
            raise UserError("a concept file and pictures were given; expected one or the other")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"concept{SUFFIX}"
            file.write_bytes(contents(uploads["concept"], "concept", engine.limits.concept_bytes))
            return engine.read_concept(file)
    if "picture" in uploads and ("shape" in uploads or "appearance" in uploads):
        raise UserError("picture stands for shape and appearance; give it alone, or the two apart")
    read: dict[str, Image.Image] = {
        field: engine.read_picture(contents(file, field, engine.limits.picture_bytes))
        for field, file in uploads.items()
    }
    mask = read.pop("mask", None)
    if "picture" in read:
        read = dict.fromkeys(ATTRIBUTES, read["picture"])
    return engine.encode(read, mask, title)


def contents(file: UploadFile, field: str, most: int) -> bytes:
    """The bytes of an upload.

    Raises:
        TooLarge: more than `most`.
    """
    data = file.file.read(most + 1)
    if len(data) > most:
        raise TooLarge(f"the file of {field} has more than {most / 1e6:g} MB; make it smaller")
    return data
