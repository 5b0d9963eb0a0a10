"""What a study says in the end: a paragraph in words and numbers, and the first page of its report.

Both are made of the tables that notebook 05 writes beside the figures; nothing is computed anew, so they say
what the notebook says.
"""

import html
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.analysis import figures, remedies
from helpers.pipeline import folders
from helpers.study import CONTRASTS, ONE_ORIENTATION, Resolution
from helpers.study.file import Study

#: Claims in the order in which a reader needs them, by their contents, independent of their verdicts.
_MOST_TELLING = tuple("C1 C8 C7 C15 C12 C4 C14 C9 C10 C13 C2 C3 C16 C5 C11 C17 C18 C6".split())

_DECIDED = ("supported", "contradicted")

#: Figure -> what it shows.
_CAPTIONS = {
    "1": "Figure 1: slice thickness in a collection",
    "2": "Figure 2: original and harmonized T1w",
    **{
        str(
            number
        ): f"Figure {number}: {' and '.join(figures.MEASURES[measure].split()[0] for measure in measures)}, "
        f"experiment{'s' if len(experiments) > 1 else ''} {', '.join(experiments)}"
        for number, (experiments, measures) in figures.SCORE_FIGURES.items()
    },
    "claims": "The claims, in margins",
    "attention": "What each source weighs",
    "frequencies": "What is left of each frequency",
    "ladder": "What registration costs",
    "remedies": "What the remedies bring back",
    "agreement": "Volumes in thick slices against those in 3D images",
    "lesions": "Lesions found and missed in thick slices",
    "comparison": "Scores and verdicts beside those of other studies",
    "advisor": "What the next scan should acquire",
}

#: What to see in the three figures that stand large on the page.
_SCORES = "Blue T1w, orange T2w, green FLAIR; grey without a harmonizer; dotted the self-noise ceiling."
_ATTENTION = "A row per target contrast, a colour per source; solid 3D, dashed thick slices."
_CLAIMS = "Dot and line: the comparison that decides, 95 % interval; blue supported, orange contradicted."

_STYLE = """
body{font:16px/1.45 sans-serif;max-width:75em;margin:0 auto;padding:.6em 1em 3em;color:#222}
h1{font-size:1.5em;margin:.2em 0}h2{font-size:1.2em;margin:1.6em 0 .4em}p{margin:.4em 0}
.first{display:block;margin:.4em auto;max-width:100%;max-height:390px}
.note{color:#555;font-size:.9em}.wrong{border-left:4px solid #b0413e;padding-left:.8em}
table{border-collapse:collapse}th{text-align:left;border-bottom:1px solid #999}
td,th{padding:.15em 1.5em .15em 0;vertical-align:top}.time{text-align:right}
.supported{color:#0072b2;font-weight:bold}.contradicted{color:#b34700;font-weight:bold}.undecided{color:#666}
.failed td:nth-child(2),.failed td:nth-child(4){color:#b0413e;font-weight:bold}.missing td{color:#666}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(250px,1fr));gap:1em}figure{margin:0}
.figures img{width:100%;height:150px;object-fit:contain}figcaption{font-size:.85em;text-align:center}
"""


def paragraph(scores: pd.DataFrame, verdicts: pd.DataFrame, without: pd.DataFrame) -> str:
    """The result of a study in words: the loss from its finest to its coarsest slices, and the verdicts.

    Parameters
    ----------
    scores : DataFrame
        As `helpers.pipeline.scoring.all_scores` gives it.
    verdicts, without : DataFrame
        As `helpers.analysis.judgement.split` gives them.
    """
    if verdicts.empty:
        none = f"This study can test none of the {len(without)} claims of the paper." if len(without) else ""
        return f"{_cost(scores)} {none}".strip()
    counts = verdicts.verdict.value_counts()
    supported, contradicted, open_ = (int(counts.get(verdict, 0)) for verdict in (*_DECIDED, "undecided"))
    tested = (
        f"Of the {len(verdicts) + len(without)} claims of the paper this study can test {len(verdicts)}: "
    )
    parts = [f"supports {supported}", f"contradicts {contradicted}", *[f"leaves {open_} open"] * bool(open_)]
    tested += f"it {_listed(parts)}."
    return f"{_cost(scores)} {tested} The most telling: {' '.join(_most_telling(verdicts))}"


