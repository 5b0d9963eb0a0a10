"""Studies side by side: what they lose, which claims hold where, and which studies cannot be compared."""

import numpy as np
import pandas as pd
import pytest

from helpers.analysis import comparison, judgement, verdict_figures
from helpers.pipeline import comparing
from helpers.runner import cli
from helpers.study import CONTRASTS, EXPERIMENTS, Resolution, sources

LABELS = ("3||0", "4||0", "5||1.5")


def table(slope_db_per_mm, harmonizer=None, subjects=10, seed=0, own_reference=False):
    """A score table whose PSNR falls along a line; with `own_reference` that of a 3D source is infinite."""
    draw, rows = np.random.default_rng(seed), []
    level = 30 + draw.normal(0, 0.5, subjects)
    for experiment in EXPERIMENTS:
        for label in LABELS:
            separation_mm = Resolution.parse(label).separation_mm
            for contrast in CONTRASTS:
                own = own_reference and sources(experiment)[contrast] == "3D"
                for subject in range(subjects):
                    psnr = level[subject] + slope_db_per_mm * separation_mm + draw.normal(0, 0.05)
                    about = {"subject": subject + 1, "experiment": experiment, "resolution": label}
                    about |= {"separation_mm": separation_mm, "contrast": contrast}
                    score = {"psnr_db": np.inf if own else psnr, "ssim": 1.0 if own else psnr / 40}
                    rows.append({**about, "arm": "harmonized", "region": "brain", **score})
    made = pd.DataFrame(rows).assign(
        transform="known", reconstruction="axial", anatomy="shared", mask="first", slice_step=23, seed=0
    )
    return made.assign(harmonizer=harmonizer) if harmonizer else made


def test_losses_and_slopes_are_those_of_the_tables():
    losses = comparison.losses({"one": table(-2.0), "two": table(-0.5, "histogram", seed=1)})
    assert len(losses) == 2 * 2 * 3
    assert set(zip(losses["from"], losses.to, strict=True)) == {("3||0", "5||1.5")}
    for study, harmonizer, slope in (("one", "haca3", -2.0), ("two", "histogram", -0.5)):
        rows = losses[(losses.study == study) & (losses.measure == "psnr_db")]
        assert set(rows.harmonizer) == {harmonizer}
        assert rows.slope_per_mm.to_numpy() == pytest.approx(slope, abs=0.02)
        assert rows.loss.to_numpy() == pytest.approx(-3.5 * slope, abs=0.1)
        assert (rows.loss_low < rows.loss).all() and (rows.loss < rows.loss_high).all()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda scores: scores[scores.subject < 9],
            "study two has subject 1, .*: accepted is that of one, 1, 10",
        ),
        (lambda scores: scores[scores.resolution != "4||0"], "study two has resolution"),
        (
            lambda scores: scores.assign(slice_step=11),
            "study two has slice_step 11: accepted is that of one, 23",
        ),
        (lambda scores: scores.assign(transform="rigid"), "study two has transform rigid"),
    ],
)
def test_studies_that_differ_in_more_than_their_harmonizer_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        comparison.losses({"one": table(-2.0), "two": change(table(-1.0, "zscore"))})


def test_one_study_is_not_compared():
    with pytest.raises(ValueError, match="studies are one: accepted are two or more"):
        comparison.losses({"one": table(-2.0)})


def test_quality_can_fall_where_a_3d_image_is_its_own_reference():
    scores = table(-2.0, "none", own_reference=True)
    verdicts, _ = judgement.verdicts(scores)
    assert verdicts.set_index("claim").verdict["C1"] == "supported"


def test_whose_a_claim_is():
    def verdict(**claims_):
        return pd.DataFrame([{"claim": c, "statement": f"of {c}", "verdict": v} for c, v in claims_.items()])

    harmonizers = {"a": "haca3", "b": "histogram", "c": "none"}
    verdicts = {
        "a": verdict(C1="supported", C2="supported", C10="supported", C3="contradicted", C4="contradicted"),
        "b": verdict(C1="supported", C2="undecided", C10="supported", C3="undecided", C4="supported"),
        "c": verdict(C1="supported", C2="contradicted", C3="supported", C4="supported"),
    }
    without = {name: verdict() for name in "ab"} | {"c": verdict(C10="").assign(reason="so")}
    without = {name: each.reindex(columns=["claim", "statement", "reason"]) for name, each in without.items()}
    beside = comparison.side_by_side(harmonizers, verdicts, without).set_index("claim")
    assert list(beside.index) == ["C1", "C2", "C3", "C4", "C10"]
    assert dict(beside.holds) == {
        "C1": "without a harmonizer too",
        "C2": "with haca3",
        "C3": "only without a harmonizer",
        "C4": "without a harmonizer too, not with haca3",
        "C10": "with haca3, histogram; without: no verdict",
    }
    assert beside.c["C10"] == comparison.NO_VERDICT


