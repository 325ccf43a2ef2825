"""Draws the plots of docs/gallery from a library.

    python docs/gallery.py LIBRARY [--data DIR] [-o docs/gallery]

--data DIR, a folder of real tasks (see benchmarks/README.md) with taxonomy/taxonomy.csv, adds the taxonomic plot of the
tasks whose classes are of one order. No plot contains an image of a task.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import tempfile
from pathlib import Path

from task2vec_ext import Library, distance_matrix
from task2vec_ext.atlas import write_atlas
from task2vec_ext.plot import (
    Lineages,
    plot_layers,
    plot_map,
    plot_matrix,
    plot_norms,
    plot_taxonomy,
    save_figure,
    taxonomic_distances,
)

RANKS = ("kingdom", "phylum", "class", "order", "family")
DISTANCE = "sym_scaled"
"""The nearest task is of the same domain more often than with plain d_sym."""
PHYLA = {"Tracheophyta": "Magnoliophyta"}  # the table's sources use two names for the phylum of flowering plants
LAYERS_OF = ("mnist", "cub_family_tyrannidae")


def main() -> None:
    """Draw everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "gallery")
    options = parser.parse_args()
    library = Library(options.library)
    names = [entry.name for entry in library.entries() if entry.state == "done"]
    embeddings = [library.embedding(name) for name in names]
    domains = [str(e.metadata["domain"]) for e in embeddings]
    distances = distance_matrix(embeddings, DISTANCE)
    options.output.mkdir(parents=True, exist_ok=True)

    def save(name: str, ax) -> None:
        save_figure(ax, options.output / f"{name}.png")
        print(options.output / f"{name}.png")

    title = f"{len(names)} real tasks, {embeddings[0].probe.name}, d_sym of unit-mean embeddings"
    save("matrix", plot_matrix(distances, names, groups=domains, title=title))
    save("map", plot_map(distances, names, groups=domains, title=title))
    save("norms", plot_norms(embeddings, groups=domains))
    if set(LAYERS_OF) <= set(names):
        save("layers", plot_layers([embeddings[names.index(name)] for name in LAYERS_OF]))
    if options.data is not None:
        lineages = lineages_of(options.data)
        placed = [i for i, name in enumerate(names) if name in lineages]
        steps = taxonomic_distances([lineages[names[i]] for i in placed], RANKS)
        title = f"{len(placed)} tasks of living things, each of one order"
        save("taxonomy", plot_taxonomy(distances[placed][:, placed], steps, ranks=RANKS, title=title))
    save_screenshots(embeddings, options.output)


def lineages_of(data: Path) -> dict[str, Lineages]:
    """Return the lineages of the classes of each task that is of one order."""
    with (data / "taxonomy" / "taxonomy.csv").open(encoding="utf-8", newline="") as lines:
        taxa = {
            (row["dataset"].removeprefix("small/"), row["folder"]): {
                "kingdom": row["kingdom"],
                "phylum": PHYLA.get(row["phylum"], row["phylum"]),
                "class": row["klass"],
                "order": row["order"],
                "family": row["family"],
            }
            for row in csv.DictReader(lines)
        }
    found = {}
    for task in json.loads((data / "tasks.json").read_text(encoding="utf-8")):
        classes = set()
        for file in (file for files in task["classes"].values() for file in files):
            _, source, *folder, _ = file.split("/")  # images/SET/CLASS/FILE, where CLASS may be a path
            classes.add((source, "/".join(folder)))
        lineages = [{rank: name for rank, name in taxa.get(one, {}).items() if name} for one in sorted(classes)]
        if all("order" in lineage for lineage in lineages) and len({lineage["order"] for lineage in lineages}) == 1:
            found[task["name"]] = lineages
    return found


def save_screenshots(embeddings, folder: Path) -> None:
    """Save screenshots of the atlas, without images of the tasks, if playwright and chromium are installed."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("no screenshots of the atlas: they need playwright and chromium")
        return
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        url = write_atlas(embeddings, place, distance=DISTANCE, title="Real tasks").as_uri()
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
            page.goto(url)
            page.fill("#search", "parulidae")
            page.keyboard.press("Enter")
            page.screenshot(path=folder / f"atlas-{scheme}.png")
            print(folder / f"atlas-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    main()
