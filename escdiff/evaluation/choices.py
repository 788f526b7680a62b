"""Options that name some of a table's rows."""

from collections.abc import Collection

from escdiff.support.errors import UserError


def choose(option: str, names: str, table: Collection[str]) -> list[str]:
    """The names that a command's option gives: "all", or a list with commas, in that order.

    Raises:
        UserError: one that the table lacks, or none.
    """
    chosen = list(table) if names == "all" else [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in table]
    if unknown or not chosen:
        problem = f"{option} names {', '.join(unknown)}" if unknown else f"{option} is empty"
        raise UserError(f"{problem}; give some of {', '.join(table)}, or all")
    return chosen
