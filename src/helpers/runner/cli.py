"""The command line: ``resolution-matters run studies/demo.toml``, or the call of BIDS Apps
(`helpers.runner.bids_app`)."""

import argparse
import dataclasses
import sys
import textwrap
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from helpers import volumes
from helpers.runner import bids_app
from helpers.runner.cluster import Cluster
from helpers.study import Resolution
from helpers.study.file import Study
from helpers.study.toml import expand_path
from helpers.volumes.files import in_words, require_place


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 if all went well, 1 if a notebook failed, 2 if the input was refused, 130 if
    interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="resolution-matters",
        description="What thick slices do to MR image harmonization. Two ways to call it: a command and a "
        "study file, or a BIDS data set, a folder for the results and a level, as BIDS Apps are called.",
        epilog="As a BIDS App: " + bids_app.parser().format_help().removeprefix("usage: "),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=version("resolution-matters"))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a study: its notebooks, as far as they are not done yet")
    workers = (
        "notebooks at a time, or jobs of a cluster (default: the study's; on this machine one per core, as "
        "far as memory allows)"
    )
    run.add_argument("--workers", type=int, help=workers)
    only = "only tasks of such names and what they need, e.g. '04*sub-sim01*res-3skip0'; may be repeated"
    run.add_argument("--only", action="append", default=[], metavar="PATTERN", help=only)
    run.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be done, how long it takes and how much disk, and do nothing",
    )
    run.set_defaults(action=_run)
    commands.add_parser("status", help="what is done, running, failed and missing").set_defaults(
        action=_status
    )
    clean = commands.add_parser("clean", help="remove a study's results")
    clean.add_argument("--yes", action="store_true", help="do not ask")
    clean.set_defaults(action=_clean)
    for command in commands.choices.values():
        command.add_argument("study", help="a study file, e.g. studies/demo.toml")
    resolve = commands.add_parser("super-resolve", help="make thick slices 1 mm thin, as far as they tell")
    resolve.add_argument("stack", help="a NIfTI file; thickness and gap stand in its sidecar, or are given")
    resolve.add_argument("out", help="the file to be, .nii.gz")
    resolve.add_argument("--thickness", type=float, metavar="MM", help="of the slices")
    resolve.add_argument("--gap", type=float, metavar="MM", help="between them")
    taught = (
        "what was learnt from a stack of the same protocol; where there is no such file, it is made from "
        "this one"
    )
    resolve.add_argument("--resolver", metavar="FILE.pt", help=taught)
    resolve.set_defaults(action=_super_resolve)
    beside = commands.add_parser("compare", help="finished studies side by side, such as one per harmonizer")
    several = "two or more that differ in their harmonizer alone: study files, names or folders of results"
    beside.add_argument("studies", nargs="+", metavar="study", help=several)
    beside.set_defaults(action=_compare)
    as_app = bids_app.is_call(arguments, list(commands.choices))
    options = (bids_app.parser() if as_app else parser).parse_args(arguments)
    try:
        if as_app:
            return _run_app(options, arguments)
        if options.action in (_super_resolve, _compare):
            return options.action(options)
        return options.action(options, Study.from_toml(options.study), Cluster.from_toml(options.study))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"resolution-matters: {in_words(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nresolution-matters: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130


def _run_app(options: argparse.Namespace, arguments: list[str]) -> int:
    if options.work_dir:
        bids_app.use_work_dir(options.work_dir)
    study = bids_app.write_study(options, arguments)
    return _execute(
        study, Study.from_toml(study), Cluster.from_toml(study), list(bids_app.LEVELS[options.level])
    )


def _run(options: argparse.Namespace, plan: Study, where: Cluster) -> int:
    from helpers.runner import graph, run, status

    if options.workers is not None:
        if options.workers < 1:
            raise ValueError(f"--workers is {options.workers}: accepted are whole numbers from 1")
        where = dataclasses.replace(
            where, **{"workers" if where.kind == "local" else "jobs": options.workers}
        )
    if options.dry_run:
        # As the run itself: whoever would be left out is named.
        plan = _settled(plan, voxels=True)
        wanted = graph.choose(graph.tasks(plan), options.only or ["*"])
        run.refuse_early(plan, wanted)
        states = status.status(plan)
        _tell(plan, states[states.task.isin([task.name for task in wanted])], where)
        return 0
    return _execute(options.study, plan, where, options.only)


