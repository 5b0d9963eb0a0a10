"""HACA3 (Zuo et al. 2023): harmonize MR images with `load` and `Harmonizer.harmonize`."""

from helpers.haca3.harmonizer import Harmonized, Harmonizer, load
from helpers.haca3.inputs import Encoding, Target
from helpers.haca3.resolution import Acquisition

__all__ = ["Acquisition", "Encoding", "Harmonized", "Harmonizer", "Target", "load"]
