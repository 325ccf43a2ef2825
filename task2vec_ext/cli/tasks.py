"""``task2vec demo | embed | distances | info``: tasks and their embeddings."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._util.terminal import console as _console
from .._util.terminal import print_table as _print_table
from ..distance.rules import DistanceName
from .options import (
    BatchSize,
    Beta,
    Device,
    Epochs,
    Estimator,
    ImageSize,
    Loss,
    NoiseOn,
    NumSamples,
    NumWorkers,
    ProbeName,
    Seed,
    SkipUnreadable,
    Specs,
    Weights,
)

if TYPE_CHECKING:
    from ..embedding import Embedding

_MATRIX_COLUMNS = 12  # tasks whose whole matrix is still readable in a terminal


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("task2vec-demo"),
    seed: Annotated[int, typer.Option(help="Seed of images and embeddings.")] = 0,
) -> None:
    """See it work: tasks made from real handwriting, photographs and drawings, embedded and compared.

    Needs no network: the images come from scikit-learn and from a drawing program, the probe from this package.
    """
    from ..demo.run import run_demo
    from ..plot import check_installed

    check_installed()
    _check_writable("demo", output)
    console = _console()
    with console.status("drawing the images …") as status:
        result = run_demo(output, seed=seed, report=status.update)
    from .._util.tables import nearest

    rows = [
        (
            e.name,
            str(task.family),
            str(e.head.num_outputs),
            f"{e.head.score:.0%}",
            f"{e.norm:.3g}",
            result.tasks[other].name,
            f"{distance:.3f}",
        )
        for task, e, (other, distance) in zip(result.tasks, result.embeddings, nearest(result.distances), strict=True)
    ]
    _print_table(console, ("task", "family", "classes", "head", "norm", "nearest task", "distance"), rows)
    own = sum(
        task.family == result.tasks[other].family
        for task, (other, _) in zip(result.tasks, nearest(result.distances), strict=True)
    )
    console.print(
        f"\n{own} of {len(rows)} tasks have their nearest neighbour in their own family. ({result.seconds:.0f} s)"
    )
    for what, path in result.files.items():
        print(f"{what:>10}: {path}")
    print(f"Open {result.files['atlas'].resolve().as_uri()} in a browser to look around.")


def embed(
    specs: Specs,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the embeddings, one .safetensors per task.")
    ],
    probe: ProbeName = "resnet34",
    weights: Weights = None,
    pseudo_labels: Annotated[
        int | None,
        typer.Option(min=2, help="Folders of unlabelled images: take so many k-means clusters for classes."),
    ] = None,
    loss: Loss = "cross_entropy",
    estimator: Estimator = "signed",
    beta: Beta = None,
    noise: NoiseOn = None,
    epochs: Epochs = None,
    num_samples: NumSamples = None,
    image_size: ImageSize = None,
    device: Device = None,
    batch_size: BatchSize = 32,
    num_workers: NumWorkers = 0,
    seed: Seed = 0,
    skip_unreadable: SkipUnreadable = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Embed again what is there already.")] = False,
) -> None:
    """Embed tasks: one vector for each, saved in a folder.

    Interrupted work goes on where it stopped: tasks embedded before, with the same settings, are kept.
    """
    from .._util.tables import safe_name
    from ..data import Tasks, as_task, check_labels, tasks_from
    from ..embed.feature_cache import FeatureCache
    from ..embed.fisher_embed import fisher_embed
    from ..fisher.variational import variational_options
    from ..losses import PseudoLabels, as_loss
    from ..probe.feed import choose_device
    from ..probe.probe import load_probe

    options = variational_options(estimator, beta=beta, noise=noise, epochs=epochs)
    if pseudo_labels is not None and loss != "cross_entropy":
        raise ValueError(f"embed: expected either --pseudo-labels or --loss {loss}, got both.")
    target = as_loss(loss) if pseudo_labels is None else PseudoLabels(num_clusters=pseudo_labels)
    if pseudo_labels is None:
        tasks = tasks_from(*specs)
    else:  # folders of images alone
        folders = [as_task(path, target=target.target) for path in specs]
        tasks = Tasks([task.name for task in folders], folders.__getitem__)
    files = [output / f"{safe_name(name)}.safetensors" for name in tasks.names]
    for file in files:
        twins = [name for name, other in zip(tasks.names, files, strict=True) if other == file]
        if len(twins) > 1:
            raise ValueError(f"embed: expected folders of different names, got {twins}, all {file.name}; rename them.")
    for task in tasks:
        if task.labels is not None:
            check_labels(task.labels, who=f"embed: {task.name}")
    net = load_probe(probe, weights=weights, image_size=image_size)
    place = choose_device(net.module, device, owned=True)  # nobody else has this probe
    _check_writable("embed", output)
    # All of them before the first is embedded: a file that does not fit should cost no work.
    settings = {
        "loss": target.options(),
        "estimator": estimator,
        "seed": seed,
        "num_samples": num_samples,
        "variational": None if options is None else asdict(options),
    }
    kept = {
        file: _kept(file, net, task, settings)
        for task, file in zip(tasks, files, strict=True)
        if file.exists() and not overwrite
    }
    done, cache = [], FeatureCache()
    for task, file in zip(tasks, files, strict=True):
        if file in kept:
            done.append(kept[file])
            continue
        embedding = fisher_embed(
            task,
            net,
            loss=target,
            estimator=estimator,
            beta=beta,
            noise=noise,
            epochs=epochs,
            num_samples=num_samples,
            device=place,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
            on_error="skip" if skip_unreadable else "raise",
            feature_cache=cache,
        )
        embedding.save(file)
        done.append(embedding)
    console = _console()
    rows = [
        (
            e.name,
            str(e.head.num_outputs),
            f"{e.num_samples:,}",
            str(e.num_skipped),
            f"{e.head.score:.1%}",
            f"{e.norm:.4g}",
            str(file),
        )
        for e, file in zip(done, files, strict=True)
    ]
    _print_table(console, ("task", "classes", "images", "skipped", "head", "norm", "file"), rows)


def distances(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of embeddings (.safetensors).")],
    distance: Annotated[
        DistanceName, typer.Option(help="Which distance; sym is the paper's d_sym, asym its d_asym.")
    ] = "sym",
    alpha: Annotated[float, typer.Option(help="Weight of the trivial task in asym and asym_scaled.")] = 0.15,
    csv: Annotated[Path | None, typer.Option(help="Write the matrix to this CSV file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the clustered matrix to this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Compare embeddings: each task's nearest one, the matrix as CSV, the clustered matrix as an image."""
    from .._util.tables import nearest, write_matrix
    from ..distance.distance import distance_matrix
    from ..embedding import Embedding

    files = sorted(folder.glob("*.safetensors"))
    if len(files) < 2:
        raise ValueError(f"distances: expected two or more embeddings (*.safetensors) in {folder}, found {len(files)}.")
    embeddings = [Embedding.load(file) for file in files]
    names = [e.name or file.stem for e, file in zip(embeddings, files, strict=True)]
    if png is not None:
        from ..plot import check_installed

        check_installed()
    matrix = distance_matrix(embeddings, distance, alpha=alpha)
    if csv is not None:
        write_matrix(csv, names, matrix)
    if png is not None:
        from ..plot import plot_matrix, save_figure

        save_figure(plot_matrix(matrix, names, title=f"Distance between tasks ({distance})"), png)
    console = _console()
    pairs = nearest(matrix)
    if len(names) <= _MATRIX_COLUMNS:
        columns = ("", *(str(number) for number in range(1, len(names) + 1)))
        rows = [
            (f"{i}  {name}", *(f"{d:.3f}" for d in row))
            for i, (name, row) in enumerate(zip(names, matrix.tolist(), strict=True), 1)
        ]
    else:
        columns = ("task", "nearest task", "distance")
        rows = [(name, names[other], f"{distance:.4f}") for name, (other, distance) in zip(names, pairs, strict=True)]
    _print_table(console, columns, rows)
    for what, path in (("matrix", csv), ("image", png)):
        if path is not None:
            print(f"{what:>8}: {path}")