def _most_telling(verdicts: pd.DataFrame, number: int = 3) -> list[str]:
    """Sentences of a few claims in the order of `_MOST_TELLING`, undecided ones last."""
    ranked = verdicts.assign(
        rank=verdicts.claim.map(_MOST_TELLING.index), open_=~verdicts.verdict.isin(_DECIDED)
    )
    rows = ranked.sort_values(["open_", "rank"]).head(number)
    # The resolutions of the study are not repeated in each sentence.
    return [row.sentence.removesuffix(f" Over {row.resolutions}.") for row in rows.itertuples()]


def no_verdict(without: pd.DataFrame) -> str:
    """One sentence that names the claims without a verdict and the reasons; empty if there are none."""
    if without.empty:
        return ""
    groups = without.groupby("reason", sort=False).claim.agg(_listed)
    return f"No verdict here on {'; '.join(f'{names} ({reason})' for reason, names in groups.items())}."


def _listed(words: Iterable) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def _cost(scores: pd.DataFrame) -> str:
    inside = scores[(scores.region == "brain") & scores.arm.isin(["harmonized", "input"])]
    alike = [experiment for experiment in ONE_ORIENTATION if experiment in set(inside.experiment)]
    experiments = alike or sorted(inside.experiment.unique())
    # A 3D image is its own reference: its infinite score has no mean.
    inside = inside[inside.experiment.isin(experiments)].replace(np.inf, np.nan)
    keys = ["arm", "resolution", "contrast"]
    mean_db = inside.groupby(keys).psnr_db.mean().unstack("contrast").reindex(columns=list(CONTRASTS))
    separation_mm = inside.groupby("resolution").separation_mm.first()
    finest, coarsest = separation_mm.idxmin(), separation_mm.idxmax()
    subjects = scores.subject.nunique()
    of_what = f"mean of {subjects} subject{'s' if subjects > 1 else ''}, "
    of_what += f"experiment{'s' if len(experiments) > 1 else ''} {_listed(experiments)}"
    if separation_mm[finest] == separation_mm[coarsest]:
        score = _decibels(mean_db.loc[("harmonized", finest)])
        return f"At {finest} the harmonized images have {score} of PSNR inside the brain ({of_what})."
    lost = {arm: mean_db.loc[(arm, finest)] - mean_db.loc[(arm, coarsest)] for arm in mean_db.index.levels[0]}
    sentence = f"With {coarsest} ({_in_words(coarsest)}) instead of {finest} ({_in_words(finest)}), "
    sentence += f"harmonized images lose {_decibels(lost['harmonized'])} of PSNR inside the brain ({of_what})"
    return (
        f"{sentence}; without a harmonizer it is {_decibels(lost['input'])}."
        if "input" in lost
        else f"{sentence}."
    )


def _decibels(values: pd.Series) -> str:
    return _listed(f"{value:.1f} dB ({contrast})" for contrast, value in values.dropna().items())


def _in_words(label: str) -> str:
    resolution = Resolution.parse(label)
    gap = f"gaps of {resolution.gap_mm:g} mm" if resolution.gap_mm else "no gaps"
    return f"{resolution.thickness_mm:g} mm slices, {gap}"


def headline(plan: Study) -> str:
    """`paragraph` of a study that was analysed; empty if it was not."""
    try:
        return paragraph(*(_table(plan, name) for name in ("scores", "verdicts", "without_verdict")))
    except FileNotFoundError:
        return ""


def claims_without_verdict(plan: Study) -> str:
    """`no_verdict` of a study that was analysed; empty if it was not, or can test all claims."""
    try:
        return no_verdict(_table(plan, "without_verdict"))
    except FileNotFoundError:
        return ""


def _table(plan: Study, name: str) -> pd.DataFrame:
    return pd.read_csv(
        folders.figures_folder(plan) / f"{name}.csv", dtype={"experiment": str, "resolution": str}
    )


