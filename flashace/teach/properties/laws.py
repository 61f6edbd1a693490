"""How many laws of physics the student breaks."""

from flashace.teach.properties.property import Measured, Subject
from flashace.verify import verify


def laws(subject: Subject) -> Measured:
    """Of those of `flashace verify`, in the precisions that it has."""
    results = verify(subject.make_student, subject.atoms, subject.precisions)
    broken = [result.law for result in results if result.passed is False]
    asked = sum(result.passed is not None for result in results)
    words = f"of {asked}" + (f": {', '.join(broken)}" if broken else "")
    return Measured(float(len(broken)), "broken", "laws of `flashace verify`", words)
