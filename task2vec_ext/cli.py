"""The command line: ``task2vec demo | embed | distances | info``."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from ._expert_cli import expert
from ._kinds import DistanceKind
from ._library_cli import library, nearest
from ._select_cli import select
from ._terminal import console as _console
from ._terminal import print_table as _print_table
from .fisher import AnyEstimator
from .variational import Noise

if TYPE_CHECKING:
    from .embedding import Embedding

app = typer.Typer(
    help="Turn image data sets into vectors (Task2Vec) and compare them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # one line, or the plain traceback with --debug
    rich_markup_mode=None,
)

# Mistakes in the input or the environment: one line. Anything else is a bug and keeps its traceback.
_EXPECTED = (ValueError, TypeError, NotImplementedError, RuntimeError, OSError, ImportError, MemoryError, OverflowError)
_MATRIX_COLUMNS = 12  # tasks whose whole matrix is still readable in a terminal


def main() -> NoReturn:
    """Run the command line: exit code 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be text that a terminal takes
    try:
        app(arguments, prog_name="task2vec")
    except KeyboardInterrupt:
        sys.exit(130)
    except _EXPECTED as error:
        if debug:
            raise
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        print(f"task2vec: error: {text}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0)


def _print_version(wanted: bool) -> None:
    if wanted:
        from ._native import build_info

        info = build_info()
        cuda = (
            f"CUDA {info.cuda_version} for {', '.join(info.cuda_architectures or ())}"
            if info.cuda_version
            else "no CUDA"
        )
        print(f"task2vec_ext {info.version} ({info.compiler}, {cuda}, OpenMP {info.openmp or 'off'})")
        raise typer.Exit


@app.callback(
    epilog="Every command takes --debug: show the traceback of an error. "
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."
)
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print version and build, and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Hold the options of the program itself."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("task2vec-demo"),
    seed: Annotated[int, typer.Option(help="Seed of pictures and embeddings.")] = 0,
) -> None:
    """See it work: tasks made from real handwriting, photographs and drawings, embedded and compared.

    Needs no network: the pictures come from scikit-learn and from a drawing program, the probe from this package.
    """
    from .demo.run import run_demo
    from .plot import check_installed

    check_installed()
    _check_writable("demo", output)
    console = _console()
    with console.status("drawing the pictures …") as status:
        result = run_demo(output, seed=seed, report=status.update)
    from ._tables import nearest

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


