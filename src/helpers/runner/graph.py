"""A study as a graph: which notebooks are executed with which parameters, what each waits for and is expected
to cost."""

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers import layout
from helpers.cohort import origins, phantom
from helpers.pipeline import cache, participants
from helpers.study import CONTRASTS, GROUND_TRUTH
from helpers.study.file import Study
from helpers.study.program import Program
from helpers.study.subjects import ALL, Subject

#: The stages (`cache.STAGES`) whose results a notebook makes or shows. When one of them changes, the notebook
#: is executed once more.
STAGES_OF_NOTEBOOK = {
    "00": ("cohort", "preparation"),
    "01": ("degradation",),
    "02": ("degradation",),
    "03": ("super-resolution", "registration"),
    "04": ("harmonization", "scores", "downstream"),
    "a2": ("other harmonizers", "scores", "downstream"),
    "05": ("scores", "downstream", "analysis"),
    "08": ("super-resolution",),
}

#: Seconds that a notebook took alone on a core (EPYC, Zen 4) until a study has measured its own: fixed part,
#: and for each image that it makes. Harmonizing depends on how much of a volume is wanted, registering on the
#: transform.
COST_S = {"00": (9, 3), "01": (6, 0), "02": (7, 0.25), "03": (20, 0.2), "04": (7, 0.5), "05": (20, 0)}
COST_S |= {"08": (60, 0), "a2": (7, 0.5)}
_TEACHING_STEP_S = 0.07  # of a network that super-resolves
_RESOLVED_S = 4  # more for a registered volume that is super-resolved before
_WHOLE_VOLUME_S = 0.5  # more for a registered volume that is written whole
_ESTIMATED_TRANSFORM_S = 6.5
_ENCODING_S = 0.9  # of a source in a preview
_ENCODED_PLANE_S = {False: 10.4, True: 6.4}  # of a whole plane of a source; compiled or not
_PLANE_S = {False: 40, True: 16}  # of a whole plane of three targets
_FUSED_S = {False: 9, True: 3.5}  # by the network; the median takes a second
#: Of three targets by another harmonizer than HACA3, and by a program: guesses.
_OTHER_S, _PROGRAM_S = 2, 300
_SEGMENTED_S = 25  # tissues and lesions of a T1w and a FLAIR, two arms a resolution
_PREPARATION_S = 110  # of one's own images of a subject: examined, registered to MNI, skull-stripped

#: Megabytes of an image, as measured; fused and registered volumes hold noise and hardly shrink.
_COHORT_MB, _STACK_MB, _REGISTERED_MB, _HARMONIZED_MB, REPORT_MB = 3.5, 2.75, 13, 5.3, 1.2

#: Where a notebook takes little longer than its start, it does more than one thing. So many seconds at most
#: are put together: of subjects in the first notebooks, and of resolutions of one subject in a preview.
_TOGETHER_S, _RESOLUTIONS_TOGETHER_S = 60, 300


@dataclass(frozen=True)
class Task:
    """One execution of one notebook.

    Parameters
    ----------
    name : str
        Unique in the study, and the stem of the executed notebook's file.
    notebook : Path
        What is executed.
    parameters : dict
        For papermill; plain literals.
    needs : tuple of str
        Names of the tasks whose files it reads.
    images : int
        How many images it makes.
    cost_s, size_mb : float
        Rough duration and size of its results, for the estimates.
    """

    name: str
    notebook: Path
    parameters: dict
    needs: tuple[str, ...] = ()
    images: int = 0
    cost_s: float = 10
    size_mb: float = REPORT_MB

    @property
    def removable(self) -> bool:
        """Whether its volumes may be removed when nothing needs them any more."""
        return self.parameters.get("changes", {}).get("keep") == "tables"

    @property
    def key(self) -> str:
        """`helpers.pipeline.cache.notebook_key` of this execution, as things stand."""
        stages = STAGES_OF_NOTEBOOK.get(self.notebook.name[:2], ())
        return cache.notebook_key(self.notebook, self.parameters, stages)


