"""Other libraries' voices, lowered for the doors."""


def quiet_libraries() -> None:
    """No bars for parts that load in a second, and no advice that a user of ours cannot follow."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
