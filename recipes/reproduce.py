"""Write the tables of docs/reproduction.md, and model_cards/, from what recipes/evaluate.py measured.

    python recipes/reproduce.py

Every figure in a table comes from a summary.json that lies in docs/reproduction/ under the name of its run, or from the
summary.csv of a training run, or, where the page has the thesis' own, from docs/reproduction/thesis.json.
Written by hand are the page's prose and model_cards/cards.toml.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import timm
from reproduction.cards import results
from reproduction.measured import Json, Measured
from reproduction.tables import tables

from interp_zoo.cards import Results, make_card

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"<!-- table: (.+?) -->\n.*?<!-- end -->", re.DOTALL)


def fill(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with those tables anew that it has a place for.

    Raises:
        ValueError: if it asks for a table that there is not.
        FileNotFoundError: if what one of them is made of is not there.
    """
    if odd := set(TABLE.findall(page)) - set(tables):
        raise ValueError(f"docs/reproduction.md asks for tables that there are not: {', '.join(sorted(odd))}")
    return TABLE.sub(lambda m: f"<!-- table: {m[1]} -->\n{tables[m[1]]()}\n<!-- end -->", page)


def write_page(measured: Measured, page: Path) -> None:
    """Its tables anew."""
    page.write_text(fill(page.read_text(encoding="utf-8"), tables(measured)), "utf-8")


def write_cards(measured: Measured, cards: Json, folder: Path) -> None:
    """Each model's results file and card."""
    for name, told in cards.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(results(measured, name, told), indent=1, ensure_ascii=False) + "\n", "utf-8")
        model = timm.create_model(name, pretrained=True)
        (folder / f"{name}.md").write_text(make_card(model, name, Results.read(file)), "utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """Writes page and cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT, help="where docs/ and model_cards/ are (this repository)")
    root = parser.parse_args(argv).root
    try:
        measured = Measured(root / "docs" / "reproduction")
        write_page(measured, root / "docs" / "reproduction.md")
        cards = tomllib.loads((root / "model_cards" / "cards.toml").read_text(encoding="utf-8"))
        write_cards(measured, cards, root / "model_cards")
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