def _execute(study: str | Path, plan: Study, where: Cluster, only: list[str]) -> int:
    """Run a study and tell what became of it."""
    from helpers.pipeline import folders
    from helpers.runner import report, run

    outcome = run.run(plan, where, only)
    for name, error in outcome.failed.items():
        print(f"failed: {name}: {error}\n        {outcome.report.parent / name}.ipynb", file=sys.stderr)
    for name in outcome.skipped:
        print(f"not started: {name}: it needs a notebook that failed, or the disk was full", file=sys.stderr)
    if not outcome.failed and not only:
        print(textwrap.fill(report.headline(plan), 100))
        print(textwrap.fill(report.claims_without_verdict(plan), 100))
    executed = f"{outcome.executed} notebooks executed" if outcome.executed else "Everything was done already"
    results = folders.folder(plan) if only else folders.figures_folder(plan)
    print(f"\n{executed}, {outcome.seconds / 60:.1f} min. {'Results' if only else 'Figures'}: {results}")
    print(f"Look next: {outcome.report}, the report with all figures, verdicts and executed notebooks")
    if (analysis := outcome.report.parent / "05_analysis.html").exists():
        print(f"           {analysis}, how each verdict was reached")
    print(f"           {study}, what was run: copy it, change it, run it again")
    return 1 if outcome.failed or outcome.skipped else 0


def _status(options: argparse.Namespace, plan: Study, where: Cluster) -> int:
    from helpers.runner import status

    plan = _settled(plan)
    states = status.status(plan)
    _tell(plan, states, where)
    for task in states[states.state == "failed"].itertuples():
        print(f"failed: {task.task}: {task.error}")
    return 0


def _settled(plan: Study, voxels: bool = False) -> Study:
    """The study with the subjects that take part; those of one's own data that do not are told."""
    from helpers.cohort import origins
    from helpers.pipeline import folders, participants
    from helpers.runner import graph

    graph.check_subjects(plan)
    plan, left_out = participants.check_cohort(plan, voxels)
    for reason in left_out.values():
        print(f"left out: {reason}")
    for line in origins.earlier_version(folders.folder(plan)):
        print(line)
    return plan


def _tell(plan: Study, states, where: Cluster) -> None:
    """Print the table of stages, what it took and what is left."""
    from helpers.pipeline import folders
    from helpers.runner import run, status

    kinds = ["done", "running", "failed", "missing"]
    table = (
        states.groupby("stage")
        .state.value_counts()
        .unstack(fill_value=0)
        .reindex(columns=kinds, fill_value=0)
    )
    times = states.groupby("stage")[["seconds", "expected_s"]].sum() / 60
    table = table.join(times.rename(columns={"seconds": "took, min", "expected_s": "left, min"}).round(1))
    table.loc["together"] = table.sum()
    counts = {kind: "{:.0f}".format for kind in kinds}
    print(
        f"Study {plan.name}, {folders.folder(plan)}\n{table.rename_axis(None).to_string(formatters=counts)}\n"
    )
    if (states.state != "done").any():
        hours, free = (
            status.expected_hours(plan, states, where.size()),
            run.free_mb(folders.folder(plan)) / 1000,
        )
        at = f"{where.size()} {'workers' if where.kind == 'local' else f'{where.kind} jobs'}"
        time_left = f"{hours:.1f} h" if hours >= 1.5 else f"{max(60 * hours, 1):.0f} min"
        print(
            f"Left: about {time_left} on {at}, and {run.wanted_mb(plan, states) / 1000:.1f} GB of disk "
            f"({free:.1f} GB free)."
        )


def _clean(options: argparse.Namespace, plan: Study, where: Cluster) -> int:
    from helpers.runner import removal

    paths = removal.results(plan)
    if not paths.files:
        print(f"{paths.folder}: nothing there")
        return 0
    print(f"{paths.folder}: {len(paths.files)} files, {paths.size_mb / 1000:.2f} GB")
    if not options.yes and input("Remove them? [y/N] ").strip().lower() not in ("y", "yes"):
        print("Nothing was removed.")
        return 0
    removal.clean(plan)
    print("Removed.")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from helpers.analysis import comparison
    from helpers.pipeline import comparing, folders

    losses, verdicts, _ = comparing.compare(options.studies)
    print(comparison.in_words(losses, verdicts))
    place = folders.figures_folder(comparing.study_of(options.studies[0]))
    print(f"\nLook next: {place / 'figure_comparison.png'}, and the tables comparison_*.csv beside it")
    return 0


