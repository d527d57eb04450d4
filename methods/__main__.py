"""`python -m methods`: list, run, compare, standard, table, count, experiment, claims, sample."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from kb.cards import command
from methods import registry

if TYPE_CHECKING:  # torch takes seconds to import: only commands that compute load it
    from kb.results import Table
    from methods.harness.run import Protocol

app = typer.Typer(
    help="Pruning methods for diffusion models, run and compared fairly.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "build" / "results"  # what `run` writes, unless it is told where
FAILURE, BAD_USAGE, INTERRUPTED = 1, 2, 130
_TRACEBACK = "METHODS_TRACEBACK"
_WIDE = 176  # columns of a table that is printed into a file or a pipe

T = TypeVar("T", int, float)
JsonOption = Annotated[bool, typer.Option("--json", help="JSON on standard output")]
TaskOption = Annotated[str, typer.Option("--task", help="what the model does")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="METHOD.KEY=VALUE", help="repeatable")
]
ModelOption = Annotated[
    str | None, typer.Option(help="model folder or hub id in place of the task's base")
]
OutOption = Annotated[Path | None, typer.Option(help="folder for everything that is written")]
SamplesOption = Annotated[int | None, typer.Option(help="images a quality figure is made from")]
StepsOption = Annotated[int | None, typer.Option(help="sampling steps")]
ReferenceOption = Annotated[int | None, typer.Option(help="held-out images to compare with")]
PrecisionOption = Annotated[str | None, typer.Option(help="bf16 or fp32, to sample and time in")]
DeviceOption = Annotated[str, typer.Option(help="cpu or cuda")]
LatencyDeviceOption = Annotated[
    str | None, typer.Option(help="cpu or cuda, to time on; as --device if left out")
]


@app.command("list")
def list_methods(as_json: JsonOption = False) -> None:
    """Every method with its paper, granularity, tasks and settings."""
    with usage_errors():
        found = registry.methods()
    if as_json:
        emit([_method_json(method) for method in found])
        return
    table = RichTable(box=None, pad_edge=False)
    for column in ("method", "paper", "granularity", "tasks", "what it does"):
        table.add_column(column, no_wrap=column == "method")
    for method in found:
        card = method.card
        words = (card.get("paper"), card.get("granularity"), ", ".join(card["tasks"]))
        table.add_row(method.label, *(word or "–" for word in words), method.describes)
    console().print(table)


@app.command()
def run(
    methods: Annotated[list[str], typer.Argument(help="a recipe: methods in order")],
    task: TaskOption,
    seed: Annotated[int, typer.Option(help="drives all noise, batches and scores")] = 0,
    assignments: SetOption = None,
    model: ModelOption = None,
    out: OutOption = None,
    resume: Annotated[bool, typer.Option(help="keep a whole result that is there")] = False,
    samples: SamplesOption = None,
    steps: StepsOption = None,
    reference: ReferenceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
    latency_device: LatencyDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a recipe, measure it, write one result and one loadable model.

    Both go to build/results/TASK/RECIPE/SEED, or to --out; committed results are left alone.
    """
    with usage_errors():
        recipe = registry.build_recipe(methods, assignments or [])
        registry.check_task(task, methods)
    from kb import results
    from methods.harness import run as harness

    with usage_errors():
        check_device(device, latency_device)
        protocol, _ = _protocol(samples, steps, reference, precision, latency_device=latency_device)
    folder = out if out is not None else harness.run_folder(RUN, task, recipe, seed)
    path = folder / "result.json"
    say(f"{registry.slug(recipe)} on {task}, seed {seed}")
    bench = harness.Bench(task, protocol, model=model, device=device, report=say)
    record = None
    if resume and path.exists():
        try:
            record = harness.read_record(path)
            if not harness.is_current(record, bench, recipe, seed):
                say(f"{shown(path)} answers another question; it is run again")
                record = None
        except ValueError as error:
            say(f"{error}")
    if record is None:
        record = bench.run(recipe, seed, folder)
        harness.write_record(path, record)
    say(f"result: {shown(path)}; model: {shown(folder / 'model')}")
    if as_json:
        emit(record)
    else:
        show(results.tabulate([results.Record.model_validate(record)]))


