"""The one family of errors that a user's mistake can raise."""


class FlashACEError(ValueError):
    """Bad input. The message names the thing, what was expected, what came, and what to do."""