def page(plan: Study, states: pd.DataFrame, folder: Path, remarks: Mapping[str, list[str]]) -> str:
    """The report's first page: failures, result, scores, verdicts, figures, remarks, and the state of every
    notebook.

    Parameters
    ----------
    plan : Study
    states : DataFrame
        As `helpers.runner.status.status` gives it.
    folder : Path
        Folder of the page, beside the executed notebooks. Its links are relative: the results can be moved as
        a whole.
    remarks : mapping of str to list of str
        Title -> lines.

    Returns
    -------
    str
        HTML.
    """
    done = "done" in set(states[states.stage == "05_analysis"].state)
    result = headline(plan) if done else ""
    parts = [f"<h1>Study “{html.escape(plan.name)}”</h1>", *_failures(states)]
    if result:
        scores, others = _first_figures(plan, folder)
        parts += [f"<p>{_text(result)}</p>", *scores]
    elif not done and not (states.state == "failed").any():
        left = int((states.state != "done").sum())
        state = f"Not at its end yet: {left} of {len(states)} notebooks are to be executed"
        parts.append(f"<p>{state}, and the result comes with the last.</p>")
    parts.append(f'<p class="note">{plan.subjects[0].origin}. {html.escape(_settings(plan))}</p>')
    if result:
        parts += [*_verdicts(plan), *others, *_remedies(plan)]
    parts += [*_figures(plan, folder, done), *_remarks(remarks), *_notebooks(states, folder)]
    head = f'<meta charset="utf-8"><title>{html.escape(plan.name)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _settings(plan: Study) -> str:
    step = f", one slice in {plan.slice_step}: a preview" if plan.slice_step > 1 else ", whole volumes"
    resolutions = ", ".join(resolution.label for resolution in plan.resolutions).replace("||", "‖")
    planes = f"{_listed(plan.reconstruction)} plane{'s' if len(plan.reconstruction) > 1 else ''}{step}"
    experiments = ", ".join(plan.experiments)
    harmonizer = "" if plan.harmonizer == "haca3" else f" Harmonizer: {plan.harmonizer_name}."
    return (
        f"{len(plan.subjects)} subjects, experiments {experiments}, resolutions {resolutions}, {planes}."
        f"{harmonizer}"
    )


def _failures(states: pd.DataFrame) -> list[str]:
    failed = states[states.state == "failed"]
    if failed.empty:
        return []
    rows = "".join(
        f"<li>{failure.task}: {html.escape(failure.error)}</li>" for failure in failed.itertuples()
    )
    missing = int((states.state == "missing").sum())
    more = (
        f"<p>Not executed, since they need one of these or were not asked for: {missing}.</p>"
        if missing
        else ""
    )
    return [
        f'<div class="wrong"><p>{len(failed)} of {len(states)} notebooks '
        f"failed:</p><ul>{rows}</ul>{more}</div>"
    ]


def _image(path: Path, folder: Path, look: str = "") -> str:
    link, caption = html.escape(Path(os.path.relpath(path, folder)).as_posix()), html.escape(_caption(path))
    return f'<a href="{link}"><img {look} src="{link}" alt="{caption}"></a>'


def _caption(path: Path) -> str:
    name = path.stem.removeprefix("figure_")
    return _CAPTIONS.get(name, name)


def _drawn(plan: Study) -> list[Path]:
    """The study's figures, those of the paper by their numbers, then ours."""

    def order(path):
        number = re.fullmatch(r"figure_(\d+)", path.stem)
        return (int(number[1]), "") if number else (np.inf, path.stem)

    return sorted(folders.figures_folder(plan).glob("figure_*.png"), key=order)


def _first_figures(plan: Study, folder: Path) -> tuple[list[str], list[str]]:
    """The three that the book begins with, as far as they are drawn: scores; attention and claims."""
    drawn = {path.stem: path for path in _drawn(plan)}
    numbers = [f"figure_{number}" for number in figures.score_figures(plan.experiments)]
    scores = next((stem for stem in drawn if stem in numbers), "")

    def large(what_to_see: dict[str, str]) -> list[str]:
        return [
            f"<figure>{_image(drawn[stem], folder, 'class=first')}"
            f"<figcaption>{html.escape(_caption(drawn[stem]))}. {text}</figcaption></figure>"
            for stem, text in what_to_see.items()
            if stem in drawn
        ]

    return large({scores: _SCORES}), large({"figure_attention": _ATTENTION, "figure_claims": _CLAIMS})


