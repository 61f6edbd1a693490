"""The one family of errors that a user's mistake can raise, and the warnings that `warnings.filterwarnings` can tell apart."""


class FlashACEError(ValueError):
    """Bad input. The message names the thing, what was expected, what came, and what to do."""


class ShortDistanceWarning(UserWarning):
    """Two atoms are closer than any such pair of the training data."""


class CoordinationWarning(UserWarning):
    """An atom has far fewer or far more neighbours than any atom of its element in the training data."""


class FreeAtomsWarning(UserWarning):
    """The model was fitted without isolated atoms, so its energies at low density mean nothing."""


class UnfamiliarWarning(UserWarning):
    """A structure is unlike the training data as a whole, as an expanded or molten one is to a model of crystals."""


class UncertaintyWarning(UserWarning):
    """The energy of an atom is more uncertain than `warn_uncertainty`."""


class PrecisionWarning(UserWarning):
    """Energies in float32 are subtracted from each other whose difference float32 does not resolve."""
