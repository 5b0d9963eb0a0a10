"""The paragraph with which a study ends, and the first page of its report."""

import json
import re

import pandas as pd
import pytest

from helpers import layout
from helpers.analysis import claims
from helpers.analysis.figures import SCORE_FIGURES
from helpers.pipeline import folders
from helpers.runner import report
from helpers.study import CONTRASTS, EXPERIMENTS
from helpers.study.file import Study


def read(name):
    return pd.read_csv(layout.FIGURES / "ten" / f"{name}.csv", dtype={"experiment": str, "resolution": str})


def verdict(claim, word):
    return {
        "claim": claim,
        "statement": claim,
        "verdict": word,
        "sentence": f"{word.capitalize()}: {claim}. Over 3||0.",
        "resolutions": "3||0",
    }


def scores(experiments=("1a",), resolutions=(("3||0", 3.0), ("5||1.5", 6.5))):
    """The harmonized arm loses 1 dB per mm, the other one 2."""
    return pd.DataFrame(
        [
            {
                "subject": 1,
                "experiment": e,
                "resolution": label,
                "separation_mm": mm,
                "contrast": c,
                "arm": arm,
                "region": "brain",
                "psnr_db": 30 - mm * (1 + (arm == "input")),
            }
            for e in experiments
            for label, mm in resolutions
            for c in CONTRASTS
            for arm in ("harmonized", "input")
        ]
    )


NOBODY = pd.DataFrame(columns=["claim", "statement", "verdict", "sentence"])
NONE = pd.DataFrame(columns=["claim", "statement", "reason"])


def test_the_paragraph_says_what_the_coarsest_slices_cost_with_and_without_harmonizer():
    told = report.paragraph(scores(), NOBODY, NONE)
    assert told == (
        "With 5||1.5 (5 mm slices, gaps of 1.5 mm) instead of 3||0 (3 mm slices, no gaps), harmonized "
        "images lose 3.5 dB (T1w), 3.5 dB (T2w)"
        " and 3.5 dB (FLAIR) of PSNR inside the brain (mean of 1 subject, experiment 1a); without a "
        "harmonizer it is 7.0 dB (T1w), 7.0 dB"
        " (T2w) and 7.0 dB (FLAIR)."
    )


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_one_resolution_costs_nothing_and_is_told_as_it_is(experiment):
    told = report.paragraph(scores([experiment], [("4||0", 4.0)]), NOBODY, NONE)
    assert told.startswith("At 4||0 the harmonized images have 26.0 dB (T1w)") and "nan" not in told


def test_three_claims_are_told_in_an_order_that_does_not_depend_on_their_verdicts_and_open_ones_last():
    rows = [
        verdict("C5", "supported"),
        verdict("C8", "contradicted"),
        verdict("C1", "undecided"),
        verdict("C12", "supported"),
    ]
    without = pd.DataFrame({"claim": ["C2", "C3"], "statement": ["", ""], "reason": ["too few", "too few"]})
    told = report.paragraph(scores(), pd.DataFrame(rows), without)
    assert (
        "Of the 6 claims of the paper this study can test 4: it supports 2, contradicts 1 and leaves 1 open."
        in told
    )
    told_without_open = report.paragraph(scores(), pd.DataFrame(rows[:2]), without)
    assert "can test 2: it supports 1 and contradicts 1." in told_without_open
    assert "The most telling: Contradicted: C8. Supported: C12. Supported: C5." in told
    assert report.paragraph(scores(), NOBODY, without).endswith(
        " This study can test none of the 2 claims of the paper."
    )
    assert report.no_verdict(without) == "No verdict here on C2 and C3 (too few)."
    assert sorted(report._MOST_TELLING) == sorted(claim.id for claim in claims.CLAIMS)


def test_the_paragraph_of_the_ten_subjects_has_no_number_missing():
    told = report.paragraph(read("scores"), read("verdicts"), read("without_verdict"))
    assert "mean of 10 subjects, experiments 1a, 1b and 1c" in told
    assert not re.search(r"\bnan\b", told)
    assert told.count("Supported:") + told.count("Contradicted, ") == 3


