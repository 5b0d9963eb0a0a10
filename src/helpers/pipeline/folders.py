"""The folder of a study: its place, its description as a BIDS derivative, its figures and the tables beside
them."""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from helpers import layout
from helpers.cohort import origins
from helpers.pipeline import cache
from helpers.study.file import Study
from helpers.volumes.files import write_bytes


def folder(plan: Study) -> Path:
    """Where the study's results are, or will be."""
    return Path(plan.output_dir) if plan.output_dir else layout.DERIVATIVES / plan.name


def title(plan: Study) -> str:
    """The name of the results in their own description."""
    return f"resolution-matters: {plan.name}"


def root(plan: Study) -> Path:
    """Folder of the study's results, made and described as a BIDS derivative."""
    results = folder(plan)
    path = results / "dataset_description.json"
    # Only the first notebook knows the data set of the images: the others do not change its description.
    if not path.exists() or (plan.bids_dir and origins.data_set(results) != plan.bids_dir):
        if plan.bids_dir:
            origins.refuse_mixture(results, plan.subjects[0])
        ours, *others = cache.software()
        description = {
            "Name": title(plan),
            "BIDSVersion": "1.10.0",
            "DatasetType": "derivative",
            "GeneratedBy": [{**ours, "Description": plan.subjects[0].origin}, *others],
        }
        if plan.bids_dir:
            # Relative, as it would be shared: BIDS takes it from this folder.
            description["DatasetLinks"] = {"source": os.path.relpath(plan.bids_dir, results)}
            description["SourceDatasets"] = [{"URL": os.path.relpath(plan.bids_dir, results)}]
        # Names without a slash: to the validator a pattern with one is not that of a folder.
        write_bytes(results / ".bidsignore", b"tables\nreport\nfigures\nencodings\nresolvers\n")
        write_bytes(path, json.dumps(description, indent=2).encode() + b"\n")
    return results


def figures_folder(plan: Study) -> Path:
    """Where the study's figures are, or will be: beside its other results."""
    return folder(plan) / "figures"


def save_tables(plan: Study, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables beside the figures, such as those on which the verdicts rest, so that a reader can check
    figures and verdicts."""
    for name, table in tables.items():
        write_bytes(
            figures_folder(plan) / f"{name}.csv", table.to_csv(index=False, float_format="%.6g").encode()
        )


def save_figure(plan: Study, name: int | str, fig, drawn: pd.DataFrame) -> Path:
    """Write a figure, the paper's by its number, ours by a name, as PNG and PDF beside the CSV of what was
    drawn; return the PNG's path."""
    stem = figures_folder(plan) / f"figure_{name}"
    # Without a date: same figure, same bytes.
    for suffix, facts in ((".png", {}), (".pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix[1:], dpi=200, metadata=facts)
        write_bytes(stem.with_suffix(suffix), buffer.getvalue())
    write_bytes(stem.with_suffix(".csv"), drawn.to_csv(index=False, float_format="%.6g").encode())
    return stem.with_suffix(".png")