def info(file: Annotated[Path, typer.Argument(metavar="FILE", help="An embedding (.safetensors).")]) -> None:
    """Print what an embedding is and how it was made."""
    from ..distance.uncertainty import norm_with_error, relative_error
    from ..embedding import Embedding

    embedding = Embedding.load(file)
    print(embedding)
    sure = {}
    if embedding.group_means is not None:
        low, high = (float(end) for end in norm_with_error(embedding).interval())
        sure = {"norm, 95 %": f"{low:.4g} to {high:.4g}", "relative error": f"{relative_error(embedding):.1%}"}
    rows = {
        "classes": ", ".join(embedding.classes) if embedding.classes else str(embedding.head.num_outputs),
        "images": f"{embedding.num_samples:,} ({embedding.num_skipped} skipped)",
        "norm": f"{embedding.norm:.6g} nats² per weight²",
        **sure,
        "probe": f"{embedding.probe.name} {embedding.probe.weights}, fingerprint {embedding.probe.fingerprint[:16]}",
        **{f"head {key}": str(value) for key, value in asdict(embedding.head).items()},
        **{key: str(value) for key, value in embedding.recipe.items()},
    }
    for key, value in rows.items():
        print(f"{key:>20}: {value}")
    print(f"{'layers':>20}: {len(embedding.layers)}")
    for layer in embedding.layers:
        mean = float(embedding.layer(layer.name).mean())
        print(f"{'':>20}  {layer.name:<28} {layer.kind:<9} {layer.stop - layer.start:>5} filters  mean F {mean:.3e}")


def _kept(file: Path, probe: Any, task: Any, settings: dict[str, Any]) -> Embedding:
    """Return the embedding of an earlier run if it is of this task with these settings, or raise."""
    from ..embedding import Embedding
    from ..fisher.head import DEFAULT_L2

    embedding = Embedding.load(file)
    wanted = {
        **settings,
        "probe": probe.fingerprint,
        "preprocess": None if probe.preprocess is None else probe.preprocess.to_dict(),
        "task_digest": task.digest(),
        "layers": None,
        "include_batchnorm": False,
        "rel_error": None,
        "head": ("lbfgs", DEFAULT_L2["lbfgs"], False),
    }
    head = embedding.head
    found = {
        "loss": {"name": "cross_entropy"},  # the only one when files did not say
        **embedding.recipe,
        "probe": embedding.probe.fingerprint,
        "head": (head.method, head.l2, head.class_balanced),
    }
    differences = [key for key, value in wanted.items() if found.get(key) != value]
    if not differences:
        return embedding
    what = ", ".join("images" if key == "task_digest" else key for key in differences)
    raise ValueError(
        f"embed: {file} is there already, made with other settings ({what}); pass --overwrite, or another --output."
    )


def _check_writable(who: str, folder: Path) -> None:
    """Find out now, not after the first hour."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise OSError(f"{who}: cannot write into {folder} ({error.strerror}); choose another --output.") from error
