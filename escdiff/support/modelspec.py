"""Metadata of safetensors files for programs that list models: Stability AI's ModelSpec 1.0.1.

The keys stand beside a file's own in its metadata. Source: the specification in the repository Stability-AI/ModelSpec.
"""

VERSION = "1.0.1"
PREFIX = "modelspec."
THUMBNAIL = f"{PREFIX}thumbnail"
# ModelSpec's names of what has a text encoder, or two of them together, of this width.
BASES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2-768-v", 2048: "stable-diffusion-xl-v1-base"}


def modelspec(
    kind: str, width: int, title: str, base: str = "", license: str = "", implementation: str = "escdiff"
) -> dict[str, str]:
    """The required keys, and of the optional ones those that are known.

    Args:
        kind: behind the base model's name, such as "textual-inversion".
        width: of the text encoders together, which tells the base model.
        base: its name, for a width that ModelSpec has no name for.
        implementation: the library that reads the file.
    """
    about = {
        "sai_model_spec": VERSION, "architecture": f"{BASES.get(width, base or 'unknown')}/{kind}",
        "implementation": implementation, "title": title, "license": license,
    }  # fmt: skip
    # A title from a file's name may hold bytes that are no text.
    return {PREFIX + key: value.encode("utf-8", "replace").decode() for key, value in about.items() if value}
