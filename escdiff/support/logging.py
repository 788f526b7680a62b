"""Other libraries' voices, lowered for the doors."""

import warnings

# Lightning's: of its own code, and of streams with a length, which here is exact for any number of workers.
NOT_FOR_USERS = (r"`isinstance\(treespec, LeafSpec\)` is deprecated", r"Your `IterableDataset` has `__len__` defined")


def quiet_libraries() -> None:
    """No bars for parts that load in a second, and no advice that a user of ours cannot follow."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
