"""The application: one object for uvicorn and for Ray Serve."""

import os
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

import escdiff
from escdiff.serving.engine import Engine
from escdiff.serving.limits import Busy, Late, Unknown
from escdiff.serving.settings import Settings
from escdiff.serving.web import concept_routes, picture_routes
from escdiff.serving.web.door import Door
from escdiff.serving.web.metrics import Metrics
from escdiff.serving.web.schema import Said
from escdiff.serving.web.service import FAULT, Service
from escdiff.serving.web.store import ConceptStore
from escdiff.support.errors import TooLarge, UserError

ABOUT = """Shape and appearance of one picture become a *concept*, in one forward pass; prompts name it by `<shape>`,
`<appearance>` or `<concept>`. Concepts of one API key are seen by nobody else."""
STATUS = {TooLarge: 413, Busy: 429, Late: 503, Unknown: 404}  # other mistakes are 422
AGAIN = {"retry-after": "10"}  # seconds
REFUSALS = {status: {"model": Said} for status in (401, 403, 404, 408, 413, 422, 429, 503)}
SHOWN = 3  # mistakes of one request that are told


def create_app(engine: Engine, store: ConceptStore, owners: Mapping[str, str] | None = None) -> FastAPI:
    """The application over one process' models, which it closes at its end.

    Args:
        owners: see `read_keys`; without, everybody may ask and all share their concepts.
    """
    metrics = Metrics()
    service = Service(engine, store, metrics)

    @asynccontextmanager
    async def lifespan(_app: FastAPI):
        yield
        service.close()

    app = FastAPI(
        title="ESCDiff", version=escdiff.__version__, description=ABOUT, lifespan=lifespan, responses=REFUSALS
    )
    app.state.service = service
    app.add_middleware(Door, owners=dict(owners or {}), limits=engine.limits, metrics=metrics)
    key = [Depends(HTTPBearer(auto_error=False))]  # for the OpenAPI page; the door has asked for it
    app.include_router(concept_routes.router, dependencies=key)
    app.include_router(picture_routes.router, dependencies=key)
    app.add_exception_handler(UserError, _mistake)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _fault)

    @app.get("/health", tags=["operation"])
    def health(response: Response) -> dict:
        """200 while it can paint, else 503: then start it anew."""
        healthy = engine.painter.healthy
        response.status_code = 200 if healthy else 503
        return {"healthy": healthy, "waiting": engine.painter.waiting, "backbone": Path(engine.backbone.name).name}

    @app.get("/metrics", tags=["operation"], dependencies=key, response_class=Response)
    def read_metrics() -> Response:
        """In Prometheus' text format."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def from_environment() -> FastAPI:
    """The application that the environment describes, see `Settings`.

    Raises:
        UserError: a model that is missing.
    """
    settings = Settings.from_environment(os.environ)
    store = ConceptStore(Path(settings.store), settings.limits.concepts)
    return create_app(settings.load(), store, settings.owners)


def _mistake(_request: Request, error: UserError) -> JSONResponse:
    status = next((code for kind, code in STATUS.items() if isinstance(error, kind)), 422)
    return JSONResponse({"detail": str(error)}, status, AGAIN if status in (429, 503) else None)


def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    """Name each wrong field and its fault, without repeating the client's values."""
    problems = error.errors()[:SHOWN]
    sentences = [f"{'.'.join(map(str, p['loc'][1:])) or 'the body'}: {p['msg']}" for p in problems]
    return JSONResponse({"detail": "; ".join(sentences)}, 422)


def _fault(_request: Request, _error: Exception) -> JSONResponse:
    return JSONResponse({"detail": FAULT}, 500)
