"""A list of the catalogue pictures of Amazon Berkeley Objects, as `python -m data_prep ingest` reads lists.

    python examples/abo_list.py ABO --out abo.csv

ABO is the folder into which its archives were unpacked: `listings/metadata/listings_*.json.gz`,
`images/metadata/images.csv.gz` and `images/original/` (or `images/small/`). Each picture comes with its product's
kind as the category and the product as the object, so that its other pictures serve as references. Pictures that
several products share, kinds that are no things to look at, and pictures below `--least` pixels are left out.
"""

import argparse
import csv
import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LICENCE = "see Amazon Berkeley Objects' own licence file"
NO_THINGS = ("CELLULAR_PHONE_CASE", "GROCERY", "HEALTH_PERSONAL_CARE", "BOOK")  # flat prints and packages


def lines(path: Path) -> Iterator[str]:
    """The lines of a file that may be compressed."""
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        yield from file


def rows(root: Path, least: int) -> Iterator[tuple[str, str, str, str]]:
    """(path, category, object, licence) of every picture that is there and wanted."""
    folder = next(path for kind in ("original", "small") if (path := root / "images" / kind).is_dir())
    table = next((root / "images" / "metadata").glob("images.csv*"))
    paths = {
        row["image_id"]: folder / row["path"]
        for row in csv.DictReader(lines(table))
        if min(int(row["width"]), int(row["height"])) >= least
    }
    found: dict[str, tuple[str, str]] = {}
    owners: Counter[str] = Counter()
    for path in sorted((root / "listings" / "metadata").glob("listings_*.json*")):
        for product in map(json.loads, lines(path)):
            kind = product.get("product_type", [{}])[0].get("value", "")
            pictures = {product.get("main_image_id"), *product.get("other_image_id", [])} - {None}
            owners.update(pictures)
            if kind and kind not in NO_THINGS:
                found |= {picture: (kind.lower().replace("_", " "), product["item_id"]) for picture in pictures}
    for picture, (category, product) in sorted(found.items()):
        if owners[picture] == 1 and picture in paths and paths[picture].is_file():
            yield str(paths[picture].absolute()), category, product, LICENCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ABO")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--least", type=int, default=256, help="pixels of the shorter side")
    args = parser.parse_args()
    with args.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "category", "object", "licence"))
        count = sum(writer.writerow(row) > 0 for row in rows(args.root, args.least))
    print(f"{args.out}: {count} pictures")


if __name__ == "__main__":
    main()
