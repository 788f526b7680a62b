"""Requests and answers, as the OpenAPI page shows them."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from escdiff.serving.jobs import MAX_GUIDANCE, MAX_PREVIEWS
from escdiff.serving.limits import MAX_SEED

Strength = Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)]


class ConceptUse(BaseModel):
    """A concept in a prompt."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=64, description="As POST /concepts gave it.")
    name: str = Field("", max_length=64, description="`mug` for `<mug>`, `<mug-shape>`, ...; else `<shape>`, ...")
    attributes: list[str] | None = Field(None, max_length=16, description="Those to take; all without.")
    strength: Strength | dict[str, Strength] = Field(1.0, description="0 the plain word, 1 the reference.")


class PictureRequest(BaseModel):
    """A picture to be painted."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {"prompt": "a photo of a <shape> on a sky background", "concepts": [{"id": "ID"}], "steps": 20}
        },
    )
    prompt: str = Field("", max_length=10_000)
    negative_prompt: str = Field("", max_length=10_000)
    concepts: list[ConceptUse] = Field(default_factory=list, max_length=8)
    seed: int = Field(0, ge=0, le=MAX_SEED)
    steps: int = Field(20, ge=1)
    guidance: float | None = Field(None, ge=0, le=MAX_GUIDANCE, description="The backbone's own without.")
    height: int | None = Field(None, ge=1, description="Pixels; the backbone's own without.")
    width: int | None = Field(None, ge=1)
    previews: int = Field(0, ge=0, le=MAX_PREVIEWS, description="Unfinished pictures in the event stream.")


class ConceptAnswer(BaseModel):
    """A stored concept."""

    id: str
    attributes: list[str]
    placeholders: list[str] = Field(description="What stands for it in a prompt.")
    title: str
    bytes: int


class KeptAnswer(BaseModel):
    """One of a user's concepts."""

    id: str
    bytes: int
    created: float = Field(description="Seconds since 1970.")


class PictureAnswer(BaseModel):
    """A painted picture."""

    prompt: str
    seed: int
    height: int
    width: int
    png: str = Field(description="Base64.")


class Said(BaseModel):
    """Why not: what was given, what was expected, what to do."""

    detail: str
