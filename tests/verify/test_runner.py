"""All laws are asked, and each has its name."""

from pathlib import Path

from flashace import verify
from flashace.verify.law import DEFINED


def test_every_law_is_asked() -> None:
    """A file of laws that is not among those of the runner would say nothing."""
    assert {*verify.LAWS, *verify.LAWS_BETWEEN_CALCULATORS} == set(DEFINED)


def test_each_law_has_its_name_and_no_file_has_the_same() -> None:
    assert all(getattr(verify, law.__name__) is law for law in DEFINED)
    assert not {law.__name__ for law in DEFINED} & {file.stem for file in Path(verify.__file__).parent.glob("*.py")}
