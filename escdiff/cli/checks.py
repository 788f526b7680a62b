"""Checks of a configuration of `python infer.py`, made before anything slow starts."""

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from escdiff.cli.files import pictures_of, uses_files
from escdiff.support.config.infer import InferConfig
from escdiff.support.errors import UserError

FREE_BYTES = 50_000_000


def check(config: InferConfig) -> None:
    """Refuse what no run could use, before anything is loaded.

    Raises:
        UserError: the first thing that is wrong.
    """
    sources = list(config.given("shape", "appearance", "concept"))
    if config.concept and len(sources) > 1:
        raise UserError(f"concept= and {sources[0]}= were both given; expected a concept file or pictures")
    if config.references and sources:
        raise UserError(
            f"references= and {sources[0]}= were both given; expected a folder for the overview or pictures"
        )
    if config.prompt and not sources:
        raise UserError("a prompt was given without a picture; expected shape=FILE, appearance=FILE or concept=FILE")
    if config.mask and uses_files(config) and not pictures_of(config):
        raise UserError(f"mask={config.mask} was given with a concept file; expected a picture")
    if uses_files(config):
        from escdiff.concept.mixing import check_how

        check_how(config.mix)
    check_folder(Path(config.out))


def sides_of(config: InferConfig, backbone) -> dict[str, int | None]:
    """Height and width to paint: `height` and `width`, else `size`, else the backbone's own.

    Raises:
        UserError: one of them is no multiple of the VAE's factor.
    """
    from escdiff.pipelines.generate import check_size

    sides = {name: getattr(config, name) for name in ("size", "height", "width")}
    check_size(backbone, **sides)
    return {name: sides[name] or sides["size"] for name in ("height", "width")}


def check_folder(out: Path) -> None:
    """Refuse a folder that could not be written later on; leaves nothing behind.

    Raises:
        UserError: it is a file or in one, nobody may write there, its name is too long, or the disk is full.
    """
    created: list[Path] = []
    try:
        nearest = next(parent for parent in (out.absolute(), *out.absolute().parents) if parent.exists())
        if not nearest.is_dir():
            raise UserError(f"out={out} given, but {nearest} is a file; expected a folder")
        created = [parent for parent in (out.absolute(), *out.absolute().parents) if not parent.exists()]
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        free = shutil.disk_usage(out).free
    except OSError as error:
        raise UserError(f"out={out} given, which cannot be written ({error.strerror}); name another folder") from None
    finally:
        for folder in created:
            with contextlib.suppress(OSError):
                folder.rmdir()
    if free < FREE_BYTES:
        raise UserError(f"less than {FREE_BYTES // 10**6} MB are free for out={out}; make room or name another disk")


def check_prompt(prompt: str, attributes: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a prompt that would ignore what was given.

    Raises:
        UserError: no placeholder at all, or none for a picture that was given.
    """
    words = [f"<{name}>" for name in attributes] + ["<concept>"] * (len(attributes) > 1)
    if not any(word in prompt for word in words):
        raise UserError(f"the prompt {prompt!r} has no placeholder; expected {' or '.join(words)} where it belongs")
    missing = [name for name in needed if f"<{name}>" not in prompt and "<concept>" not in prompt]
    if missing:
        raise UserError(
            f"{missing[0]}= was given, but the prompt {prompt!r} has no <{missing[0]}>; write it or drop it"
        )