def tasks(plan: Study, unfit: Iterable[Subject] = ()) -> list[Task]:
    """The notebook executions that make up a study, in an order in which each comes after its needs.

    Parameters
    ----------
    plan : Study
        With its subjects named one by one, as `helpers.pipeline.participants.check_cohort` leaves them.
    unfit : iterable of Subject
        Subjects whose images could not be prepared. Their first notebook is tried once more; the other
        notebooks are executed for the other subjects only.
    """
    planned, fit = [], [subject for subject in plan.subjects if subject not in set(unfit)]

    def add(notebook, words, parameters, needs=(), images=0, mb=0.0, more_s=0.0):
        fixed_s, image_s = COST_S[notebook[:2]]
        name = "_".join((notebook, *words))
        path = layout.NOTEBOOKS / f"{notebook}.ipynb"
        cost_s = fixed_s + image_s * images + more_s
        planned.append(Task(name, path, parameters, tuple(needs), images, cost_s, REPORT_MB + mb))
        return name

    literals = {**plan.literals(), "subjects": [subject.literal for subject in fit]}

    def parameters(fields, **others):
        # Not the study file: a study may be made in Python, and a file may change while the study runs. And
        # only the fields that the notebook's results depend on: its parameters are part of its key, so
        # another `anatomy` does not run 02 again.
        return {"study": "", "changes": {field: literals[field] for field in fields}, **others}

    remedied = "super-resolution" in plan.remedies
    learnt = ("remedies", "taught_on", "teaching_steps", "seed") if remedied else ()
    teachers = [teacher for teacher in plan.taught_on if teacher in fit] or fit[:3] if remedied else []
    literals["taught_on"] = [teacher.literal for teacher in teachers]
    # Only in a study that has it, so that the keys of other studies do not change.
    kept = ("keep",) if plan.keep != "all" else ()
    common = ("name", "output_dir", "dropped", *kept)
    learning = (*common, "transform", "reconstruction", "slice_step", *learnt)
    # How images of one's own are prepared is a parameter of the first notebook only,
    prepared = (*common, "bids_dir", "select", "brain", "seed") if plan.bids_dir else common
    acquired = (*common, "experiments", "resolutions")
    registered = tuple(
        dict.fromkeys((*acquired, *learnt, "transform", "reconstruction", "slice_step", "seed"))
    )
    # and which other studies are read is one of the last.
    without = ("bids_dir", "select", "brain", "keep", *(() if remedied else ("taught_on", "teaching_steps")))
    other = plan.harmonizer != "haca3"
    # A study of HACA3 need not say so: its notebooks stay done.
    without += () if other else ("harmonizer",)
    without += () if "training" in plan.remedies else ("resolution_weights",)
    analysed = (*(field for field in literals if field not in without), *kept)
    harmonized = tuple(
        field for field in analysed if field not in ("subjects", "experiments", "planes", "ladder")
    )
    prepared_s = _PREPARATION_S if plan.bids_dir else 0
    whole = plan.slice_step == 1
    levels, given = len(plan.resolutions), len(plan.given)
    images = len(plan.acquisitions()) * levels
    # How often a row of Table 1 is harmonized at a resolution.
    arms = {row: len({plan.remedies_in(arm, row) for arm in plan.arms}) for row in plan.experiments}
    kinds = 1 + remedied  # of stacks
    # Per stack.
    sliced_only = plan.transform == "known" and not whole
    back_s = (0 if sliced_only else _WHOLE_VOLUME_S) + (
        0 if plan.transform == "known" else _ESTIMATED_TRANSFORM_S
    )
    back_mb = _REGISTERED_MB / (plan.slice_step if sliced_only else 1)
    back_s, back_mb = kinds * back_s + remedied * _RESOLVED_S, kinds * back_mb + remedied * _REGISTERED_MB
    # Per resolution, or ground truth: three images harmonized.
    harmonized_s = len(plan.reconstruction) * _PLANE_S[plan.compiled] / plan.slice_step + (
        3 * _FUSED_S[plan.compiled] if plan.fusion and whole else 0
    )
    harmonized_mb = 3 * _HARMONIZED_MB / plan.slice_step
    encoding_s = len(plan.reconstruction) * _ENCODED_PLANE_S[plan.compiled] if whole else _ENCODING_S
    if other:
        harmonized_s = _PROGRAM_S if isinstance(plan.harmonizer, Program) else _OTHER_S
        encoding_s = 0
    if plan.downstream:
        harmonized_s += 2 * _SEGMENTED_S / plan.slice_step
    aim = participants.target_subject(plan)
    fields, number, more_s = common, len(CONTRASTS), 0
    if plan.targets:  # those given as numbers have no images to be made
        fields = (*common, "targets", "seed")
        number, more_s = len(participants.acquired(plan, aim)), _PREPARATION_S
    settings = parameters(fields, subject=aim.literal)
    target = []
    if number:
        target = [add("00_cohort", ["target"], settings, (), number, number * _COHORT_MB, more_s)]

    def harmonize(subject, rows, number, encodings, needs, resolution=None):
        """Rows of Table 1 at all resolutions or at one, in one task, which encodes each source once."""
        names = [subject.name]
        settings = parameters(harmonized, subject=subject.literal, experiment=rows[0])
        settings |= {"other_experiments": rows[1:]} if rows[1:] else {}
        if resolution:
            names.append(f"res-{resolution.slug}")
            settings["changes"] |= {"resolutions": [resolution.label]}
        elif rows == [GROUND_TRUTH]:
            names.append(f"exp-{GROUND_TRUTH}")
        more_s = number * harmonized_s + encodings * encoding_s
        notebook = "a2_other_harmonizer" if other else "04_harmonization"
        return add(notebook, names, settings, needs, number, number * harmonized_mb, more_s)

    # What is simulated is simulated whole, and never unfit: it can go through the first notebooks together
    # with its neighbours.
    high, last, stacks = given if plan.bids_dir else 3, [], {}
    longest_s = max(COST_S["00"][1] * high, COST_S["02"][1] * images, (COST_S["03"][1] + back_s) * images)
    groups = _groups(plan.subjects, 1 if plan.bids_dir else int(_TOGETHER_S / longest_s))

    def named(group):
        first, *others = [subject.literal for subject in group]
        return {"subject": first, **({"other_subjects": others} if others else {})}

    for group in groups:
        words, number = [_range(group)], len(group) * images
        settings = parameters(prepared, **named(group))
        start = add(
            "00_cohort",
            words,
            settings,
            images=len(group) * high,
            mb=len(group) * high * _COHORT_MB,
            more_s=prepared_s,
        )
        if group[0] not in fit:
            continue
        if group[0] == fit[0]:
            add(
                "01_slice_profiles",
                [],
                parameters(common, subject=fit[0].literal, interactive=False),
                [start],
            )
        settings = parameters(acquired, **named(group), interactive=False)
        made_here = add("02_degradation", words, settings, [start], images=number, mb=number * _STACK_MB)
        stacks |= dict.fromkeys(group, made_here)
    teachers = [teacher for teacher in teachers if teacher in stacks]
    lessons = []
    for resolution in plan.resolutions if teachers else ():
        settings = parameters(learning, subject=teachers[0].literal, resolution=resolution.label, results="")
        needs = list(dict.fromkeys(stacks[subject] for subject in teachers))
        more_s = plan.teaching_steps * _TEACHING_STEP_S
        lessons.append(add("08_remedies", [f"res-{resolution.slug}"], settings, needs, more_s=more_s))
    for group in groups:
        if group[0] not in stacks:
            continue
        number = len(group) * images
        back = add(
            "03_registration",
            [_range(group)],
            parameters(registered, **named(group)),
            [stacks[group[0]], *lessons],
            images=number * (kinds + remedied),
            mb=number * back_mb,
            more_s=number * back_s,
        )
        for subject in group:
            # Two ground truths; each resolution of each experiment, in its arms.
            rows, number = list(plan.experiments), sum(arms.values())
            all_sources, all_images = given + images * kinds, 2 + levels * number
            in_one_s = all_images * (COST_S["04"][1] + harmonized_s) + all_sources * encoding_s
            if not whole and in_one_s <= _RESOLUTIONS_TOGETHER_S:
                rows, needs = [rows[0], GROUND_TRUTH, *rows[1:]], [back, *target]
                last.append(harmonize(subject, rows, all_images, all_sources, needs))
                continue
            truth = harmonize(subject, [GROUND_TRUTH], 2, given, [back, *target])
            sharp = {source for row in rows for source in plan.sources(row).items() if source[1] == "3D"}
            encodings = len(plan.acquisitions()) * kinds + len(sharp)
            for resolution in plan.resolutions:
                last.append(harmonize(subject, rows, number, encodings, [truth], resolution))
    if fit:
        add("05_analysis", [], parameters(analysed), last)
    return planned


