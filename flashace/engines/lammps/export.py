"""Model in; one shared library with the compiled model and its weights out, which `pair_style flashace` of LAMMPS loads."""

import json
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from flashace.backends.c.backend import LAYOUT, SOURCE, CpuKernel, compile_command
from flashace.backends.compiler import compile_library, processor
from flashace.backends.layout import c_header
from flashace.backends.trial import check_kernel
from flashace.errors import FlashACEError
from flashace.files import whole_file
from flashace.potential.model import AttentionACE

WEIGHTS = "flashace_weights"  # what model.c calls them
ROWS = 8  # of `uncertainty` in model.c
MODEL_C = Path(__file__).with_name("model.c")
# what compilers say a processor of x86 has; Linux has other names for two of them
FEATURE = re.compile(r"#define __(SSE4_[12]|POPCNT|AVX[A-Z0-9_]*|FMA|F16C|BMI2?|LZCNT|MOVBE|GFNI|VAES|VPCLMULQDQ)__ 1")
NAMES_OF_LINUX = {"bmi": "bmi1", "lzcnt": "abm"}


def export_for_lammps(model: AttentionACE, output: str | Path, origin: str, march: str = "native") -> list[str]:
    """Write `output` for processors of the kind `march` (as gcc names them), in the precision of the model; `origin` is noted in it.

    Returns what this processor lacks to run it. Where that is nothing, the file has been tried: it gives the energies and forces of the
    plain path. Raises FlashACEError, with the reason, where it does not, or C cannot be compiled, or `output` is there and is no export;
    and OSError where the file cannot be written.
    """
    if sys.platform != "linux":
        raise FlashACEError(f"export: expected Linux, got {sys.platform}; export on the Linux machine that LAMMPS runs on")
    output = Path(output)
    if output.exists() and not is_export(output):
        raise FlashACEError(
            f"{output}: expected the name of a new file or of an earlier export, which this would overwrite, got something else; "
            "name another file, or delete this one"
        )
    if others := sorted({type(term).__name__ for term in model.terms} - {"Repulsion"}):
        raise FlashACEError(f"export: expected a model that C knows whole, got one with {', '.join(others)}; C has no code for it")
    kernel = CpuKernel(model)
    command = compile_command(march)
    needs = _needs(command[0], march)
    weights, data = kernel.as_c("flashace_data")
    with whole_file(output) as fresh, tempfile.TemporaryDirectory() as scratch:
        weights_file, uncertainty_file = Path(scratch) / "weights.bin", Path(scratch) / "uncertainty.bin"
        weights_file.write_bytes(data)
        texts = {
            "WEIGHTS_FILE": str(weights_file),
            "ELEMENTS": " ".join(model.symbols),
            "NEEDS": " ".join(needs),
            "DTYPE": str(model.dtype).removeprefix("torch."),
            "ORIGIN": origin,
        }
        known = model.coordination
        numbers = {
            "R_MAX": model.config.r_max.hex(),
            "WEIGHTS": weights,
            "NUM_ELEMENTS": str(len(model.symbols)),
            "ENVELOPE_EXPONENT": str(model.config.envelope_exponent),
            "SHORTEST": _array(None if model.shortest_distances is None else model.shortest.flatten().tolist()),
            "LARGEST_MEAN": "0",
            "COORDINATION": _array(None if known is None else [end for ends in known.of_pairs.values() for end in ends]),
        }
        if model.uncertainty is not None and (law := model.uncertainty.force_law) is not None:
            scale = law.scale ** (1 / law.exponent)
            whitening = scale * model.uncertainty.atoms.whitening
            numbers["LARGEST_MEAN"] = (scale * (model.uncertainty.largest_mean or 0.0)).hex()
            uncertainty_file.write_bytes(kernel.features_alone.numpy().tobytes() + _triangle(whitening, model.dtype))
            texts["UNCERTAINTY_FILE"], numbers["EXPONENT"] = str(uncertainty_file), law.exponent.hex()
        defined = {**{name: json.dumps(text, ensure_ascii=False) for name, text in texts.items()}, **numbers}
        headers = {LAYOUT: c_header(model), "weights.h": "".join(f"#define {name} {value}\n" for name, value in defined.items())}
        # -Bsymbolic: its own `evaluate`, whatever else has one
        compile_library([*command, "-Wl,-Bsymbolic", f"-I{SOURCE.parent}", str(MODEL_C), "-lm"], fresh, headers)
        with fresh.open("ab") as file:
            file.write(checksum(fresh.read_bytes()))
        lacking = sorted(set(needs) - _features_here()) if needs else []
        if not lacking:
            check_kernel(model, kernel.from_file(fresh, WEIGHTS).evaluate)
    return lacking


def _triangle(whitening: Tensor, dtype: torch.dtype) -> bytes:
    """R with |f W| = |R f|, as `uncertainty` of model.c reads it: half of the numbers of W, and as precise as the features."""
    R = torch.linalg.qr(whitening.cpu().T).R.to(dtype)
    size = len(R)
    R = torch.cat([R, R.new_zeros(-size % ROWS, size)])
    return b"".join(R[first : first + ROWS, first:].T.contiguous().numpy().tobytes() for first in range(0, size, ROWS))


def _array(numbers: Sequence[float] | None) -> str:
    """As C has them: a pointer to them, or to nothing."""
    return "(const double *)0" if numbers is None else f"(const double[]){{{', '.join(float(x).hex() for x in numbers)}}}"


def checksum(library: bytes) -> bytes:
    """What ends an export. The loader of a truncated library dies of SIGBUS, and would not see a wrong bit among the weights."""
    return b"FlashACE%08x" % zlib.crc32(library)


def is_export(path: Path) -> bool:
    """Whether a file is a library that `export_for_lammps` has written."""
    return path.is_file() and (data := path.read_bytes()).startswith(b"\x7fELF") and f"\0{WEIGHTS}\0".encode() in data


def _needs(compiler: str, march: str) -> list[str]:
    """Features of x86 that code for `march` may use, in lower case without underscores; for another kind of processor none are known."""
    done = subprocess.run([compiler, f"-march={march}", "-dM", "-E", "-x", "c", "/dev/null"], capture_output=True, text=True)
    if done.returncode:
        raise FlashACEError(f"march: expected a processor that {compiler} knows, got {march!r}: {done.stderr[-500:].strip()}")
    found = {name.lower() for name in FEATURE.findall(done.stdout)}
    found = {NAMES_OF_LINUX.get(name, name).replace("_", "") for name in found}
    return sorted(found & _features_here() if march == "native" else found)  # gcc knows features that an older Linux has no name for


def _features_here() -> set[str]:
    flags = next((line for line in processor().splitlines() if line.startswith("flags")), "")
    return set(flags.replace("_", "").split())
