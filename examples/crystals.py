"""A model in, a crystal to start from out: of the file that is named, or one that is made of the model's elements."""

import ase.io
from ase import Atoms
from ase.build import bulk

from flashace.potential.model_file import read_header


def crystal(model: str, structure: str | None, primitive: bool = False) -> Atoms:
    """The last frame of `structure`; without one, silicon carbide for a model of C and Si, and for a single element its usual crystal.

    Ends the program where there is neither, or where the structure is no crystal.
    """
    symbols = sorted(read_header(model)["atomic_energies"])
    if structure is not None:
        atoms = ase.io.read(structure)
    elif symbols == ["C", "Si"]:
        atoms = bulk("SiC", "zincblende", a=4.38, cubic=not primitive)
    elif len(symbols) == 1:
        atoms = _of_element(symbols[0], primitive)
    else:
        raise SystemExit(f"{model} is a model of {', '.join(symbols)}: name a file with a crystal of these, --structure FILE")
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise SystemExit(f"{structure}: a crystal is needed, periodic in three directions with a cell; pbc is {atoms.pbc.tolist()}")
    return atoms


def _of_element(symbol: str, primitive: bool) -> Atoms:
    try:
        atoms = bulk(symbol)
    except (ValueError, RuntimeError, KeyError, NotImplementedError) as error:  # molecules, and crystals that ASE cannot build
        raise SystemExit(f"no crystal of {symbol} is known to ASE: name a file with one, --structure FILE") from error
    try:
        return atoms if primitive else bulk(symbol, cubic=True)
    except (ValueError, RuntimeError):  # hexagonal, say
        return atoms