@pytest.fixture
def analysed(tmp_path):
    """A study of experiment 1a with an analysis beside it, and the states of its notebooks."""
    plan = Study(name="one", subjects=[1], experiments=["1a"], output_dir=str(tmp_path / "results"))
    folder = folders.folder(plan) / "report"
    folder.mkdir(parents=True)
    rows = pd.DataFrame([verdict("C1", "supported")])
    folders.save_tables(plan, {"scores": scores(), "verdicts": rows, "without_verdict": NONE})
    for name in ("2", "3", "10", "attention", "claims"):
        (folders.figures_folder(plan) / f"figure_{name}.png").write_bytes(b"png")
    states = pd.DataFrame(
        {
            "task": ["04_harmonization_x", "05_analysis"],
            "stage": ["04_harmonization", "05_analysis"],
            "state": "done",
            "seconds": [61.0, 2.0],
            "error": "",
        }
    )
    return plan, states, folder


def test_the_page_opens_with_the_result_and_ends_with_the_notebooks(analysed):
    plan, states, folder = analysed
    text = report.page(plan, states, folder, {"Left out": ["sub-3: <no>"], "Warnings": []})
    order = [
        "Study “one”",
        "instead of 3‖0",
        'class=first src="../figures/figure_3.png"',
        "Figure 3: PSNR, experiments 1a, 1b, 1c. Blue T1w",
        "The verdicts",
        "C1",
        'class=first src="../figures/figure_attention.png"',
        "What each source weighs. A row",
        'class=first src="../figures/figure_claims.png"',
        "The claims, in margins. Dot",
        "The figures",
        "figure_2.png",
        "figure_3.png",
        "figure_10.png",
        "figure_claims.png",
        "Left out",
        "sub-3: &lt;no&gt;",
        "04_harmonization_x",
        "1:01",
    ]
    where = 0
    for words in order:
        where = text.index(words, where)
    assert "Warnings" not in text and "<th>error</th>" not in text
    for link in re.findall(r'(?:href|src)="(.*?)"', text):
        assert (folder / link).exists()


def test_a_page_of_a_study_that_failed_says_so_first_and_draws_no_conclusion(analysed):
    plan, states, folder = analysed
    states = states.assign(state=["failed", "missing"], error=["ValueError: <so>", ""])
    text = report.page(plan, states, folder, {})
    assert (
        text.index("1 of 2 notebooks failed")
        < text.index("04_harmonization_x: ValueError: &lt;so&gt;")
        < text.index("Figures of an earlier run")
    )
    assert "instead of" not in text and "The verdicts" not in text


def test_what_a_verdict_says_is_not_said_twice_in_its_row():
    table = read("verdicts")
    text = report._verdict_table(table)
    assert set(table.verdict) == {"supported", "contradicted", "undecided"}
    assert not re.search("Supported|Contradicted|Undecided| Over ", text)
    for row in table.itertuples():
        assert text.count(f"<td>{report._text(row.statement)}</td>") == 1
        why = re.search(f">{row.verdict}</td><td>(.*?)</td>", text[text.index(f"<td>{row.claim}</td>") :])[1]
        assert len(why) > 30 and report._text(row.statement) not in why


def test_every_figure_that_is_saved_has_a_caption():
    notebooks = [json.loads(path.read_text())["cells"] for path in layout.NOTEBOOKS.glob("*.ipynb")]
    code = ["".join(cell["source"]) for cells in notebooks for cell in cells]
    code += [path.read_text() for path in (layout.ROOT / "src").rglob("*.py")]
    calls = [name for text in code for name in re.findall(r"\bsave_figure\([\w\[\]]+, ([^,:]+),", text)]
    names = {call.strip('"') for call in calls} - {"number"} | {str(number) for number in SCORE_FIGURES}
    assert "number" in calls and {"1", "2", "lesions", "comparison"} <= names
    assert names == set(report._CAPTIONS)


def test_a_page_of_a_study_that_is_not_at_its_end_says_what_is_left(analysed):
    plan, states, folder = analysed
    text = report.page(plan, states.assign(state=["done", "missing"]), folder, {})
    assert "Not at its end yet: 1 of 2 notebooks" in text