@app.command()
def embed(
    specs: Annotated[
        list[str],
        typer.Argument(
            metavar="SPEC...", help="Folders of class folders, or SOURCE:WHAT such as cub:DIR (see the README)."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the embeddings, one .safetensors per task.")
    ],
    probe: Annotated[
        str, typer.Option(help="tiny (ships with the package), torchvision's (resnet50, vit_b_16, …) or timm:NAME.")
    ] = "resnet34",
    weights: Annotated[
        str | None,
        typer.Option(help="Checkpoint (.safetensors, .pth) or torchvision's name for its weights; default: ImageNet."),
    ] = None,
    pseudo_labels: Annotated[
        int | None,
        typer.Option(min=2, help="Folders of unlabelled pictures: take so many k-means clusters for classes."),
    ] = None,
    estimator: Annotated[
        AnyEstimator, typer.Option(help="How the expectation over labels is taken; variational: the robust Fisher.")
    ] = "signed",
    beta: Annotated[float | None, typer.Option(help="variational: weight of the KL term.")] = None,
    noise: Annotated[Noise | None, typer.Option(help="variational: where the noise is; default: activations.")] = None,
    epochs: Annotated[int | None, typer.Option(help="variational: passes of 10,000 pictures.")] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="At most so many pictures a task; default: all.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Crop in pixels; default: what the weights were trained with.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 …; default: CUDA where there is one.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 32,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Leave out pictures that cannot be read, and count them.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Embed again what is there already.")] = False,
) -> None:
    """Embed tasks: one vector for each, saved in a folder.

    Interrupted work goes on where it stopped: tasks embedded before, with the same settings, are kept.
    """
    from ._pictures import choose_device
    from ._tables import safe_name
    from .data import Tasks, as_task, check_labels, tasks_from
    from .embed import fisher_embed
    from .losses import CrossEntropy, PseudoLabels
    from .probe import load_probe
    from .variational import variational_options

    options = variational_options(estimator, beta=beta, noise=noise, epochs=epochs)
    loss = CrossEntropy() if pseudo_labels is None else PseudoLabels(num_clusters=pseudo_labels)
    if pseudo_labels is None:
        tasks = tasks_from(*specs)
    else:  # folders of pictures alone
        folders = [as_task(path, target=loss.target) for path in specs]
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
        "loss": loss.options(),
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
    done = []
    for task, file in zip(tasks, files, strict=True):
        if file in kept:
            done.append(kept[file])
            continue
        embedding = fisher_embed(
            task,
            net,
            loss=loss,
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
    _print_table(console, ("task", "classes", "pictures", "skipped", "head", "norm", "file"), rows)


@app.command()
def distances(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of embeddings (.safetensors).")],
    kind: Annotated[
        DistanceKind, typer.Option(help="Which distance; sym is the paper's d_sym, asym its d_asym.")
    ] = "sym",
    alpha: Annotated[float, typer.Option(help="Weight of the trivial task in asym and asym_scaled.")] = 0.15,
    csv: Annotated[Path | None, typer.Option(help="Write the matrix to this CSV file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the clustered matrix to this file (.png, .svg, .pdf).")] = None,
) -> None:
    """Compare embeddings: each task's nearest one, the matrix as CSV, the clustered matrix as a picture."""
    from ._tables import nearest, write_matrix
    from .distance import distance_matrix
    from .embedding import Embedding

    files = sorted(folder.glob("*.safetensors"))
    if len(files) < 2:
        raise ValueError(f"distances: expected two or more embeddings (*.safetensors) in {folder}, found {len(files)}.")
    embeddings = [Embedding.load(file) for file in files]
    names = [e.name or file.stem for e, file in zip(embeddings, files, strict=True)]
    if png is not None:
        from .plot import check_installed

        check_installed()
    matrix = distance_matrix(embeddings, kind, alpha=alpha)
    if csv is not None:
        write_matrix(csv, names, matrix)
    if png is not None:
        from .plot import plot_matrix, save_figure

        save_figure(plot_matrix(matrix, names, title=f"Distance between tasks ({kind})"), png)
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
    for what, path in (("matrix", csv), ("picture", png)):
        if path is not None:
            print(f"{what:>8}: {path}")


@app.command()
def info(file: Annotated[Path, typer.Argument(metavar="FILE", help="An embedding (.safetensors).")]) -> None:
    """Print what an embedding is and how it was made."""
    from .embedding import Embedding
    from .uncertainty import norm_with_error, relative_error

    embedding = Embedding.load(file)
    print(embedding)
    sure = {}
    if embedding.group_means is not None:
        low, high = (float(end) for end in norm_with_error(embedding).interval())
        sure = {"norm, 95 %": f"{low:.4g} to {high:.4g}", "relative error": f"{relative_error(embedding):.1%}"}
    rows = {
        "classes": ", ".join(embedding.classes) if embedding.classes else str(embedding.head.num_outputs),
        "pictures": f"{embedding.num_samples:,} ({embedding.num_skipped} skipped)",
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


app.command()(nearest)
app.add_typer(library, name="library")
app.add_typer(select, name="select")
app.add_typer(expert, name="expert")


def _kept(file: Path, probe: Any, task: Any, settings: dict[str, Any]) -> Embedding:
    """Return the embedding of an earlier run if it is of this task with these settings, or raise."""
    from .embedding import Embedding
    from .head import DEFAULT_L2

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
    what = ", ".join("pictures" if key == "task_digest" else key for key in differences)
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


if __name__ == "__main__":
    main()
