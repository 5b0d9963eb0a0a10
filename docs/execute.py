"""Execute the notebooks that the book shows, as far as they are not done, and put them beside its pages.

Without an argument they show the small study ``studies/book.toml``; ``python docs/execute.py
studies/ten.toml`` shows another, whose results are taken as they are if they are there.
"""

import shutil
import sys
from pathlib import Path

from helpers import layout
from helpers.pipeline import folders
from helpers.runner import execution, graph, status
from helpers.study import ORIENTATIONS
from helpers.study.file import Study

#: Where the book has its notebooks; not in git, since they hold their pictures.
PAGES = Path(__file__).parent / "notebooks"


def tasks(study: str) -> list[graph.Task]:
    """One execution of each notebook of the method; interactive ones in their still form."""
    plan = Study.from_toml(layout.ROOT / study)
    if plan.bids_dir or plan.output_dir:
        accepted = "accepted are studies of simulated subjects in data/derivatives"
        raise ValueError(f"{study}: bids_dir or output_dir is given: {accepted}")
    literals = plan.literals()
    first, *others = literals["subjects"]
    # A path of this machine would be seen on the page.
    by_study, by_name = {"study": study}, {"name": plan.name}
    own = {
        "00_cohort": {**by_study, "subject": first, "other_subjects": others},
        "01_slice_profiles": {**by_study, "subject": first, "interactive": False},
        "02_degradation": {**by_study, "subject": first, "interactive": False},
        "03_registration": {**by_study, "subject": first, "orientation": ORIENTATIONS[0]},
        "04_harmonization": {
            **by_study,
            "subject": first,
            "experiment": plan.experiments[0],
            "other_experiments": list(plan.experiments[1:]),
        },
        "05_analysis": by_study,
        "06_protocol_survey": by_name,
        "07_lab_meeting": {
            **by_name,
            "subjects": literals["subjects"][:3],
            "weights": plan.weights,
            "interactive": False,
        },
        # Shorter lessons than a study's: the page shows how, and the scores of a study with whole ones.
        "08_remedies": {
            "study": study,
            "changes": {"remedies": ["super-resolution", "fusion"], "teaching_steps": 150},
            "results": plan.name if plan.remedies else "remedies",
        },
    }
    return [graph.Task(name, layout.NOTEBOOKS / f"{name}.ipynb", values) for name, values in own.items()]


def main(study: str = "studies/book.toml") -> int:
    """Return 0, or 1 if a notebook failed: the rest is executed all the same."""
    folder = folders.folder(Study.from_toml(layout.ROOT / study)) / "book"
    failed = 0
    PAGES.mkdir(exist_ok=True)
    for task in tasks(study):
        if not status.is_done(task, folder):
            result = execution.execute(task, folder)
            print(f"{task.name}: {result.error or 'executed'}, {result.seconds:.0f} s", flush=True)
            failed += result.error is not None
        shutil.copyfile(folder / f"{task.name}.ipynb", PAGES / f"{task.name}.ipynb")
    # The one takes longer than all others, the other is of another study: shown without outputs.
    for still in ("a1_train_harmonizer.ipynb", "a2_other_harmonizer.ipynb"):
        shutil.copyfile(layout.NOTEBOOKS / still, PAGES / still)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
