"""Where a frame stands, and what is wrong with it."""

from dataclasses import dataclass

from flashace.errors import FlashACEError


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """A file and the position of a frame in it, counted from 0. Printed: "train.extxyz#17"."""

    file: str
    index: int

    def __str__(self) -> str:
        return f"{self.file}#{self.index}"


@dataclass(frozen=True)
class Fault:
    """What makes a frame, or one of its labels, unusable. Frames with the same `kind` and `subject` have the same fault."""

    origin: Origin
    kind: str  # "contradictory", "not finite", …
    subject: str  # what is at fault: a source of labels, or a part of the structure
    text: str  # what was expected and what came
    mend: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}; {self.mend}"


class FrameError(FlashACEError):
    """A fault that ends the reading; its text is that of the fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault
