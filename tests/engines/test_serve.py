"""`flashace serve` as a process of its own, driven through sockets; and what it says of a server that does not fit."""

import socket
import struct
import subprocess
import sys
import threading
import uuid

import numpy as np
import pytest
from ase import Atoms, units
from ase.calculators.socketio import SocketIOCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.md.velocitydistribution import thermalize_momenta
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS

from flashace import FlashACE, FlashACEError
from flashace.engines.serve import serve

SAME = 1e-10  # eV and Å in float64; there and back through atomic units
SHORT = 0.3  # s


@pytest.fixture
def calculator(model_file):
    return FlashACE(model_file, "cpu", "float64")


@pytest.fixture
def name():
    """Of a socket that nobody else uses."""
    return f"flashace_{uuid.uuid4().hex[:12]}"


@pytest.fixture
def client(tmp_path, model_file):
    """client(atoms, unixsocket, port): `flashace serve` in a process of its own, as ASE's server starts it."""
    started = []

    def launch(atoms, properties=None, port=None, unixsocket=None):
        write(tmp_path / "start.extxyz", atoms)
        address = ["--port", str(port)] if unixsocket is None else ["--unixsocket", unixsocket]
        options = ["--atoms", str(tmp_path / "start.extxyz"), "--dtype", "float64", "--device", "cpu"]
        command = [sys.executable, "-c", "from flashace.cli.main import main; main()", "serve", str(model_file), *options, *address]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    launch.started = started
    yield launch
    for process in started:
        process.kill()
        process.communicate()


def assert_same(atoms, calculator):
    alone = atoms.copy()
    alone.calc = calculator
    assert atoms.get_potential_energy() == pytest.approx(alone.get_potential_energy(), abs=SAME)
    np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), alone.get_forces(apply_constraint=False), atol=SAME)
    if atoms.pbc.any() and atoms.cell.rank == 3:
        np.testing.assert_allclose(atoms.get_stress(), alone.get_stress(), atol=SAME)


def test_a_relaxation_and_dynamics_through_a_socket(client, calculator, name, structure):
    atoms = structure("crystal")
    atoms.set_constraint(FixAtoms([0]))  # the server's affair
    with SocketIOCalculator(unixsocket=name, launch_client=client, timeout=60) as server:
        atoms.calc = server
        BFGS(atoms, logfile=None).run(fmax=0.05, steps=3)
        assert_same(atoms, calculator)
        atoms.set_cell(1.01 * atoms.cell.array, scale_atoms=True)
        assert_same(atoms, calculator)
        thermalize_momenta(atoms, 300, rng=np.random.default_rng(0))
        total = atoms.get_total_energy()
        VelocityVerlet(atoms, timestep=0.2 * units.fs).run(5)
        assert_same(atoms, calculator)
        assert atoms.get_total_energy() == pytest.approx(total, abs=1e-3)
    (process,) = client.started
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert output.startswith("the server has ended; structures evaluated: ")
    assert int(output.split()[-1]) >= 9


@pytest.mark.parametrize("kind", ["molecule", "molecule in a box", "wire", "slab without cell height", "sheared"])
def test_any_kind_of_periodicity(calculator, name, structure, kind):
    atoms = structure(kind)
    moved = structure(kind)
    moved.rattle(0.05, seed=4)
    with SocketIOCalculator(unixsocket=name, timeout=60) as server:
        thread = threading.Thread(target=serve, args=(calculator, atoms, name))
        thread.start()
        moved.calc = server
        moved.get_potential_energy()
    thread.join(60)
    assert not thread.is_alive()
    assert_same(moved, calculator)


def test_a_port_and_a_server_that_comes_late(calculator, structure):
    atoms, port = structure("crystal"), _free_port()
    done = []
    thread = threading.Thread(target=lambda: done.append(serve(calculator, structure("crystal"), port=port, wait=60)))
    thread.start()
    with SocketIOCalculator(port=port, timeout=60) as server:
        atoms.calc = server
        atoms.get_forces()
    thread.join(60)
    assert done == [1]
    assert_same(atoms, calculator)


def test_no_server_is_named(calculator, structure, name):
    with pytest.raises(FlashACEError, match=rf"/tmp/ipi_{name}: expected a server of the i-PI protocol, found none in {SHORT} s"):
        serve(calculator, structure("crystal"), name, wait=SHORT)
    port = _free_port()
    with pytest.raises(FlashACEError, match=rf"localhost:{port}: expected a server"):
        serve(calculator, structure("crystal"), port=port, wait=SHORT)


@pytest.mark.parametrize("other", [Atoms("C"), Atoms("C9", np.eye(9)[:, :3])], ids=["one", "nine"])
def test_another_number_of_atoms_is_named(calculator, structure, other):
    error = _error_at(calculator, structure("crystal"), _positions(other))
    assert f"expected 8 atoms, as the template has, got {len(other)} from the server" in error


def test_positions_that_are_not_finite_are_named(calculator, structure):
    atoms = structure("crystal")
    atoms.positions[3] = np.nan
    assert "expected finite numbers from the server, got NaN or infinity" in _error_at(calculator, atoms, _positions(atoms))


def test_a_server_that_dies_within_a_message_is_named(calculator, structure):
    error = _error_at(calculator, structure("crystal"), _positions(structure("crystal"))[:100])
    assert "the connection broke within a message, after 0 structures (closed by the server)" in error


def test_both_addresses_are_refused(flashace, model_file):
    result = flashace("serve", model_file, "--atoms", "a.xyz", "--unixsocket", "x", "--port", "1")
    assert result.exit_code == 1
    assert "expected --unixsocket, or --host and --port, got both" in result.output


def _free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def _positions(atoms):
    """The message of the protocol."""
    cell = np.eye(3).tobytes()
    return b"POSDATA".ljust(12) + cell + cell + struct.pack("i", len(atoms)) + (atoms.positions / units.Bohr).tobytes()


def _error_at(calculator, template, message):
    """What `serve` raises at a server that sends this and no more."""
    with socket.create_server(("localhost", 0)) as server:
        errors = []

        def client():
            try:
                serve(calculator, template, port=server.getsockname()[1])
            except FlashACEError as error:
                errors.append(str(error))

        thread = threading.Thread(target=client)
        thread.start()
        connection, _ = server.accept()
        connection.sendall(message)
        connection.close()
        thread.join(60)
    (error,) = errors
    return error
