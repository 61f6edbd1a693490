"""The name of a teacher in; calculators that label, and what is known of it, out."""

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols

from flashace.errors import FlashACEError
from flashace.verify.calculators import calculator_factory


def _elements(*ranges: tuple[int, int]) -> frozenset[str]:
    """Symbols of the atomic numbers from … to …"""
    return frozenset(symbol for first, last in ranges for symbol in chemical_symbols[first : last + 1])


MATERIALS_PROJECT = _elements((1, 83), (89, 94))  # the 89 elements of MPtrj: nothing was learned of Po, At, Rn, Fr and Ra


@dataclass(frozen=True)
class Known:
    """A teacher that has a short name."""

    factory: str  # module:Class, called with `arguments`
    package: str  # that it needs, by the name to import
    extra: str  # of FlashACE, which installs that; "" for what every installation has
    arguments: tuple[str, ...] = ()
    licence: str = ""  # of method or weights
    what: str = ""
    elements: frozenset[str] = frozenset()  # that it knows; none named: the calculator itself says


KNOWN = {
    "emt": Known("ase.calculators.emt:EMT", "ase", "", licence="LGPL (ASE)", what="effective medium theory: Al, Cu, Ag, Au, Ni, Pd, Pt"),
    "tblite": Known(
        "tblite.ase:TBLite",
        "tblite",
        "tblite",
        ("method=GFN2-xTB", "verbosity=0"),
        "LGPL-3.0 (tblite)",
        "GFN2-xTB: molecules of H to Rn",
        _elements((1, 86)),
    ),
    "chgnet": Known(
        "chgnet.model.dynamics:CHGNetCalculator",
        "chgnet",
        "chgnet",
        ("use_device=cpu",),
        "BSD-3-Clause, modified (CHGNet); trained on the Materials Project (CC-BY-4.0)",
        "CHGNet: crystals of 89 elements, PBE(+U)",
        MATERIALS_PROJECT,
    ),
    "sevennet": Known(
        "sevenn.calculator:SevenNetCalculator",
        "sevenn",
        "sevennet",
        ("model=7net-0", "device=cpu"),
        "GPL-3.0 (SevenNet); trained on the Materials Project (CC-BY-4.0)",
        "SevenNet-0 (model=7net-l3i5: a better and slower one): crystals of 89 elements, PBE(+U)",
        MATERIALS_PROJECT,
    ),
    "diep": Known(
        "diep.pretrained:make_calculator",
        "diep",
        "diep",
        ("device=cpu",),
        "BSD-3-Clause (DIEP); trained on MatPES",
        "DIEP: crystals of 89 elements, r2SCAN",
        MATERIALS_PROJECT,
    ),
}


@dataclass(frozen=True)
class Teacher:
    """Text, so that it travels to other processes; a calculator is made where it is needed."""

    name: str  # as the user typed it
    arguments: tuple[str, ...] = field(default=())  # name=value

    @property
    def source(self) -> str:
        """Name and arguments, as labels keep them: the same for the same teacher."""
        return " ".join((self.name, *sorted(self.arguments)))

    @property
    def known(self) -> Known | None:
        """What the table has of it."""
        return KNOWN.get(self.name)

    @property
    def licence(self) -> str:
        """One line for the certificate."""
        return self.known.licence if self.known else "that of the model that was named"

    def unknown(self, symbols: Iterable[str]) -> list[str]:
        """Those of these elements that it was never taught: universal models answer for them all the same, with numbers of no meaning."""
        known = self.known.elements if self.known else frozenset()
        return sorted(set(symbols) - known) if known else []

    def calculator(self) -> Calculator:
        """A new one. Raises FlashACEError where its package or its file is missing, and for arguments that it does not take."""
        kind, _, rest = self.name.partition(":")
        factory, model, own = self.name, "-", tuple[str, ...]()
        if self.known is not None:
            given = {argument.partition("=")[0] for argument in self.arguments}
            factory, own = self.known.factory, tuple(a for a in self.known.arguments if a.partition("=")[0] not in given)
        elif kind == "flashace":
            factory, model = "flashace.calculator:FlashACE", rest
        try:
            return calculator_factory(factory, model, arguments=(*own, *self.arguments))[0]("float64")
        except FlashACEError as error:  # it speaks to those who type `verify`
            raise FlashACEError(f"teacher {self.source}: {error}".replace("--arg ", "--teacher-arg ")) from error


def teacher(name: str, arguments: Sequence[str] = ()) -> Teacher:
    """From its short name, `flashace:MODEL`, or `package.module:Class`. Raises FlashACEError for a name that is none of these, and where
    the package of a short name is not installed."""
    known = KNOWN.get(name)
    if known is None and ":" not in name:
        raise FlashACEError(
            f"teacher: expected {', '.join(KNOWN)}, flashace:MODEL or package.module:Class of an ASE calculator, got {name!r}; correct it"
        )
    if known is not None and importlib.util.find_spec(known.package) is None:  # not imported: that takes seconds, and its workers do it
        raise FlashACEError(f"teacher {name}: its package {known.package} is not installed; pip install '.[{known.extra}]'")
    return Teacher(name, tuple(arguments))
