"""Everything that is done to this project, by name: `nox -s quickstart`, `nox -s tests`, ...

All sessions share one environment, `.venv`, with the versions of constraints.txt: what a session
needs is installed into it once, and again only when pyproject.toml or constraints.txt changes.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["tests"]

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
PYPROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("kdbench", "tests", "benchmarks", "docs", "noxfile.py")
# The package itself, beside the dependency groups of pyproject.toml.
KDBENCH = "kdbench"


def install(session: nox.Session, *wanted: str) -> None:
    """Install the package and dependency groups into the one environment, unless they are there."""
    if not PYTHON.exists():
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT))
    stamp = ENVIRONMENT / "installed.json"
    state = [(ROOT / name).read_text() for name in ("pyproject.toml", "constraints.txt")]
    digest = hashlib.sha256(json.dumps([*state, str(ROOT)]).encode()).hexdigest()
    known = json.loads(stamp.read_text()) if stamp.exists() else {}
    there = set(known.get("parts", ()))
    # Of what a changed file says, all is installed anew: the parts have one set of versions.
    missing = {*wanted} - there if known.get("digest") == digest else {*wanted} | there
    if not missing:
        return
    groups = sorted(missing - {KDBENCH})
    packages = nox.project.dependency_groups(PYPROJECT, *groups) if groups else ()
    itself = ("-e", ".") if KDBENCH in missing else ()
    pip = (str(PYTHON), "-m", "pip", "install", "-c", "constraints.txt")
    session.run_install(*pip, *itself, *packages, silent=True)
    stamp.write_text(json.dumps({"digest": digest, "parts": sorted(there | missing)}))


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run a program of the one environment."""
    folder = PYTHON.parent
    path = os.pathsep.join((str(folder), os.environ.get("PATH", "")))
    environment = {"VIRTUAL_ENV": str(ENVIRONMENT), "PATH": path}
    session.run(str(folder / program), *arguments, env=environment)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train on the bundled digits, print the table and draw the figure."""
    draw_figure(session, "quickstart")


@nox.session
def fig2(session: nox.Session) -> None:
    """Train the curves of the paper's Figure 2 in miniature and draw them."""
    draw_figure(session, "fig2")


@nox.session
def fig3(session: nox.Session) -> None:
    """Train the curves of the paper's Figure 3 in miniature and draw them."""
    draw_figure(session, "fig3")


@nox.session
def fig4(session: nox.Session) -> None:
    """Measure the paper's Figure 4 on this machine and draw it."""
    draw_figure(session, "fig4")


@nox.session
def fig5(session: nox.Session) -> None:
    """Train the sweep of the paper's Figure 5 in miniature and draw it."""
    draw_figure(session, "fig5")


def draw_figure(session: nox.Session, name: str) -> None:
    install(session, KDBENCH)
    run(session, "kdbench", "run", "--matrix", f"benchmarks/{name}.toml", *session.posargs)
    run(session, "kdbench", "show", f"results/{name}")
    run(session, "kdbench", "plot", f"results/{name}")
    session.log("kdbench is in .venv/bin: source .venv/bin/activate, and kdbench --help says more")


@nox.session
def tests(session: nox.Session) -> None:
    """Check style, layers, types and documentation, then test; arguments go to pytest alone."""
    install(session, KDBENCH, "test", "lint", "types", "docs")
    if not session.posargs:
        check_style(session)
        run(session, "mypy")
        build_site(session)
        check_memory(session)
    # Two at a time, since many wait for a worker. A file's tests together, in the files' order: by
    # their number, the long ones would come last, and alone.
    how = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    run(session, "pytest", *how, *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill real sweeps 200 times, and more; nothing may be lost (it takes long)."""
    install(session, KDBENCH, "test")
    run(session, "python", "-m", "tests.chaos", "--jobs", "4", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and the layering of imports."""
    install(session, "lint")
    check_style(session)


def check_style(session: nox.Session) -> None:
    run(session, "ruff", "check", *CODE)
    run(session, "ruff", "format", "--check", *CODE)
    run(session, "lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, KDBENCH, "types")
    run(session, "mypy")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into site/, offline; a warning is an error."""
    install(session, KDBENCH, "docs")
    build_site(session)


def build_site(session: nox.Session) -> None:
    # Not --quiet: that hides warnings from --strict too.
    run(session, "mkdocs", "build", "--strict", "--clean")


@nox.session
def gate(session: nox.Session) -> None:
    """Hold the paper's cells against their baselines; `-- --update` writes those anew."""
    install(session, KDBENCH)
    check_memory(session)


def check_memory(session: nox.Session) -> None:
    for profile in ("cpu", "h100"):
        baseline = f"benchmarks/baselines/fig4-{profile}.txt"
        check = ("kdbench", "check", "--matrix", "benchmarks/fig4.toml", "--baseline", baseline)
        run(session, *check, "--profile", profile, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time kdbench itself, as ratios within one run."""
    install(session, KDBENCH, "bench")
    run(session, "pytest", "benchmarks", "-rP", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fire hostile files at the readers for ten minutes, or as long as `-- --seconds N` says."""
    install(session, KDBENCH, "test")
    run(session, "python", "-m", "tests.hostile", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Gather the evidence that needs an NVIDIA GPU (results/reference/)."""
    install(session, KDBENCH, "test")
    run(session, "python", "-m", "tests.gpu", *session.posargs)
