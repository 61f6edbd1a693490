"""Distances in, radial basis functions and the envelope that ends them out. A new basis is a file here, and its name in `RADIAL_BASES`."""

from flashace.nn.radial.bessel import BesselBasis
from flashace.nn.radial.envelope import mean_envelope, never_closer, polynomial_envelope
from flashace.nn.radial.gaussian import GaussianBasis

__all__ = ["BesselBasis", "GaussianBasis", "mean_envelope", "never_closer", "polynomial_envelope"]
