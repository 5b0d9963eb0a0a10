"""Why the verdicts differ from the paper: tables that `make results` derives from the studies that it ran,
and copies here.

why_mask.csv
    What a 3D source adds to each output, with the mask of the first source (ten) and with the union of all
    masks (ten-union).
why_noise.csv
    Through-plane cut-offs with sampled anatomy labels (ten-coronal) and with the most probable ones
    (ten-argmax), drawn without noise.
why_fusion.csv
    PSNR of slices in three planes (scores.csv of ten) and of whole volumes fused from them (whole).
why_resolution.csv
    What fusion by resolution gains in each plane of reconstruction (ten, ten-coronal, ten-sagittal).
why_registration.csv
    How far off each stack lies that ANTs registered (ladder-rigid, ladder-affine): mean over the brain, in
    mm.
figure_ladder
    Scores at 5||1.5, means over the experiments, with the known, a rigid and an affine transform (ladder,
    ladder-rigid, ladder-affine).
"""

import pandas as pd

from helpers import layout
from helpers.analysis import figures
from helpers.pipeline import finished, folders, scoring
from helpers.study.file import Study

TEN = Study.from_toml(layout.ROOT / "studies" / "ten.toml")


def inside(scores):
    """Those of the harmonized images inside the brain."""
    return scores[(scores.arm == "harmonized") & (scores.region == "brain")]


def mask():
    keys = ["mask", "contrast", "subject", "experiment"]
    mean = (
        inside(finished.other_studies(["ten", "ten-union"]))
        .groupby(keys)[["psnr_db", "ssim_axial"]]
        .mean()
        .unstack("experiment")
    )
    gains = {
        f"{sharp} - 1a": mean.xs(sharp, axis=1, level=1) - mean.xs("1a", axis=1, level=1)
        for sharp in ("3", "5")
    }
    gains = pd.concat(gains, names=["comparison"]).reset_index()
    return gains[["mask", "comparison", "contrast", "subject", "psnr_db", "ssim_axial"]].sort_values(
        ["mask", "comparison", "contrast", "subject"]
    )


def noise():
    cutoffs = scoring.cutoffs(finished.other_studies(["ten-coronal", "ten-argmax"], "frequencies"))
    cutoffs = cutoffs[cutoffs.experiment.isin(["1a", "1b"])]
    both = cutoffs.groupby("subject").anatomy.transform("nunique") == 2
    keys = ["anatomy", "subject", "experiment", "resolution", "contrast", "arm"]
    return cutoffs.loc[both, [*keys, "cutoff_per_mm"]].sort_values(keys)


def fusion():
    keys = ["subject", "experiment", "resolution", "contrast"]
    planes = pd.read_csv(
        folders.figures_folder(TEN) / "scores.csv", dtype={"experiment": str, "resolution": str}
    )
    both = {"mean over planes": planes, "fused": finished.other_studies(["whole"])}
    both = {how: inside(scores).set_index(keys).psnr_db for how, scores in both.items()}
    wanted = both["fused"].index
    return pd.concat(
        {how: psnr_db.loc[wanted] for how, psnr_db in both.items()}, names=["reconstruction"]
    ).reset_index()


def resolution():
    scores = finished.other_studies(["ten", "ten-coronal", "ten-sagittal"])
    arms = ["harmonized, resolution-aware", "harmonized"]
    scores = scores[scores.arm.isin(arms) & (scores.region == "brain")]
    keys = ["reconstruction", "experiment", "resolution", "contrast"]
    aware, plain = (scores[scores.arm == arm].groupby(keys).psnr_db.mean() for arm in arms)
    return (aware - plain).rename("gain_db").reset_index()


def registration():
    errors = finished.other_studies(["ladder-rigid", "ladder-affine"], "registrations")
    keys = ["transform", "resolution", "contrast", "orientation", "subject"]
    return errors[[*keys, "registration_error_mm"]].sort_values(keys)


def draw_ladder():
    studies = ["ladder", "ladder-rigid", "ladder-affine"]
    fig, _, drawn = figures.ladder_figure(
        finished.other_studies(studies), finished.other_studies(studies, "registrations")
    )
    folders.save_figure(TEN, "ladder", fig, drawn)


if __name__ == "__main__":
    folders.save_tables(
        TEN, {f"why_{table.__name__}": table() for table in (mask, noise, fusion, resolution, registration)}
    )
    draw_ladder()
