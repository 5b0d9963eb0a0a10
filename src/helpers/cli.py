"""The command line: ``resolution-matters run studies/demo.toml``."""

import argparse
import sys
from importlib.metadata import version

from helpers.study import Study


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return 0 if all went well, 1 if a notebook failed, 2 if the input was refused."""
    parser = argparse.ArgumentParser(prog="resolution-matters", description="What thick slices do to MR image harmonization.")
    parser.add_argument("--version", action="version", version=version("resolution-matters"))
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a study: its notebooks, as far as they are not done yet")
    run.add_argument("study", help="a study file, e.g. studies/demo.toml")
    run.add_argument("--workers", type=int, help="notebooks at a time (default: one per core, as far as memory allows)")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except (ValueError, OSError) as error:
        print(f"resolution-matters: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    if options.workers is not None and options.workers < 1:
        raise ValueError(f"--workers is {options.workers}: accepted are whole numbers from 1")
    plan = Study.from_toml(options.study)

    from helpers import batch, stages

    outcome = batch.run(plan, options.workers)
    for name, error in outcome.failed.items():
        print(f"failed: {name}: {error}\n        {outcome.report.parent / name}.ipynb", file=sys.stderr)
    for name in outcome.skipped:
        print(f"not started: {name}: it needs a notebook that failed", file=sys.stderr)
    if not outcome.failed:
        print(stages.headline(plan))
    minutes = outcome.seconds / 60
    print(f"\n{minutes:.1f} min. Figures: {stages.figures_folder(plan)}\nReport of the executed notebooks: {outcome.report}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(main())
