"""Writes format-N.pt, a model of the format that this version writes, and format-N.json, what it says about a structure.

    python tests/potential/model_files/write_format.py

Once per format, with the first version that writes it; `tests/test_model_file.py` reads them with every later one. Never write one anew.
"""

import json
from pathlib import Path

import torch
from ase import Atoms

from flashace import FlashACE
from flashace.potential.model import AttentionACE, ModelConfig
from flashace.potential.model_file import FORMAT, save_model

HERE = Path(__file__).parent
SIZES = {
    "r_max": 4.0,
    "num_radial": 3,
    "hidden_dim": 4,
    "num_channels": 2,
    "key_dim": 2,
    "edge_hidden_dim": 4,
    "num_layers": 2,
    "correlation": 2,
}


def main() -> None:
    path = HERE / f"format-{FORMAT}.pt"
    torch.manual_seed(0)
    e0, bound = {"C": -7.5, "Si": -5.25}, 8.0
    model = AttentionACE(ModelConfig(**SIZES), e0, scale=1.5, avg_num_neighbors=12.0, dtype=torch.float64, energy_bound=bound)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight *= 10.0 if "readout" in name else 1.1
    row = {f"{label}_{mean}": 1.5 for label in ("energy", "forces", "stress") for mean in ("mae", "rmse")}
    provenance = {
        "training_data": {"files": ["a.extxyz"], "frames": 3},
        "reference_energies": "made up",
        "errors": {"train": [{"config_type": "all", "frames": 3, **row}]},
        "versions": {"flashace": "0.1.0"},
    }
    save_model(path, model, provenance)
    structure = {
        "symbols": "SiCSi",
        "positions": [[0.0, 0.0, 0.0], [1.1, 0.9, 1.0], [2.2, 2.3, -0.1]],
        "cell": [[4.4, 0.0, 0.0], [0.3, 4.2, 0.0], [0.0, -0.2, 4.5]],
        "pbc": [True, True, False],
    }
    atoms = Atoms(**structure, calculator=FlashACE(path, device="cpu", dtype="float64"))
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces().tolist(), "stress": atoms.get_stress().tolist()}
    path.with_suffix(".json").write_text(json.dumps({"structure": structure, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
