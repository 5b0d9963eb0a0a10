"""Super-resolution of thick slices, learnt from the slices themselves.

A slice is sharp in its own plane. Degraded there by exactly what happened through the plane
(`degradation.matrix`), it gives a pair of images to learn from; the network then works on the planes that
contain the through-plane axis [1]_ [2]_. No other images and no downloaded weights are needed, and all
stacks of one protocol share a network.

Three things are ours. The network reads the slices as acquired, not interpolated, and answers with as many
rows for each slice as the separation has millimetres: fewer pixels, so that more channels and a longer
reach cost the same. It only adds to a linear estimate, the smoothest image that has exactly these slices
(`estimate_matrix`). And of what it adds, only the part that slicing removes is used, in training as in use:
degrading the result gives back the acquired slices.

References
----------
.. [1] Zhao et al. (2021). SMORE: a self-supervised anti-aliasing and super-resolution algorithm for MRI
   using deep learning. IEEE Trans Med Imaging 40(3):805-817.
.. [2] Remedios et al. (2023). Self-supervised super-resolution for anisotropic MR images with and without
   slice gap. SASHIMI.
"""

from helpers.super_resolution.inference import super_resolve, super_resolve_plane
from helpers.super_resolution.network import SuperResolver, load
from helpers.super_resolution.training import train

__all__ = ["SuperResolver", "load", "super_resolve", "super_resolve_plane", "train"]