def _groups(values: Sequence, size: int) -> list[list]:
    """Split a sequence into consecutive groups of at most `size` (at least 1); group sizes differ by at most
    one."""
    number = -(-len(values) // max(size, 1))
    ends = [round(part * len(values) / number) for part in range(number + 1)]
    return [list(values[start:end]) for start, end in itertools.pairwise(ends)]


def _range(subjects: Sequence[Subject]) -> str:
    """What the task of some subjects is called after: the first of them and the last."""
    return "_to_".join(dict.fromkeys((subjects[0].name, subjects[-1].name)))


def choose(wanted: list[Task], patterns: Iterable[str]) -> list[Task]:
    """The tasks whose names match one of some shell patterns, such as ``04*sub-sim01*res-3skip0``, and what
    they need.

    Raises
    ------
    ValueError
        If a pattern matches no task.
    """
    named, chosen = {task.name: task for task in wanted}, set()

    def take(name):
        if name not in chosen:
            chosen.add(name)
            for need in named[name].needs:
                take(need)

    for pattern in patterns:
        names = fnmatch.filter(named, pattern)
        if not names:
            some = ", ".join(list(named)[-3:])
            raise ValueError(
                f"--only is {pattern!r}, which matches no task: accepted are patterns of names such as {some}"
            )
        for name in names:
            take(name)
    return [task for task in wanted if task.name in chosen]


def check_subjects(plan: Study) -> None:
    """Keep the splits: what the network was trained on, and the subject that defines the target, are not
    scored; and networks that super-resolve learn from the study's subjects.

    Raises
    ------
    ValueError
        Naming the subject and those that are accepted.
    """
    others = [subject for subject in plan.taught_on if subject not in plan.subjects]
    if others and plan.subjects != (ALL,):
        accepted = f"accepted are the study's subjects, {', '.join(map(str, plan.subjects))}"
        raise ValueError(f"taught_on has {others[0].literal!r}: {accepted}")
    for subject in plan.subjects:
        if not subject.simulated:
            if not plan.bids_dir:
                raise ValueError(
                    f"subjects has {subject.label!r}, a label: accepted without bids_dir are numbers, 1 to 10"
                )
        elif subject == origins.TARGET_SUBJECT or subject.number >= phantom.FIRST_TRAINING_SEED:
            use = "defines the target" if subject == origins.TARGET_SUBJECT else "is for training"
            raise ValueError(
                f"subjects has {subject}, which {use}: accepted are 1 to 10, and 12 to "
                f"{phantom.FIRST_TRAINING_SEED - 1}"
            )


def check_parameters(wanted: list[Task]) -> None:
    """Refuse parameters that a notebook does not know; papermill itself only warns.

    Raises
    ------
    ValueError
        Naming the notebook, the parameter, its value and what the notebook accepts.
    """
    import papermill

    known = {path: papermill.inspect_notebook(str(path)) for path in {task.notebook for task in wanted}}
    for task in wanted:
        for parameter, value in task.parameters.items():
            if parameter not in known[task.notebook]:
                accepted = ", ".join(known[task.notebook])
                raise ValueError(
                    f"{task.notebook.name}: parameter {parameter}={value!r} is unknown: accepted are "
                    f"{accepted}"
                )


def needs_of(wanted: list[Task]) -> dict[str, tuple[str, ...]]:
    return {task.name: task.needs for task in wanted}
