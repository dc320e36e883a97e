"""Runs that prove more than one machine can: `nox -l` lists them, docs/testing.md says what each is for.

None of them belongs to the tests of a change, which `.ci/run` makes: they take from minutes to hours.
"""

import nox

nox.options.sessions = ["matrix"]

# The lowest releases that pyproject.toml allows together, and releases of PyTorch on either side of the one that the tests pin.
LOWEST = (
    "numpy==2.0.0 array-api-compat==1.11 safetensors==0.5.0 threadpoolctl==3.1.0 torch==2.9.1 jax==0.10.0 jaxlib==0.10.0 "
    "numba==0.68.0 mlx[cpu]==0.32.4 array-api-strict==2.6.1 rich==13.0.0 typer==0.15.1 scikit-learn==1.5.0 matplotlib==3.9.0 "
    "pytest==8.0.0 pytest-xdist==3.6.1 hypothesis==6.100.0 mpmath==1.3.0 onnx==1.20.0 onnxruntime==1.23.0 onnxscript==0.7.0 "
    "keras==3.15.0 h5py==3.12.1 flax==0.12.0 msgpack==1.1.0"
)
VERSIONS = {
    "lowest": LOWEST.split(),
    "torch-2.11": ["torch==2.11.0"],
    "torch-2.14": ["torch==2.14.1"],
}
CONSTRAINTS = ".ci/constraints.txt"


@nox.session
def matrix(session: nox.Session) -> None:
    """Run the numerical tests on other kernels, threads and orders: `nox -s matrix -- openblas-haswell`."""
    session.install("-e", ".[test]", "pytest-randomly")
    session.run("python", "-m", "tests.matrix", *session.posargs)


@nox.session(python="3.11")
@nox.parametrize("versions", [nox.param(wanted, id=name) for name, wanted in VERSIONS.items()])
def versions(session: nox.Session, versions: list[str]) -> None:
    """Run the tests with other releases of the libraries: `nox -s "versions(lowest)"`."""
    session.install("-e", ".[test]")
    session.install(*versions)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session(python=["3.11", "3.12", "3.13", "3.14"])
def pythons(session: nox.Session) -> None:
    """Run the tests with the newest releases of all libraries on each Python that is installed: `nox -s pythons-3.13`."""
    session.install("-e", ".[test]")
    session.install("--upgrade", "torch")
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz weights files, calls of the network and sequences of methods of a model: `nox -s fuzz -- weights`."""
    session.install("-e", ".[test]")
    for part in session.posargs or ("weights", "calls", "models"):
        session.run("python", "-m", "tests.fuzz", part)


@nox.session
def mutants(session: nox.Session) -> None:
    """Change the core one operator at a time and count what the tests notice: `nox -s mutants -- scan flow`."""
    session.install("-e", ".[test]")
    session.run("python", "-m", "tests.mutants", *session.posargs)


@nox.session
def audit(session: nox.Session) -> None:
    """Look up the pinned releases among the published vulnerabilities; needs a network."""
    session.install("pip-audit")
    session.run("pip-audit", "--requirement", CONSTRAINTS, "--no-deps", "--disable-pip")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin every release that `.ci/run` installs anew, for each Python and system."""
    session.install("uv")
    extras = [f"--extra={name}" for name in ("test", "bench", "lint")]
    session.run(
        *(
            "uv",
            "pip",
            "compile",
            "--universal",
            "--python-version=3.11",
            "--no-annotate",
            "--no-header",
            "--upgrade",
            *extras,
        ),
        *("pyproject.toml", f"--output-file={CONSTRAINTS}"),
    )
