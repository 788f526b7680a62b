"""ESCDiff: one reference image in, shape and appearance out, in one forward pass."""

__version__ = "0.1.0"

# What users of diffusers' own pipelines need; imported when asked for, since torch and diffusers take seconds.
_LAZY = {
    "load_concept": "escdiff.pipelines.load_concept",
    "unload_concept": "escdiff.pipelines.load_concept",
    "load_branches": "escdiff.pipelines.escdiff_pipeline",
    "weighted": "escdiff.pipelines.weighting",
    "controlled": "escdiff.control",
    "ESCDiffPipeline": "escdiff.pipelines.escdiff_pipeline",
    "ESCDiffXLPipeline": "escdiff.pipelines.escdiff_pipeline",
    "Concept": "escdiff.concept",
    "ConceptEncoder": "escdiff.encoder",
    "load_backbone": "escdiff.backbone",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'escdiff' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