@pytest.fixture
def finished(tmp_path):
    """Folders of two finished studies."""
    for name, scores in (("one", table(-2.0)), ("two", table(-1.0, "none", own_reference=True))):
        given, without = judgement.split(judgement.verdicts(scores)[0])
        folder = tmp_path / name / "figures"
        folder.mkdir(parents=True)
        for part, each in (("scores", scores), ("verdicts", given), ("without_verdict", without)):
            each.to_csv(folder / f"{part}.csv", index=False)
    return tmp_path


def test_the_command_compares_finished_studies_and_draws(finished, capsys):
    assert cli.main(["compare", str(finished / "one"), str(finished / "two")]) == 0
    said = capsys.readouterr().out
    assert "one  T1w 7.0 (" in said
    assert "C1  + +  quality falls as slice separation grows: without a harmonizer too" in said
    written = {path.name for path in (finished / "one" / "figures").glob("*comparison*")}
    kinds = {f"figure_comparison.{kind}" for kind in ("png", "pdf", "csv")}
    assert written == {"comparison_losses.csv", "comparison_verdicts.csv", *kinds}
    drawn = pd.read_csv(finished / "one" / "figures" / "figure_comparison.csv")
    assert set(drawn.study) == {"one", "two"}
    assert (drawn.change_db[drawn.separation_mm == 3] == 0).all()


def test_a_study_that_was_not_run_is_refused_by_name(finished, capsys):
    assert cli.main(["compare", str(finished / "one"), "no-such-study"]) == 2
    assert "no-such-study/figures/scores.csv: no such table" in capsys.readouterr().err
    assert cli.main(["compare", str(finished / "one"), str(finished / "one")]) == 2
    assert "two of the name one" in capsys.readouterr().err


def test_results_of_another_harmonizer_than_the_study_file_names_are_refused(finished, tmp_path, capsys):
    study = tmp_path / "two.toml"
    study.write_text(f'output_dir = "{finished / "two"}"\nharmonizer = "histogram"\n')
    assert cli.main(["compare", str(finished / "one"), str(study)]) == 2
    message = capsys.readouterr().err
    assert "study two has harmonizer histogram, but its results in" in message
    assert "are of none: run it again" in message and message.count("\n") == 1


@pytest.mark.filterwarnings("error")
def test_studies_without_any_verdict_are_drawn_without_the_lower_half():
    scores = {"one": table(-2.0), "two": table(-1.0, "none", own_reference=True)}
    none = pd.DataFrame(
        {"claim": ["C1"], "statement": ["so"], "holds": [""], **dict.fromkeys(scores, "no verdict")}
    )
    fig, axes, _ = verdict_figures.comparison_figure(scores, none)
    assert len(axes) == len(fig.axes) == 3


def test_a_folder_of_results_is_found_as_people_write_its_path(tmp_path, monkeypatch):
    (tmp_path / "my results").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert comparing.study_of("~/my results/").output_dir == str(tmp_path / "my results")


def test_the_figure_has_a_column_for_each_study():
    studies = {"one": table(-2.0), "two": table(-1.0, "none")}
    beside = pd.DataFrame(
        [{"claim": "C1", "statement": "x", "one": "supported", "two": "no verdict", "holds": ""}]
    )
    _, axes, drawn = verdict_figures.comparison_figure(studies, beside)
    assert [label.get_text() for label in axes[3].get_xticklabels()] == ["one", "two"]
    assert len(drawn) == 2 * 3 * 3


def test_names_of_studies_do_not_overlap_in_the_figure_and_no_statement_is_cut_short():
    studies = {name: table(-2.0) for name in ("demo", "demo-histogram", "demo-none")}
    statement = "mixed beside a 3D T1w, FLAIR stays and T2w varies more at the higher resolutions"
    row = {"claim": "C11", "statement": statement, "holds": "without a harmonizer too, not with haca3"}
    fig, axes, _ = verdict_figures.comparison_figure(
        studies, pd.DataFrame([row | dict.fromkeys(studies, "supported")])
    )
    fig.draw_without_rendering()
    labels = axes[3].get_xticklabels()
    # Slanted lines of letters: their distance at right angles is more than the height of a line.
    starts = [axes[3].transData.transform((x, 0))[0] for x in axes[3].get_xticks()]
    height = labels[0].get_fontsize() / 72 * fig.dpi
    assert min(np.diff(starts)) * np.sin(np.radians(labels[0].get_rotation())) > 1.1 * height
    assert axes[3].get_yticklabels()[0].get_text().split() == f"C11 {statement}".split()