@app.command()
def compare(
    task: TaskOption,
    methods: Annotated[str | None, typer.Option(help="comma-separated")] = None,
    macs: Annotated[str | None, typer.Option(help="MACs left: 0.75,0.5")] = None,
    params: Annotated[
        str | None, typer.Option(help="parameters left, of layers, heads and neurons: 0.75,0.5")
    ] = None,
    ratios: Annotated[str | None, typer.Option(help="channels removed: 0.3,0.5")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0",
    finetune_steps: Annotated[str, typer.Option(help="optimizer steps: 0,150")] = "0",
    recovery: Annotated[str, typer.Option(help="finetune or distill")] = "finetune",
    assignments: SetOption = None,
    model: ModelOption = None,
    out: OutOption = None,
    quick: Annotated[bool, typer.Option(help="the few minutes of `make compare`")] = False,
    samples: SamplesOption = None,
    steps: StepsOption = None,
    reference: ReferenceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
    latency_device: LatencyDeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run methods at several sizes and seeds; what is on disk already is not run again.

    All goes to build/comparison, or to --out; committed results are left alone.
    """
    with usage_errors():
        if quick and (macs or params or ratios or methods or seeds != "0" or finetune_steps != "0"):
            raise ValueError("--quick fixes methods, sizes, seeds and retraining: leave them out")
        if not quick and methods is None:
            raise ValueError(f"--methods: name some of {', '.join(registry.names())}")
        names = tuple((methods or "").split(",")) if methods else ()
        registry.check_task(task, names)
        sizes = (
            numbers("--macs", macs, float),
            numbers("--params", params, float),
            numbers("--ratios", ratios, float),
        )
        seed_list = numbers("--seeds", seeds, int)
        budgets = numbers("--finetune-steps", finetune_steps, int)
    from methods.harness import compare as harness
    from methods.harness.run import Bench

    with usage_errors():
        check_device(device, latency_device)
        protocol, _ = _protocol(
            samples, steps, reference, precision, latency_device=latency_device, quick=quick
        )
        sweep = (
            harness.quick_sweep(task)
            if quick
            else harness.Sweep(
                task, names, *sizes, seed_list, budgets, recovery, tuple(assignments or ())
            )
        )
        if quick and assignments:
            raise ValueError("--quick fixes the settings: leave --set out")
        sweep.recipes()
    places = harness.Places.under(out or (harness.QUICK if quick else harness.COMPARISON))
    with progress(quiet=as_json) as (moved, said):
        bench = Bench(task, protocol, model=model, device=device, report=said)
        outcome = harness.run_sweep(bench, sweep, places, same_code=quick, progress=moved, warn=say)
    table = harness.sweep_table(sweep, places)
    committed = _committed(task) if model is None else None
    harness.write_report(sweep, places, table, outcome.failures, committed=committed)
    say(f"{outcome.done} measured, {outcome.skipped} kept, {len(outcome.failures)} failed")
    if as_json:
        emit(table)
    else:
        show(table)
        if committed is not None:
            console().print("\nCommitted results (not measured now):\n")
            show(committed)
    say(f"report: {shown(places.report / 'report.html')}")
    if outcome.failures:
        slug, seed, reason = outcome.failures[0]
        stop(f"{len(outcome.failures)} runs failed, the first {slug}, seed {seed}: {reason}")


@app.command("standard")
def standard_comparison(
    task: TaskOption,
    methods: Annotated[str | None, typer.Option(help="comma-separated; all if left out")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    device: DeviceOption = "cpu",
    latency_device: LatencyDeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """The comparison that is committed: runs what is missing; the whole draws its pictures too."""
    with usage_errors():
        seed_list = numbers("--seeds", seeds, int)
        registry.check_task(task, [])
    from kb import results
    from methods.harness import compare as harness
    from methods.harness import report
    from methods.harness.run import RESULTS, RUNS, Bench

    with usage_errors():
        check_device(device, latency_device)
        protocol, standard = _protocol(None, None, None, None, latency_device=latency_device)
        if not standard:
            raise ValueError(
                "the committed comparison is drawn in bf16, which this CPU does not compute with: "
                "give --device cuda, or compare apart with `python -m methods compare`"
            )
        sweeps = harness.standard_sweeps(task, seed_list, methods.split(",") if methods else ())
    places = harness.Places.standard()
    with progress(quiet=as_json) as (moved, said):
        bench = Bench(task, protocol, device=device, report=said)
        outcomes = [
            harness.run_sweep(bench, sweep, places, progress=moved, warn=say) for sweep in sweeps
        ]
    data = results.table(task)
    if not methods:
        images = harness.kept_images(data, RUNS, harness.STANDARD_SEEDS[0])
        for path in report.draw_committed(data, images, RESULTS / task):
            say(f"drew {shown(path)}")
    if as_json:
        emit(data)
    else:
        show(data)
    done, kept = (sum(getattr(o, key) for o in outcomes) for key in ("done", "skipped"))
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    say(f"{done} measured, {kept} kept, {len(failures)} failed; next: scripts/render.py")
    if failures:
        slug, seed, reason = failures[0]
        stop(f"{len(failures)} runs failed, the first {slug}, seed {seed}: {reason}")


@app.command()
def table(
    task: TaskOption,
    as_json: JsonOption = False,
    markdown: Annotated[bool, typer.Option(help="as Markdown")] = False,
) -> None:
    """The table of the committed results."""
    from kb import results

    with usage_errors():
        known = set(registry.tasks()) | set(results.tasks())
        if task not in known:
            raise ValueError(registry.unknown(f"task {task!r}", task, sorted(known)))
    data = results.table(task)
    if as_json:
        emit(data)
    elif markdown:
        sys.stdout.write(results.markdown(data))
    else:
        show(data)


@app.command()
def count(
    model: Annotated[str, typer.Argument(help="a published architecture, such as ddpm_cifar10")],
    as_json: JsonOption = False,
) -> None:
    """Parameters and MACs of a true architecture, without weights."""
    from methods.harness import measure, zoo

    with usage_errors():
        if model not in zoo.ARCHITECTURES:
            raise ValueError(registry.unknown(f"model {model!r}", model, zoo.ARCHITECTURES))
    architecture = zoo.ARCHITECTURES[model]
    denoiser, inputs = architecture.on_meta()
    macs = measure.count_macs(denoiser, inputs)
    found = {
        "model": model,
        "describes": architecture.describes,
        "params": measure.count_params(denoiser),
        "macs": macs.conv_linear,
        "macs_with_attention": macs.total,
    }
    if as_json:
        emit(found)
        return
    console().print(f"{model}: {architecture.describes}", highlight=False)
    for key in ("params", "macs", "macs_with_attention"):
        console().print(f"{key:20} {found[key]:>18,}", highlight=False)


@app.command()
def experiment(
    name: Annotated[str | None, typer.Argument(help="left out: list them all")] = None,
    seeds: Annotated[str, typer.Option(help="comma-separated")] = "0,1,2",
    assignments: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON to write in place of the committed record")
    ] = None,
    samples: SamplesOption = None,
    steps: StepsOption = None,
    reference: ReferenceOption = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
    as_json: JsonOption = False,
) -> None:
    """Put one of the questions of methods/experiments to the test."""
    if name is None:
        _list_experiments(as_json)
        return
    with usage_errors():
        described = registry.describe_experiment(name)
        settings = registry.experiment_settings(described, assignments or [])
        seed_list = numbers("--seeds", seeds, int)
    from kb import results
    from methods.harness import experiment as harness

    with usage_errors():
        check_device(device)
        protocol, standard = _protocol(samples, steps, reference, precision)
    usual = settings == described.defaults and seed_list == harness.Lab().seeds
    if out is None and not (standard and usual):
        out = ROOT / "build" / "experiments" / f"{name}.json"
    say(f"{name}: {described.describes}")
    lab = harness.Lab(seed_list, device, protocol, say)
    record = harness.investigate(name, lab, settings)
    path = harness.write(record, out)
    if as_json:
        emit(record)
    else:
        found = results.Experiment.model_validate(record)
        shape = RichTable(box=None, pad_edge=False)
        for index, column in enumerate(found.columns):
            shape.add_column(column.label, justify="right" if index else "left")
        for row in found.cells():
            shape.add_row(*row)
        console().print(shape, highlight=False, markup=False)
        for line in (f"bar: {found.bar}", f"{found.verdict}: {found.answer}", found.why):
            if line:
                console().print(line, highlight=False, markup=False)
    say(f"record: {shown(path)}")


def _list_experiments(as_json: bool) -> None:
    with usage_errors():
        found = [registry.describe_experiment(name) for name in registry.experiment_names()]
    if as_json:
        emit([{"name": e.name, "question": e.describes, **e.card} for e in found])
        return
    shape = RichTable(box=None, pad_edge=False)
    for column in ("experiment", "methods", "task", "question"):
        shape.add_column(column, no_wrap=column == "experiment")
    for e in found:
        methods = ", ".join(e.card["methods"])
        shape.add_row(e.name, methods, e.card["task"] or "–", e.describes)
    console().print(shape)


@app.command()
def claims(as_json: JsonOption = False) -> None:
    """Claims of papers.yaml about parameters and MACs, recomputed from the architectures."""
    from kb.load import Unreadable, load_literature
    from methods.harness import claims as ledger

    with usage_errors():
        try:
            literature = load_literature(ROOT / "papers.yaml")
        except Unreadable as error:
            raise ValueError(str(error.problem)) from error
    found = ledger.claims(literature)
    if as_json:
        emit([claim.as_json() for claim in found])
        return
    shown = RichTable(box=None, pad_edge=False)
    for column in ("paper", "row", "what", "claimed", "recomputed", "verdict", "assumption"):
        shown.add_column(column, no_wrap=column != "assumption")
    for claim in found:
        recomputed = "-" if claim.recomputed is None else f"{claim.recomputed:g} {claim.unit}"
        shown.add_row(
            claim.paper,
            claim.row,
            f"{claim.what} {claim.metric}",
            f"{claim.claimed:g} {claim.unit}",
            recomputed,
            claim.verdict,
            claim.assumption,
        )
    console().print(shown)
    counts = ", ".join(f"{n} {verdict}" for verdict, n in ledger.summary(found).items())
    console().print(f"{len(found)} claims: {counts}", highlight=False)


@app.command()
def sample(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="a saved or pruned model")],
    out: Annotated[Path, typer.Option(help="PNG to write")],
    prompt: Annotated[
        str | None, typer.Option(help="what to draw, for a model that can be asked")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=10_000, help="images")] = 64,
    seed: Annotated[int, typer.Option()] = 0,
    steps: StepsOption = None,
    guidance: Annotated[
        float | None, typer.Option(help="weight w of the prompt; the model's own if left out")
    ] = None,
    precision: PrecisionOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Draw a grid of images from a saved model; without a prompt, of all that can be asked for."""
    import torch

    from methods.harness.checkpoint import load_base
    from methods.harness.prompts import asked
    from methods.harness.run import default_precision
    from methods.harness.sample import DTYPES, write_grid
    from methods.harness.sample import sample as draw

    chosen = precision or default_precision()
    with usage_errors():
        check_device(device)
        if chosen not in DTYPES:
            raise ValueError(f"--precision is bf16 or fp32, not {chosen!r}")
    pipe = load_base(folder).to(device)
    config: Any = pipe.denoiser.config
    shape = (count, config.in_channels, config.sample_size, config.sample_size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    with usage_errors():
        pipe, rows = asked(pipe, prompt, count)
        images = draw(
            pipe,
            noise,
            steps,
            rows=rows,
            guidance=guidance,
            precision=chosen,  # type: ignore[arg-type]
        )
    write_grid(out, images, columns=max(1, round(count**0.5)))
    say(f"{count} images: {shown(out)}")


# --- shared ----------------------------------------------------------------------------------


def _protocol(
    samples: int | None,
    steps: int | None,
    reference: int | None,
    precision: str | None,
    *,
    latency_device: str | None = None,
    quick: bool = False,
) -> tuple[Protocol, bool]:
    """The protocol asked for, and whether it is the one of the committed results."""
    from dataclasses import replace

    from methods.harness.compare import quick_protocol
    from methods.harness.run import Protocol, default_precision

    chosen = precision or default_precision()
    protocol = quick_protocol(chosen) if quick else Protocol(precision=chosen)
    protocol = replace(
        protocol,
        samples=protocol.samples if samples is None else samples,
        steps=protocol.steps if steps is None else steps,
        reference=protocol.reference if reference is None else reference,
        latency_device=latency_device,
    )
    return protocol, protocol == Protocol()


def _committed(task: str) -> Table | None:
    from kb import results

    return results.table(task) if task in results.tasks() else None


def _method_json(method: registry.Method) -> dict[str, Any]:
    settings = [
        {
            "name": setting.name,
            "type": setting.kind,
            "default": setting.default,
            "accepts": setting.accepts,
            "comment": setting.comment,
        }
        for setting in method.settings
    ]
    return {
        "name": method.name,
        "describes": method.describes,
        **method.card,
        "command": command(method.name, method.card),
        "settings": settings,
    }


def numbers(option: str, text: str | None, kind: Callable[[str], T]) -> tuple[T, ...]:
    """Comma-separated numbers; ValueError naming the option."""
    if text is None:
        return ()
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{option}: comma-separated {what}, not {text!r}") from None


def check_device(device: str, latency_device: str | None = None) -> None:
    """Raise ValueError for a device that torch cannot use here."""
    import torch

    for option, name in (("--device", device), ("--latency-device", latency_device or device)):
        if name.split(":")[0] not in ("cpu", "cuda"):
            raise ValueError(f"{option} is cpu or cuda, not {name!r}")
        if name.startswith("cuda") and not torch.cuda.is_available():
            raise ValueError(f"{option} {name}: torch sees no CUDA device here")


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for a table in a pipe."""
    return Console(width=None if sys.stdout.isatty() else _WIDE)


def say(message: str) -> None:
    """One line of progress, on standard error."""
    print(one_line(message), file=sys.stderr, flush=True)


def show(data: Table) -> None:
    """A table for people, with its protocol and notes."""
    from kb import results

    shape = RichTable(box=None, pad_edge=False)
    for index, column in enumerate(data["columns"]):
        shape.add_column(column["label"], justify="right" if index else "left", overflow="fold")
    for row in data["rows"]:
        shape.add_row(*results.cells(row).values())
    out = console()
    out.print(shape, highlight=False, markup=False)
    out.print(f"\n{results.protocol_line(data['protocol'])}.", highlight=False, markup=False)
    for note in data["notes"]:
        out.print(f"- {note}", highlight=False, markup=False)


def emit(data: Any) -> None:
    """JSON on standard output."""
    sys.stdout.write(json.dumps(data, indent=1, sort_keys=True) + "\n")


def shown(path: Path) -> str:
    """A path as short as it can be said here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def one_line(message: str) -> str:
    """Without line breaks, so that an error is one line."""
    return " ".join(message.split())


@contextmanager
def usage_errors() -> Iterator[None]:
    """Inside, a ValueError means that the command was misused: exit code 2."""
    try:
        yield
    except ValueError as error:
        stop(str(error), BAD_USAGE)


def stop(message: str, code: int = FAILURE) -> NoReturn:
    """Print one line and leave."""
    say(f"error: {message}")
    raise typer.Exit(code)


@contextmanager
def progress(
    *, quiet: bool
) -> Iterator[tuple[Callable[[int, int, str], None], Callable[[str], None]]]:
    """A bar on a terminal, plain lines elsewhere, nothing when quiet."""
    if quiet:
        yield lambda *_: None, lambda _: None
        return
    if not sys.stderr.isatty():

        def line(done: int, total: int, current: str) -> None:
            if current:
                say(f"[{done + 1}/{total}] {current}")

        yield line, lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        job = bar.add_task("load", total=None)
        state = {"run": "", "doing": ""}

        def describe() -> None:
            bar.update(job, description=f"{state['run']} [dim]{state['doing']}[/dim]")

        def moved(done: int, total: int, current: str) -> None:
            state.update(run=current, doing="")
            bar.update(job, completed=done, total=total)
            describe()

        def said(doing: str) -> None:
            state["doing"] = doing
            describe()

        yield moved, said


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; every failure is one line on standard error."""
    words = sys.argv[1:] if arguments is None else arguments
    command: Any = typer.main.get_command(app)
    if words and not words[0].startswith("-") and words[0] not in command.commands:
        say(f"error: {registry.unknown(f'command {words[0]!r}', words[0], command.commands)}")
        return BAD_USAGE
    try:
        code = command.main(
            words or ["--help"], prog_name="python -m methods", standalone_mode=False
        )
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from here")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        return _failed(error)
    return code if isinstance(code, int) else 0


def _failed(error: Exception) -> int:
    described = getattr(error, "format_message", None)
    if described is not None:  # bad options, as the command-line library found them
        say(f"error: {described()}")
        return BAD_USAGE
    expected = isinstance(error, ValueError | OSError | RuntimeError | FloatingPointError)
    if expected and str(error):
        say(f"error: {error}")
    else:
        say(f"error: {type(error).__name__}: {error} (a bug; {_TRACEBACK}=1 shows where)")
    return FAILURE


if __name__ == "__main__":
    sys.exit(main())
