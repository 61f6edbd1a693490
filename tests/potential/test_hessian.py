"""Second derivatives against differences of forces, for every periodicity."""

import numpy as np
import pytest
import torch

from flashace.potential.derivatives import EdgeBudget, predict
from flashace.potential.hessian import hessian
from flashace.structure.neighbors import build_graph

STEP = 1e-4  # Å
TOLERANCE = 2e-5  # of the largest element: the error of such differences


def second_derivatives(model, atoms, max_edges=10**6):
    graph = build_graph(atoms, model.config.r_max)
    return hessian(model, graph, torch.float64, EdgeBudget(max_edges)).numpy()


def differences(model, atoms, coordinate):
    """[3N]: minus the change of the forces along one coordinate."""
    forces = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions.flat[coordinate] += sign * STEP
        forces.append(predict(model, build_graph(moved, model.config.r_max), torch.float64).forces.numpy().ravel())
    return (forces[1] - forces[0]) / (2 * STEP)


def test_rows_are_central_differences_of_forces(model, each_structure):
    H = second_derivatives(model, each_structure)
    assert H.shape == (3 * len(each_structure),) * 2
    for coordinate in {0, len(H) // 2, len(H) - 1}:
        np.testing.assert_allclose(
            H[coordinate], differences(model, each_structure, coordinate), rtol=0, atol=TOLERANCE * np.abs(H).max() + 1e-9
        )


def test_it_is_symmetric_and_translations_cost_nothing(model, each_structure):
    """The acoustic sum rule, for rows and columns, images of atoms included."""
    H = second_derivatives(model, each_structure)
    small = 1e-12 * np.abs(H).max() + 1e-12
    np.testing.assert_array_equal(H, H.T)
    assert np.abs(H.reshape(len(H), -1, 3).sum(1)).max() <= small


@pytest.mark.parametrize("name", ["molecule", "atom"])
def test_turning_a_molecule_turns_its_forces(model, structure, name):
    """And changes nothing else about them."""
    atoms = structure(name)
    H = second_derivatives(model, atoms)
    forces = predict(model, build_graph(atoms, model.config.r_max), torch.float64).forces.numpy()
    for axis in np.eye(3):
        turn = np.cross(axis, atoms.positions)
        np.testing.assert_allclose(H @ turn.ravel(), -np.cross(axis, forces).ravel(), atol=1e-10 * np.abs(H).max() + 1e-12)


def test_parts_give_the_same_as_the_whole(model, structure):
    atoms = structure("wire")
    np.testing.assert_allclose(second_derivatives(model, atoms, max_edges=8), second_derivatives(model, atoms), atol=1e-11)


def test_where_memory_runs_out_parts_are_halved(model, structure):
    """What was computed before is not counted twice."""
    atoms, sizes = structure("wire"), []
    whole = second_derivatives(model, atoms)

    def cramped(graph):
        sizes.append(graph.slots.numel())
        if graph.slots.numel() > 20:
            raise torch.OutOfMemoryError
        return model(graph)

    graph = build_graph(atoms, model.config.r_max)
    np.testing.assert_allclose(hessian(cramped, graph, torch.float64, EdgeBudget(10**6)), whole, atol=1e-11)
    assert max(sizes) > 20 >= min(sizes)


def test_atoms_that_do_not_see_each_other_do_not_couple(model, structure):
    one = structure("molecule")
    far = one.copy()
    far.positions += 50.0
    H, alone = second_derivatives(model, one + far), second_derivatives(model, one)
    n = len(alone)
    assert not H[:n, n:].any()
    np.testing.assert_allclose(H[n:, n:], alone, atol=1e-10)