def _remedies(plan: Study) -> list[str]:
    """What the study's remedies bring back, where they hurt first, and the verdicts on them."""
    if not plan.remedies:
        return []
    result, untested = (
        _text(part)
        for part in (
            remedies.paragraph(_table(plan, "remedies")),
            no_verdict(_table(plan, "remedies_without_verdict")),
        )
    )
    table = _verdict_table(_table(plan, "remedies_verdicts"))
    return ["<h2>The remedies</h2>", f"<p>{result}</p>", table, f"<p>{untested}</p>"]


def _verdicts(plan: Study) -> list[str]:
    untested = _text(claims_without_verdict(plan))
    return ["<h2>The verdicts</h2>", _verdict_table(_table(plan, "verdicts")), f"<p>{untested}</p>"]


def _verdict_table(verdicts: pd.DataFrame) -> str:
    rows = "\n".join(
        f"<tr><td>{row.claim}</td><td>{_text(row.statement)}</td>"
        f'<td class="{row.verdict}">{row.verdict}</td><td>{_text(_why(row))}</td></tr>'
        for row in verdicts.itertuples()
    )
    head = "<tr><th></th><th>claim</th><th>verdict</th><th>why</th></tr>"
    return f"<table>{head}\n{rows}</table>" if len(verdicts) else ""


def _why(row) -> str:
    """The part of a verdict's sentence that the columns beside it, and the study's settings, do not say."""
    why = row.sentence.partition(row.statement)[2].lstrip(":; ")
    return why.removesuffix(f" Over {row.resolutions}.")


def _text(words: str) -> str:
    return html.escape(words).replace("||", "‖")


def _figures(plan: Study, folder: Path, current: bool) -> list[str]:
    thumbnails = "".join(
        f"<figure>{_image(path, folder, 'loading=lazy')}"
        f"<figcaption>{html.escape(_caption(path))}</figcaption></figure>"
        for path in _drawn(plan)
    )
    title = "The figures" if current else "Figures of an earlier run"
    return [f"<h2>{title}</h2>", f'<div class="figures">{thumbnails}</div>'] if thumbnails else []


def _remarks(remarks: Mapping[str, list[str]]) -> list[str]:
    lists = {
        title: "".join(f"<li>{html.escape(line)}</li>" for line in lines) for title, lines in remarks.items()
    }
    return [f"<h2>{title}</h2><ul>{items}</ul>" for title, items in lists.items() if items]


def _notebooks(states: pd.DataFrame, folder: Path) -> list[str]:
    any_error = bool((states.error != "").any())

    def row(task):
        # A kernel that died leaves no page.
        there = (folder / f"{task.task}.html").exists()
        name = f'<a href="{task.task}.html">{task.task}</a>' if there else task.task
        took = "" if pd.isna(task.seconds) else f"{int(task.seconds) // 60}:{int(task.seconds) % 60:02d}"
        cells = f'<td>{name}</td><td>{task.state}</td><td class="time">{took}</td>'
        cells += f"<td>{html.escape(task.error)}</td>" if any_error else ""
        return f'<tr class="{task.state}">{cells}</tr>'

    counts = ", ".join(f"{number} {state}" for state, number in states.state.value_counts().items())
    summary = (
        f"<p>{counts}; {states.seconds.sum() / 3600:.1f} h of computing in the last execution of each.</p>"
    )
    body = "\n".join(map(row, states.itertuples()))
    head = '<tr><th>notebook</th><th>state</th><th class="time">min:s</th>'
    head += "<th>error</th></tr>" if any_error else "</tr>"
    return ["<h2>The notebooks, as executed</h2>", summary, f"<table>{head}\n{body}</table>"]
