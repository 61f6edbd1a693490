"""A term that no backend has code for: every backend gives it all the same, and an export that cannot says so."""

import pytest
import torch

from flashace import FlashACEError
from flashace.backends.choice import backend_of
from flashace.engines.lammps.export import export_for_lammps
from flashace.nn.radial import polynomial_envelope
from flashace.potential.derivatives import EdgeBudget
from flashace.potential.term import Term
from flashace.structure.neighbors import build_graph

SPLINES = 1e-6  # eV, eV/Å: as far as compiled code may be from the plain path


class Pull(Term):
    """0.3 eV for every pair, ended at 4 Å."""

    def forward(self, graph, element):
        share = 0.15 * polynomial_envelope(graph.edge_vec.double().norm(dim=-1), 4.0, 6)
        return share.new_zeros(graph.num_centres).index_add(0, graph.edge_index[0], share)


@pytest.fixture
def pulled(make_model):
    model = make_model()
    model.terms.append(Pull())
    return model


def test_each_backend_adds_it(pulled, make_model, structure):
    graph = build_graph(structure("sheared"), pulled.config.r_max)
    plain, without = (backend_of(model, "plain").evaluate(graph, features=True) for model in (pulled, make_model()))
    assert (plain.energies - without.energies).min() > 0.1
    backend = backend_of(pulled, "compiled")
    for budget in (None, EdgeBudget(40)):
        found = backend.predict(graph, budget, features=True)
        for name in ("energies", "energy", "forces", "stress", "stresses", "features"):
            torch.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=0, atol=SPLINES, msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_an_export_without_code_for_it_is_refused(pulled, tmp_path):
    with pytest.raises(FlashACEError, match="export: expected a model that C knows whole, got one with Pull"):
        export_for_lammps(pulled, tmp_path / "model.so", "a test")
    assert not list(tmp_path.iterdir())
