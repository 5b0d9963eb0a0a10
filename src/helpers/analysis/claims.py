"""The list of claims: what the paper says, and which comparisons have to hold for it.

`helpers.analysis.claim_comparisons` makes the comparisons, `helpers.analysis.judgement` the verdicts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from helpers.analysis import claim_comparisons as compare, statistics, tables
from helpers.study import CONTRASTS, ONE_ORIENTATION


@dataclass(frozen=True)
class Claim:
    """A statement of the paper and how it is tested.

    Attributes
    ----------
    id : str
    statement : str
    experiments : str
        Those that it speaks of.
    comparisons : callable
        Of `helpers.analysis.claim_comparisons`: `Data` -> iterable of `Comparison`; raises `NotRun`.
    all_planes : bool
        It compares orientations, which only a reconstruction in all three planes treats alike.
    own_source : tuple of str
        Contrasts of which it says what their own source does, or does not do, to their output.
    own_resolutions : bool
        It names its resolutions, instead of taking all that the study has.
    """

    id: str
    statement: str
    experiments: str
    comparisons: Callable[[tables.Data], Iterable[statistics.Comparison]]
    all_planes: bool = False
    own_source: tuple[str, ...] = ()
    own_resolutions: bool = False


#: In the order and the words of the study's plan.
CLAIMS = (
    Claim("C1", "quality falls as slice separation grows", "all", compare.falls_with_separation),
    Claim(
        "C2",
        "3||1 and 4||0 (separation 4 mm) score alike",
        "1a-c",
        compare.same_separation("3||1", "4||0"),
        own_resolutions=True,
    ),
    Claim(
        "C3",
        "4||1 and 5||0 (separation 5 mm) score alike",
        "1a-c",
        compare.same_separation("4||1", "5||0"),
        own_resolutions=True,
    ),
    Claim(
        "C4",
        "axial inputs are best",
        "1a, 1b, 1c",
        compare.differences(
            "above zero", *compare.all_contrasts("1a", "1b"), *compare.all_contrasts("1a", "1c")
        ),
        True,
    ),
    Claim("C5", "performance is consistent when all orientations agree", "1a-c", compare.consistent),
    Claim(
        "C6", "sagittal inputs vary most, T2w above all", "1b", compare.sagittal_varies_most, True, ("T2w",)
    ),
    Claim(
        "C7",
        "mixing orientations does not help, or hurts",
        "2, 1a-c",
        # T1w is axial in experiment 2: it is matched with 1a already.
        compare.differences(
            "not above zero", *compare.all_contrasts("2", "1a"), ("2", "1b", "T2w"), ("2", "1c", "FLAIR")
        ),
        True,
    ),
    Claim(
        "C8",
        "a 3D T1w improves the T1w output",
        "3, 1a",
        compare.differences("above zero", ("3", "1a", "T1w")),
    ),
    Claim(
        "C9",
        "a 3D T1w does not change the T2w and FLAIR outputs",
        "3, 1a",
        compare.differences("similar", ("3", "1a", "T2w"), ("3", "1a", "FLAIR")),
        own_source=("T2w", "FLAIR"),
    ),
    Claim(
        "C10",
        "with a 3D T1w, mixing orientations does not help either",
        "4, 3",
        compare.differences("not above zero", *compare.all_contrasts("4", "3")),
        True,
    ),
    Claim(
        "C11",
        "mixed beside a 3D T1w, FLAIR stays and T2w varies more at the higher resolutions",
        "4, 3",
        compare.flair_stays_t2w_varies,
    ),
    Claim(
        "C12",
        "a 3D FLAIR improves the FLAIR output",
        "5, 1a",
        compare.differences("above zero", ("5", "1a", "FLAIR")),
    ),
    Claim(
        "C13",
        "with a 3D FLAIR, mixing orientations has no major impact",
        "6, 5",
        compare.differences("similar", *compare.all_contrasts("6", "5")),
        True,
    ),
    Claim(
        "C14",
        "a 3D scan helps its own contrast only",
        "3, 5, 1a",
        compare.own_contrast_only,
        own_source=CONTRASTS,
    ),
    Claim(
        "C15",
        "the best 2D inputs have one orientation and the highest resolution",
        "1a-c, 2",
        compare.best_is_alike_and_fine,
    ),
    Claim("C16", "the harmonizer does not super-resolve", "1a-c", compare.no_super_resolution, True),
    Claim("C17", "the attention sees contrast, not resolution", "3-6", compare.attention_sees_contrast_only),
    Claim(
        "C18",
        "part of the loss is registration error",
        "all",
        compare.registration_costs,
        own_resolutions=True,
    ),
)


#: Claims about the remedies, in the words of the study's plan: a family of its own.
REMEDY_CLAIMS = (
    Claim(
        "R1",
        "super-resolution raises the harmonized image's score where all sources are sliced alike",
        "1a-c",
        compare.remedy_gains("harmonized, super-resolved", ONE_ORIENTATION),
    ),
    Claim(
        "R2",
        "super-resolution raises the harmonized image's score by more than that of the input",
        "1a-c",
        compare.output_gains_more_than_input,
        own_source=CONTRASTS,
    ),
    Claim(
        "R3",
        "fusion by resolution raises the score where sources differ in resolution",
        "3-6",
        compare.remedy_gains("harmonized, resolution-aware", ("3", "4", "5", "6")),
    ),
    Claim(
        "R4",
        "fused by resolution, a 3D scan of one contrast helps the other contrasts",
        "3, 5, 1a",
        compare.fused_differences(
            ("3", "1a", "T2w"), ("3", "1a", "FLAIR"), ("5", "1a", "T1w"), ("5", "1a", "T2w")
        ),
        own_source=CONTRASTS,
    ),
    Claim(
        "R5",
        "fused by resolution, mixing orientations helps",
        "2, 4, 6, 1a-c",
        compare.fused_differences(
            *compare.all_contrasts("2", "1a"),
            ("2", "1b", "T2w"),
            ("2", "1c", "FLAIR"),
            *compare.all_contrasts("4", "3"),
            *compare.all_contrasts("6", "5"),
        ),
        True,
    ),
    Claim(
        "R6",
        "super-resolution and fusion by resolution together recover more than either",
        "all",
        compare.both_recover_more,
    ),
    Claim(
        "R7",
        "a network trained on sources of differing resolution raises the score where they differ",
        "2-6",
        compare.remedy_gains("harmonized, resolution-trained", ("2", "3", "4", "5", "6")),
    ),
)


#: Claims about downstream measures of thick slices, against those in the harmonized 3D images: another
#: family.
DOWNSTREAM = (
    Claim(
        "D1",
        "the error of lesion volume grows with slice separation",
        "1a-c",
        compare.error_grows("lesion_ml"),
    ),
    Claim(
        "D2",
        "the error of grey matter volume grows with slice separation",
        "1a-c",
        compare.error_grows("grey_ml"),
    ),
    Claim(
        "D3",
        "the share of missed small lesions grows with slice separation",
        "1a-c",
        compare.error_grows("missed_small"),
    ),
    Claim("D4", "each remedy brings some of all three back", "all", compare.remedies_help),
)