def _super_resolve(options: argparse.Namespace) -> int:
    """Read, teach unless that was done, resolve and write; all that can be refused is refused before the
    minutes of teaching."""
    begin = time.monotonic()
    for name in ("stack", "out", *["resolver"] * (options.resolver is not None)):
        setattr(options, name, str(expand_path(getattr(options, name))))
    if not options.out.endswith(".nii.gz"):
        raise ValueError(f"{options.out}: accepted are names that end in .nii.gz")
    if Path(options.out).resolve() == Path(options.stack).resolve():
        raise ValueError(f"{options.out} is the stack itself: accepted is another file")
    if options.resolver and Path(options.resolver).resolve() == Path(options.out).resolve():
        raise ValueError(f"--resolver is {options.resolver}, as the file to be: accepted is another file")
    for place in (options.out, *[options.resolver] * bool(options.resolver)):
        require_place(place)
    stack, affine = volumes.read(options.stack)
    sidecar = volumes.read_given_sidecar(options.stack)
    resolution = _resolution_of(options, sidecar, affine)
    from helpers import super_resolution
    from helpers.super_resolution.stacks import through_plane_axis

    through_plane_axis(stack.shape, affine, resolution, options.stack)
    if options.resolver and Path(options.resolver).exists():
        resolver = super_resolution.load(options.resolver, resolution)
    else:
        resolver = super_resolution.train([(stack, affine)], resolution)
        if options.resolver:
            resolver.save(options.resolver)
    volume, out_affine = super_resolution.super_resolve(stack, affine, resolution, resolver)
    # What no longer holds is said of the slices that were acquired.
    acquired = {"SliceThickness": resolution.thickness_mm, "SpacingBetweenSlices": resolution.separation_mm}
    gone = {*acquired, "ContentSha256", "ContentBytes"}
    sidecar = {name: value for name, value in sidecar.items() if name not in gone}
    source = Path(options.stack).name
    learnt = Path(options.resolver).name if options.resolver else source
    sidecar |= {
        "Sources": [source],
        "SuperResolution": {**acquired, "LearntFrom": learnt},
        "Resolution": (
            f"1 mm across slices, super-resolved from {resolution.thickness_mm:g} mm "
            f"with gaps of {resolution.gap_mm:g} mm"
        ),
    }
    volumes.write(options.out, volume, out_affine, sidecar)
    shape = " x ".join(map(str, volume.shape))
    print(
        f"{options.out}: {shape} voxels from slices of {resolution.label} mm, "
        f"{(time.monotonic() - begin) / 60:.1f} min"
    )
    return 0


def _resolution_of(options: argparse.Namespace, sidecar: dict, affine: np.ndarray) -> Resolution:
    """Thickness and gap of a stack: as given, else as its sidecar has them, the separation else as its header
    has it."""
    thickness = sidecar.get("SliceThickness") if options.thickness is None else options.thickness
    if thickness is None:
        raise ValueError(
            f"{options.stack} has no sidecar with SliceThickness: accepted is one, or --thickness in mm"
        )
    from helpers.protocol import survey

    try:
        thickness = survey.millimetres(thickness)
    except ValueError as error:
        raise ValueError(f"{volumes.sidecar_path(options.stack)}: SliceThickness {error}") from None
    gap = options.gap
    if gap is None:
        # Headers hold 32-bit floats: 6.5000001 is 6.5. SpacingBetweenSlices says the same, if it is right.
        separation = round(float(np.linalg.norm(affine[:3, :3], axis=0).max()), 3)
        gap = round(separation - thickness, 3)
        if gap < 0:
            lie = f"slices of {thickness:g} mm, {separation:g} mm apart"
            raise ValueError(
                f"{options.stack} has {lie}: accepted are slices that do not overlap, or --thickness and "
                "--gap in mm"
            )
    return Resolution(thickness, gap)


if __name__ == "__main__":
    sys.exit(main())
