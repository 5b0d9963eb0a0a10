"""Which protocol to acquire, by a surface fitted to a study's scores and by scan time.

**The surface.** For each orientation, expected score = a quadratic in slice thickness and gap without the
square of the gap, for which most studies have too few gaps. It is fitted by least squares to all subjects at
once (statsmodels). Its intervals treat each subject as a cluster, so that they hold for other subjects, not
only for other slices of the same ones [1]_. Between the resolutions that were run the surface interpolates.
Outside their convex hull nothing is predicted.

References
----------
.. [1] Liang, Zeger (1986). Longitudinal data analysis using generalized linear models.
   Biometrika 73(1):13-22.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from helpers.protocol import scan_time
from helpers.study import ARMS, CONTRASTS, require

#: Experiments in which all contrasts are acquired alike: orientation and resolution are those of the whole
#: protocol.
ALIKE = ("1a", "1b", "1c")

MEASURES = ("psnr_db", "ssim", "ssim_axial", "ssim_coronal", "ssim_sagittal")

#: Target of the surface that averages the three contrasts of each subject.
MEAN = "mean"


@dataclass(frozen=True)
class Surface:
    """Expected score over thickness, gap and orientation, of a study in which all contrasts are acquired
    alike.

    Parameters
    ----------
    measure, arm, region, contrast : str
        What was fitted.
    model : statsmodels RegressionResults
        With clustered covariance.
    run : dict
        Orientation -> ndarray, shape (n, 2): thickness and gap in mm of the resolutions that were run.
    subjects : int
        Clusters. An interval has one degree of freedom less.
    residual : float
        Root mean square of what the surface leaves of the means over subjects, in the units of the measure:
        its lack of fit.
    compares_orientations : bool
        False if the study looked at its images in one plane only, as a preview does: then scores of different
        orientations are not comparable.
    """

    measure: str
    arm: str
    region: str
    contrast: str
    model: object
    run: Mapping[str, np.ndarray]
    subjects: int
    residual: float
    compares_orientations: bool

    @property
    def note(self) -> str:
        """The data and the fit of the surface in one or two sentences."""
        text = f"{self.measure} inside {self.region}, arm {self.arm}, contrast {self.contrast}; "
        text += f"{self.subjects} subjects, lack of fit {self.residual:.2g}."
        if self.subjects < 5:
            text += f" With {self.subjects} subjects the intervals are wide, and should be."
        if not self.compares_orientations:
            text += (
                " The study looked at its images in one plane: compare protocols within an orientation, not "
                "across."
            )
        return text


def fit(
    table: pd.DataFrame,
    measure: str = "psnr_db",
    *,
    contrast: str = MEAN,
    arm: str = "harmonized",
    region: str = "brain",
) -> Surface:
    """Fit the surface to a score table.

    Parameters
    ----------
    table : DataFrame
        The score table of one study (`helpers.pipeline.scoring.all_scores`). Its experiments 1a to 1c are
        used.
    measure : str
        Score column, one of `MEASURES`.
    contrast : str
        One of the study's contrasts, or ``"mean"``: the average of the three within each subject, resolution
        and orientation.
    arm : str
        ``input``: without any harmonizer; or one of `helpers.study.ARMS` that the study has.
    region : {"brain", "full"}

    Raises
    ------
    ValueError
        If columns are missing, the table mixes studies, no experiment of 1a to 1c is there, there is a single
        subject, or the resolutions are too few to determine a surface.
    """
    import statsmodels.api as sm

    require("measure", measure, MEASURES)
    require("contrast", contrast, (MEAN, *CONTRASTS))
    require("arm", arm, (*ARMS, "input"))
    require("region", region, ("brain", "full"))
    cells = _cells(table, measure, contrast, arm, region)
    point = ["subject", "orientation", "thickness_mm", "gap_mm"]
    if cells.empty:
        wanted = (
            f"{measure} of experiments {', '.join(ALIKE)}, arm {arm}, region {region}, contrast {contrast}"
        )
        raise ValueError(f"score table has no {wanted}: accepted is a study with one of them")
    subjects = cells["subject"].nunique()
    if subjects < 2:
        raise ValueError(
            "score table has 1 subject: accepted are 2 or more, since the intervals come from the "
            "differences between them"
        )
    run = {
        name: rows[["thickness_mm", "gap_mm"]].drop_duplicates().to_numpy(float)
        for name, rows in cells.groupby("orientation")
    }
    for name, points in run.items():
        terms = _terms(*points.T)
        if np.linalg.matrix_rank(terms) < terms.shape[1]:
            enough = f"{terms.shape[1]} or more, of three thicknesses and with gaps"
            raise ValueError(
                f"score table has {len(points)} {name} resolutions, which determine no surface: accepted "
                f"are {enough}"
            )
    clusters = {"groups": pd.factorize(cells["subject"])[0]}
    model = sm.OLS(cells["score"].to_numpy(), _design(run, cells)).fit(
        cov_type="cluster", cov_kwds=clusters, use_t=True
    )
    left = cells.assign(left=model.resid).groupby(point[1:])["left"].mean()
    in_one_plane = bool("reconstruction" in table and "+" not in str(table["reconstruction"].iloc[0]))
    return Surface(
        measure,
        arm,
        region,
        contrast,
        model,
        run,
        subjects,
        float(np.sqrt(np.mean(left**2))),
        not in_one_plane,
    )


def _cells(table: pd.DataFrame, measure: str, contrast: str, arm: str, region: str) -> pd.DataFrame:
    """The score of each subject at each orientation and resolution that was run, all contrasts alike."""
    needed = (
        "subject",
        "experiment",
        "thickness_mm",
        "gap_mm",
        "contrast",
        "orientation",
        "arm",
        "region",
        measure,
    )
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f"score table has no column {', '.join(missing)}: accepted is the table of a study")
    for name in ("reconstruction", "transform", "anatomy", "mask", "slice_step", "seed"):
        if name in table and table[name].nunique() > 1:
            raise ValueError(
                f"score table has {name} {', '.join(map(str, table[name].unique()))}: accepted is the table "
                "of one study"
            )
    rows = table[
        table["experiment"].isin(ALIKE)
        & (table["arm"] == arm)
        & (table["region"] == region)
        & np.isfinite(table[measure])
    ]
    if contrast != MEAN:
        rows = rows[rows["contrast"] == contrast]
    point = ["subject", "orientation", "thickness_mm", "gap_mm"]
    cells = rows.groupby(point)[measure].agg(["mean", "size"]).reset_index()
    # A mean over fewer contrasts would be another quantity.
    whole = cells["size"] == (len(CONTRASTS) if contrast == MEAN else 1)
    return cells[whole].rename(columns={"mean": "score"})


def inside(surface: Surface, protocols: pd.DataFrame) -> np.ndarray:
    """Which protocols lie within the convex hull of the resolutions that were run in their orientation.

    Parameters
    ----------
    protocols : DataFrame
        ``thickness_mm``, ``gap_mm``, ``orientation``.

    Returns
    -------
    ndarray, shape (n,), bool
    """
    from scipy.spatial import Delaunay

    known = np.zeros(len(protocols), dtype=bool)
    for name, points in surface.run.items():
        these = (protocols["orientation"] == name).to_numpy()
        # A tolerance, so that the resolutions at the corners are inside themselves.
        known[these] = (
            Delaunay(points).find_simplex(
                protocols.loc[these, ["thickness_mm", "gap_mm"]].to_numpy(float), tol=1e-9
            )
            >= 0
        )
    return known


def predict(surface: Surface, protocols: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Expected score of protocols, with an interval for the mean over subjects.

    Parameters
    ----------
    protocols : DataFrame
        ``thickness_mm``, ``gap_mm``, ``orientation``; other columns are kept.
    level : float
        Of the interval, between 0 and 1.

    Returns
    -------
    DataFrame
        The protocols with ``expected``, ``low``, ``high`` (in the units of the measure) and ``inside``.
        Outside what was run the three are NaN: the surface is not continued.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: accepted are numbers between 0 and 1")
    result = protocols.assign(expected=np.nan, low=np.nan, high=np.nan, inside=inside(surface, protocols))
    if result["inside"].any():
        test = surface.model.t_test(_design(surface.run, result[result["inside"]]))
        result.loc[result["inside"], ["expected", "low", "high"]] = np.column_stack(
            [test.effect, test.conf_int(1 - level)]
        )
    return result


def _terms(thickness_mm: np.ndarray, gap_mm: np.ndarray) -> np.ndarray:
    """The terms of the surface within an orientation, shape (n, 5), centred on 4 mm slices for the sake of
    the numbers."""
    t = thickness_mm - 4
    return np.column_stack([np.ones_like(t), t, gap_mm, t**2, t * gap_mm])


def _design(run: Mapping, protocols: pd.DataFrame) -> np.ndarray:
    """The terms of each protocol in the columns of its orientation, shape (n, 5 orientations)."""
    terms = _terms(protocols["thickness_mm"].to_numpy(float), protocols["gap_mm"].to_numpy(float))
    return np.hstack([terms * (protocols["orientation"] == name).to_numpy()[:, None] for name in run])


def candidates(surface: Surface, thickness_step_mm: float = 0.5, gap_step_mm: float = 0.25) -> pd.DataFrame:
    """A grid of protocols between those that were run, with these themselves.

    Returns
    -------
    DataFrame
        ``orientation``, ``thickness_mm``, ``gap_mm``; all inside.
    """
    grids = []
    for name, points in surface.run.items():
        ends = zip(points.min(0), points.max(0), (thickness_step_mm, gap_step_mm), strict=True)
        axes = [np.arange(low, high + step / 2, step) for low, high, step in ends]
        grid = np.vstack([points, np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)]).round(
            6
        )
        grids.append(
            pd.DataFrame(np.unique(grid, axis=0), columns=["thickness_mm", "gap_mm"]).assign(orientation=name)
        )
    protocols = pd.concat(grids, ignore_index=True)
    return protocols[inside(surface, protocols)].reset_index(drop=True)[
        ["orientation", "thickness_mm", "gap_mm"]
    ]


def advise(surface: Surface, protocols: pd.DataFrame, minutes: float, level: float = 0.95) -> pd.DataFrame:
    """Protocols that fit into given minutes, the highest expected score first.

    Parameters
    ----------
    protocols : DataFrame
        With `helpers.protocol.scan_time.scan_times`. Those outside what was run, or too long, are left out.
    minutes : float
        For all contrasts together.
    level : float
        Of the intervals.

    Returns
    -------
    DataFrame
        The protocols that fit with ``expected``, ``low``, ``high``; ``behind``, ``behind_low``,
        ``behind_high``: the difference to the best one with its interval, paired within subjects; and
        ``tied``: whether that interval holds 0. Best is the best of all, or of each orientation where
        orientations cannot be compared (see `Surface`). Empty if nothing fits.
    """
    scan_time.require_number("minutes", minutes, 0, above=True)
    scored = predict(surface, protocols, level)
    scored = scored[scored["inside"] & (scored["minutes"] <= minutes)].drop(columns="inside")
    scored = scored.sort_values(["expected", "minutes"], ascending=[False, True])
    groups = (
        [scored]
        if surface.compares_orientations
        else [rows for _, rows in scored.groupby("orientation", sort=False)]
    )
    ranked = [_behind(surface, rows, level) for rows in groups if len(rows)]
    return pd.concat(ranked, ignore_index=True) if ranked else _behind(surface, scored, level)


def with_remedy(
    table: pd.DataFrame,
    minutes: float,
    measure: str = "psnr_db",
    *,
    contrast: str = MEAN,
    region: str = "brain",
    inplane_mm: float = 1.0,
    level: float = 0.95,
) -> pd.DataFrame:
    """Compare thinner slices with thicker ones that are super-resolved, at the resolutions that were run.

    These may be too few for a surface. Where all contrasts are acquired alike, super-resolution is the only
    remedy: fusion by resolution changes nothing there.

    Parameters
    ----------
    table : DataFrame
        Score table of a study with that remedy.
    minutes : float
        For all contrasts together.
    measure, contrast, region
        As in `fit`.
    inplane_mm : float
        Resolution along the phase encoding.
    level : float
        Of the intervals.

    Returns
    -------
    DataFrame
        A row per orientation, resolution and arm, the highest score first within an orientation: ``minutes``,
        ``fits``, ``score`` (mean over subjects) and ``ahead``, ``ahead_low``, ``ahead_high``: its difference
        to the best without a remedy that fits, paired within subjects (t interval; NaN with one subject, or
        where nothing fits).

    Raises
    ------
    ValueError
        As `fit`, and if the study has no such remedy.
    """
    require("measure", measure, MEASURES)
    require("contrast", contrast, (MEAN, *CONTRASTS))
    scan_time.require_number("minutes", minutes, 0, above=True)
    plain, remedied = "harmonized", "harmonized, super-resolved"
    protocol = ["orientation", "thickness_mm", "gap_mm"]
    cells = pd.concat(
        [_cells(table, measure, contrast, arm, region).assign(arm=arm) for arm in (plain, remedied)]
    )
    if remedied not in set(cells["arm"]):
        raise ValueError(
            f"score table has no arm {remedied!r} of experiments {', '.join(ALIKE)}: accepted is a study "
            "with remedies = ['super-resolution'], such as studies/remedies.toml"
        )
    times = scan_time.scan_times(
        cells[protocol].drop_duplicates().reset_index(drop=True), inplane_mm=inplane_mm
    )
    scores = cells.pivot(index="subject", columns=[*protocol, "arm"], values="score")
    rows = []
    for _, group in times.groupby("orientation", sort=False):
        keys = [
            (tuple(geometry), arm, time)
            for *geometry, time in group[[*protocol, "minutes"]].itertuples(index=False)
            for arm in (plain, remedied)
        ]
        fitting = [scores[*key, arm] for key, arm, time in keys if arm == plain and time <= minutes]
        best = max(fitting, key=lambda geometry: geometry.mean(), default=np.nan)
        for key, arm, time in keys:
            ahead = (scores[*key, arm] - best).dropna()
            n, half = len(ahead), np.nan
            if n > 1:
                half = stats.t.ppf((1 + level) / 2, n - 1) * ahead.std(ddof=1) / math.sqrt(n)
            rows.append(
                {
                    **dict(zip(protocol, key, strict=True)),
                    "arm": arm,
                    "minutes": time,
                    "fits": time <= minutes,
                    "score": scores[*key, arm].mean(),
                    "ahead": ahead.mean(),
                    "ahead_low": ahead.mean() - half,
                    "ahead_high": ahead.mean() + half,
                }
            )
    return pd.DataFrame(rows).sort_values(
        ["orientation", "score"], ascending=[True, False], ignore_index=True
    )


def _behind(surface: Surface, rows: pd.DataFrame, level: float) -> pd.DataFrame:
    rows = rows.assign(behind=0.0, behind_low=0.0, behind_high=0.0, tied=True)
    if len(rows) > 1:
        design = _design(surface.run, rows)
        test = surface.model.t_test(design[:1] - design[1:])
        low, high = test.conf_int(1 - level).T
        for name, values in {
            "behind": test.effect,
            "behind_low": low,
            "behind_high": high,
            "tied": low <= 0,
        }.items():
            rows[name] = np.concatenate([rows[name].to_numpy()[:1], values])
    return rows
