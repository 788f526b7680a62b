"""A judge by its name on the command line."""

from pathlib import Path

from escdiff.evaluation.vlm.endpoint import Endpoint
from escdiff.evaluation.vlm.panel import Panel
from escdiff.evaluation.vlm.rubrics import read_rubrics
from escdiff.support.errors import UserError


def make_panel(judge: str, rubrics: str, out: Path, most: int | None, device: str) -> Panel | None:
    """The judge of `--judge`: none, openai:MODEL (any compatible address) or transformers:FOLDER.

    Raises:
        UserError: another name, a judge that cannot be had, or rubrics that are wrong.
    """
    if judge == "none":
        return None
    kind, _, name = judge.partition(":")
    if kind not in ("openai", "transformers") or not name:
        raise UserError(f"--judge is {judge!r}; give none, openai:MODEL or transformers:FOLDER")
    loaded = read_rubrics(rubrics)
    if kind == "openai":
        model = Endpoint(name, loaded.temperature, loaded.max_tokens)
    else:
        from escdiff.evaluation.vlm.local import LocalModel

        model = LocalModel(name, loaded.temperature, loaded.max_tokens, device)
    return Panel(model, loaded, out, most)
