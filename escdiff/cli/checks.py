"""What a person can get wrong in front of `python infer.py`, found before anything slow starts."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from escdiff.cli.files import uses_files
from escdiff.errors import UserError

FREE_BYTES = 50_000_000


def check(config: dict) -> None:
    """Refuse what no run could use, before anything is loaded.

    Raises:
        UserError: the first thing that is wrong.
    """
    given = [key for key in ("shape", "appearance", "concept") if config[key]]
    if config["concept"] and len(given) > 1:
        raise UserError(f"concept= and {given[0]}= were both given; expected a concept file or pictures")
    if config["references"] and given:
        raise UserError(f"references= and {given[0]}= were both given; expected a folder for the overview or pictures")
    if config["prompt"] and not given:
        raise UserError("a prompt was given without a picture; expected shape=FILE, appearance=FILE or concept=FILE")
    if config["mask"] and uses_files(config):
        raise UserError(f"mask={config['mask']} was given with a concept file; expected a picture")
    if uses_files(config):
        from escdiff.mixing import check_how

        check_how(config["mix"])
    folder = Path(config["out"]).expanduser()
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"out={folder} given, but {nearest} is a file; expected a folder")
    if shutil.disk_usage(nearest).free < FREE_BYTES:
        raise UserError(f"less than {FREE_BYTES // 10**6} MB are free for out={folder}; make room or name another disk")


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
