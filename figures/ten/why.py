"""Why the verdicts differ from the paper: writes the tables why_*.csv beside this file, of studies that were run (``make results``).

why_mask.csv
    What a 3D source adds to each output, with the mask of the first source (ten) and with the union of all masks (ten-union).
why_noise.csv
    Through-plane cut-offs with sampled anatomy labels (ten-coronal) and with the most probable ones (ten-argmax), which have no noise.
why_fusion.csv
    PSNR of slices in three planes (scores.csv, beside this file) and of whole volumes fused from them (whole).
"""

from pathlib import Path

import pandas as pd
from helpers import stages

HERE = Path(__file__).parent


def inside(scores):
    """Those of the harmonized images inside the brain."""
    return scores[(scores.arm == "harmonized") & (scores.region == "brain")]


def mask():
    keys = ["mask", "contrast", "subject", "experiment"]
    mean = inside(stages.other_studies(["ten", "ten-union"])).groupby(keys)[["psnr_db", "ssim_axial"]].mean().unstack("experiment")
    gains = {f"{sharp} - 1a": mean.xs(sharp, axis=1, level=1) - mean.xs("1a", axis=1, level=1) for sharp in ("3", "5")}
    gains = pd.concat(gains, names=["comparison"]).reset_index()
    return gains[["mask", "comparison", "contrast", "subject", "psnr_db", "ssim_axial"]].sort_values(["mask", "comparison", "contrast", "subject"])


def noise():
    cutoffs = stages.cutoffs(stages.other_studies(["ten-coronal", "ten-argmax"], "frequencies"))
    cutoffs = cutoffs[cutoffs.experiment.isin(["1a", "1b"])]
    both = cutoffs.groupby("subject").anatomy.transform("nunique") == 2
    return cutoffs.loc[both, ["anatomy", "subject", "experiment", "resolution", "contrast", "arm", "cutoff_per_mm"]]


def fusion():
    keys = ["subject", "experiment", "resolution", "contrast"]
    planes = pd.read_csv(HERE / "scores.csv", dtype={"experiment": str, "resolution": str})
    both = {"mean over planes": planes, "fused": stages.other_studies(["whole"])}
    both = {how: inside(scores).set_index(keys).psnr_db for how, scores in both.items()}
    wanted = both["fused"].index
    return pd.concat({how: psnr_db.loc[wanted] for how, psnr_db in both.items()}, names=["reconstruction"]).reset_index()


if __name__ == "__main__":
    for table in (mask, noise, fusion):
        table().to_csv(HERE / f"why_{table.__name__}.csv", index=False, float_format="%.6g")
