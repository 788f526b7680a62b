"""Encoders and concepts on the Hugging Face hub: plain files and safetensors only, sizes looked at first."""

from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, snapshot_download
from huggingface_hub.errors import DryRunError, HfHubHTTPError

from escdiff.concept import Concept
from escdiff.support.errors import UserError, reason_of
from escdiff.support.names import hub_id, portable

PARTS = ("config.json", "model.safetensors", "branches/*.safetensors", "README.md")  # hence no pickles
# Bytes that are fetched for one.
MOST = {"encoder": 8 * 2**30, "concept": 64 * 2**20, "concept with weights": 2 * 2**30}
SUFFIX = ".safetensors"
LICENSE = "apache-2.0"  # of encoders
REPOSITORY = "REPOSITORY"  # in a card, until it is pushed
USE = """```python
from escdiff import ESCDiffPipeline

pipe = ESCDiffPipeline.from_pretrained("{base}", encoder="{repository}")
pipe("a photo of a <appearance> <shape>", shape="mug.png", appearance="dog.png").images[0]
```"""


def fetch(name: str, subfolder: str = "", **hub: Any) -> Path:
    """The folder of an encoder on the hub, or of its copy in the cache.

    Args:
        subfolder: where it lies in the repository.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        UserError: no such repository or revision, no connection and no copy, or files that are too large.
    """
    parts = [f"{subfolder}/{part}" if subfolder else part for part in PARTS]
    return _download(name, parts, "encoder", **hub) / subfolder


def concept_file(name: str, **hub: Any) -> Path:
    """The concept file at a path, or on the hub by "USER/REPO/NAME"; NAME has no suffix, and may be in a folder.

    Of the hub the weights come with it, if it brings any.

    Args:
        hub: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        UserError: as of `fetch`, or the repository has no such file. What is at a path is not looked at.
    """
    parts = name.split("/")
    repo, file = "/".join(parts[:2]), "/".join(parts[2:]) + SUFFIX
    is_path = name.endswith(SUFFIX) or {"", ".", "..", "~"} & set(parts) or Path(name).exists()
    if is_path or len(parts) < 3 or hub_id(repo) is None:
        return Path(name)
    path = _download(repo, [file], "concept", **hub) / file
    if not path.is_file():
        raise UserError(f"the repository {repo!r} on the hub has no concept {file!r}: check the name and the revision")
    if adapter := Concept.load(path).notes.get("adapter"):
        weights = (PurePosixPath(file).parent / adapter / f"*{SUFFIX}").as_posix()
        path = _download(repo, [file, weights], "concept with weights", **hub) / file
    return path


def _download(repo: str, patterns: list[str], kind: str, **hub: Any) -> Path:
    """The folder of a repository's files of these patterns; their sizes are asked for before a byte is fetched."""
    options = {"allow_patterns": patterns, **hub}
    try:
        with suppress(DryRunError):  # no connection: what the cache has was looked at when it came
            planned = snapshot_download(repo, dry_run=True, **options)
            if (total := sum(file.file_size or 0 for file in planned)) > MOST[kind]:
                what = f"the {kind} in {repo!r} has {total / 1e6:,.0f} MB, more than {MOST[kind] / 1e6:,.0f}"
                raise UserError(f"{what}; expected the files of one {kind}: check the repository")
        return Path(snapshot_download(repo, **options))
    except UserError:
        raise
    except (HfHubHTTPError, OSError, ValueError) as error:
        what = f"there is no folder {repo!r}, and the hub and its cache give no repository of that name"
        raise UserError(f"{what} ({reason_of(error)}); check the name, the revision and the connection") from error


def model_card(text: str, base_model: str = "", license: str = "", **data: Any) -> str:
    """README.md with the front matter that the hub reads.

    Args:
        base_model: left out unless it is a hub id, since the hub refuses other names.
        license: one of the hub's, see `hub_license`.
    """
    about = ModelCardData(
        base_model=hub_id(base_model), library_name="escdiff", pipeline_tag="text-to-image", license=license or None,
        tags=["escdiff", "text-to-image", "one-shot-customization", "diffusers"], **data,
    )  # fmt: skip
    return str(ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text.strip()}\n"))


def encoder_card(encoder, extra: str = "") -> str:
    """README.md of an encoder's folder."""
    count = sum(p.numel() for p in encoder.parameters()) / 1e6
    config, base = encoder.config, portable(encoder.base_model)
    branches = f"rank {config.branch_rank}, {config.branches}, {config.branched}" if config.branch_names else "none"
    rows = {
        "base model": f"{base} (text encoder {encoder.text_hash})",
        "vision tower": f"{portable(encoder.vision.spec)}, frozen",
        "space": f"{encoder.space.num_layers} layers x {encoder.space.num_stages} stages",
        "tokens per attribute": ", ".join(f"{a} {k}" for a, k in config.tokens.items()),
        "branches of the U-Net": branches,
        "parameters": f"{count:.2f} M",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    text = f"""# ESCDiff encoder

One reference image to shape and appearance tokens for every cross-attention layer, in one forward pass.

| | |
|---|---|
{table}

{USE.format(base=base, repository=REPOSITORY)}

{extra}"""
    return model_card(text, encoder.base_model, LICENSE)
