"""The two kinds of subjects: simulated ones, and those of a data set of one's own.

A study file and a notebook name a subject by a number or by a label. `read_subject` makes a `Subject` of it,
which says its name, its seed and what is known about it.
"""

import re
import zlib
from dataclasses import dataclass
from typing import ClassVar

#: A subject of one's own: a BIDS label, and of several sessions which.
_LABEL = re.compile(r"[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?")
#: Labels that are not free, whatever the case: some file systems do not tell upper from lower case.
_SIMULATED_LABEL = re.compile(r"sim[0-9]+(_.*)?", re.IGNORECASE)
_TARGET_LABEL = re.compile(r"target(_.*)?", re.IGNORECASE)


@dataclass(frozen=True)
class SimulatedSubject:
    """A subject simulated from tissue maps of a real brain.

    Parameters
    ----------
    number : int
        From 1: seed of its anatomy. Images of one's own cannot have the name that it gives
        (`require_label`), so that the two never share a file.

    Examples
    --------
    >>> SimulatedSubject(1).name
    'sub-sim01'
    """

    number: int

    #: Of a simulated subject tissues and lesions are known exactly.
    simulated: ClassVar[bool] = True
    #: Whether its images may lack the contrasts that a study drops.
    may_lack_contrasts: ClassVar[bool] = False
    #: What it is, for sidecars and reports. Sidecars of earlier versions are recognised by this sentence.
    origin: ClassVar[str] = (
        "Semi-synthetic: simulated from tissue maps of real brains; not an acquisition of a person"
    )

    @property
    def name(self) -> str:
        """Its part of the names of its files."""
        return f"sub-sim{self.number:02d}"

    @property
    def literal(self) -> int:
        """What a study file calls it."""
        return self.number

    @property
    def table_value(self) -> int:
        """What the column ``subject`` of a table calls it."""
        return self.number

    @property
    def seed(self) -> int:
        """What its random numbers start from."""
        return self.number

    def __str__(self):
        return str(self.literal)


@dataclass(frozen=True)
class OwnSubject:
    """A subject of a data set of one's own, or one session of it.

    Parameters
    ----------
    label : str
        As in BIDS, ``"01"`` or ``"01_ses-2"``; ``"all"`` stands for all subjects until the data set is read.

    Examples
    --------
    >>> OwnSubject("p07_ses-2").name, OwnSubject("p07_ses-2").person
    ('sub-p07_ses-2', 'p07')
    """

    label: str

    simulated: ClassVar[bool] = False
    may_lack_contrasts: ClassVar[bool] = True
    origin: ClassVar[str] = "Prepared from images of a data set of one's own"

    @property
    def name(self) -> str:
        """Its part of the names of its files."""
        return f"sub-{self.label}"

    @property
    def literal(self) -> str:
        """What a study file calls it."""
        return self.label

    @property
    def table_value(self) -> str:
        """What the column ``subject`` of a table calls it. A label of digits would be read back as a
        number."""
        return self.name

    @property
    def seed(self) -> int:
        """What its random numbers start from: none that a number could be."""
        # A checksum, since Python's own hash of a text differs from process to process.
        return 2**32 + zlib.crc32(self.label.encode())

    @property
    def person(self) -> str:
        """The label without its session: sessions show one person."""
        return self.label.partition("_")[0]

    def __str__(self):
        return self.label


@dataclass(frozen=True)
class TargetImages(OwnSubject):
    """Images given as targets, prepared as a subject is; but each may be of another person."""

    label: str = "target"

    may_lack_contrasts: ClassVar[bool] = False


Subject = SimulatedSubject | OwnSubject

#: All subjects of a data set.
ALL = OwnSubject("all")


def read_subject(value: int | str | Subject, own_data: bool) -> Subject:
    """Return the subject that a study file or a notebook names; one that was read before as it is.

    Parameters
    ----------
    value : int or str
        Number of a simulated subject, or label of one's own. The label ``"target"`` stands for the images
        given as targets, which notebook 00 prepares.
    own_data : bool
        Whether the study has a data set: then there are labels only.

    Raises
    ------
    ValueError
        Naming the value and what is accepted.

    Examples
    --------
    >>> read_subject(2, own_data=False), read_subject("02", own_data=True)
    (SimulatedSubject(number=2), OwnSubject(label='02'))
    """
    value = value.literal if isinstance(value, Subject) else value
    if isinstance(value, str):
        if value == TargetImages().label and not own_data:
            return TargetImages()
        return OwnSubject(require_label(value))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{value!r}: accepted are whole numbers from 1, and with bids_dir labels as text (papermill -r "
            "subject LABEL)"
        )
    if own_data:
        raise ValueError(
            f"{value!r}, the number of a simulated subject: accepted with bids_dir are labels as text, such "
            f"as '{value:02d}' (papermill -r subject {value:02d})"
        )
    return SimulatedSubject(value)


def require_label(label: str) -> str:
    """Return `label` if images of one's own may have it, else raise one line that says why not.

    Raises
    ------
    ValueError
        If it is no label of BIDS, or would give files of one's own the names of a simulated subject's or of a
        target's.

    Examples
    --------
    >>> require_label("01_ses-2")
    '01_ses-2'
    """
    if not _LABEL.fullmatch(label):
        raise ValueError(f"{label!r}: accepted are labels of letters and digits, such as '01' or '01_ses-2'")
    if _SIMULATED_LABEL.fullmatch(label):
        raise ValueError(
            f"{label!r}, as files of simulated subjects are named: accepted are other labels than sim and "
            "digits"
        )
    if _TARGET_LABEL.fullmatch(label):
        raise ValueError(
            f"{label!r}, as files of images given as targets are named: accepted are other labels than target"
        )
    return label
