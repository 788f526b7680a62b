"""A repository on the Hugging Face hub for what was made: files as they are, with a filled model card."""

import os
import shutil
import tempfile
from pathlib import Path

from escdiff.concept import Concept
from escdiff.errors import UserError

USE = """```python
import escdiff
from diffusers import StableDiffusionPipeline
from huggingface_hub import hf_hub_download

pipe = StableDiffusionPipeline.from_pretrained("{base}")
escdiff.load_concept(pipe, hf_hub_download("{repo}", "{file}"))
pipe("{prompt}").images[0]
```"""


def concept_card(concepts: dict[str, Concept], repo: str = "REPOSITORY", previews: bool = False) -> str:
    """README.md of a repository or folder of concepts, its front matter as the hub reads it."""
    first = next(iter(concepts.values()))
    licenses = sorted({concept.license for concept in concepts.values() if concept.license})
    head = ["---", f"base_model: {first.base_model}", "library_name: escdiff", "pipeline_tag: text-to-image"]
    head += [f"license: {licenses[0] if len(licenses) == 1 else 'other'}"] if licenses else []
    head += ["tags: [escdiff, text-to-image, one-shot-customization, diffusers]", "---", "# Concepts", ""]
    table = ["| concept | placeholders | space | method | licence |" + (" preview |" if previews else "")]
    table.append("|" + "---|" * (6 if previews else 5))
    for name, concept in concepts.items():
        words = ", ".join(f"`{word}`" for word in concept.placeholders())
        space = f"{concept.space.num_layers} layer cells × {concept.space.num_stages} stages"
        cells = [f"`{name}.safetensors`", words, space, concept.notes.get("method", "escdiff"), concept.license or "?"]
        table.append("| " + " | ".join(cells + [f"![{name}]({name}.png)"] * previews) + " |")
    prompt = "a photo of a " + ("<concept>" if len(first.attributes) > 1 else next(iter(first.placeholders())))
    use = USE.format(base=first.base_model, repo=repo, file=f"{next(iter(concepts))}.safetensors", prompt=prompt)
    about = f"Word vectors for the cross-attention layers of {first.base_model} (text encoder {first.text_hash}). "
    return "\n".join([*head, about + "No code, no weights of the model.", "", *table, "", use, ""])


def push_to_hub(
    source: str | os.PathLike, repo: str, private: bool = False, token: str | None = None, message: str | None = None
) -> str:
    """Upload a concept's file, a gallery, or an encoder's folder; returns the commit's address.

    A concept's file gets a card and its preview (`NAME.png` beside it, if there); folders have a card already.

    Raises:
        UserError: no such file or folder, pickles in it, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"there is nothing at '{path}' to push: give a concept's file, a gallery or an encoder's folder"
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = stage(path, Path(scratch), repo) if path.is_file() else path
        bad = [file.name for file in folder.rglob("*") if file.suffix in (".bin", ".ckpt", ".pt", ".pth", ".pkl")]
        if bad:
            raise UserError(f"'{folder}' holds the pickle {bad[0]}; expected safetensors: take it out")
        api = HfApi(token=token)
        try:
            api.create_repo(repo, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message or f"Upload {path.name}")
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the hub refused {repo!r} ({reason}): log in with `hf auth login` and check it") from error
    return str(done.commit_url)


def stage(file: Path, folder: Path, repo: str) -> Path:
    """A folder with a concept's file, its preview and its card."""
    concept, preview = Concept.load(file), file.with_suffix(".png")
    shutil.copy(file, folder / f"{file.stem}.safetensors")
    if preview.is_file():
        shutil.copy(preview, folder / preview.name)
    (folder / "README.md").write_text(concept_card({file.stem: concept}, repo, preview.is_file()))
    return folder
