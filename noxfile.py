"""Everything that is done to this project, by name: `nox -s quickstart`, `nox -s tests`, ...

Each session makes its own environment with the versions of constraints.txt and keeps it.
"""

import nox

nox.needs_version = ">=2025.2"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")
CODE = ("kdbench", "tests", "benchmarks", "noxfile.py")


def install(session: nox.Session, *groups: str) -> None:
    wanted = nox.project.dependency_groups(PYPROJECT, *groups) if groups else ()
    session.install("-c", "constraints.txt", "-e", ".", *wanted)


@nox.session
def quickstart(session: nox.Session) -> None:
    """Train on the bundled digits, print the table and draw the figure (two minutes)."""
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
    install(session)
    session.run("kdbench", "run", "--matrix", f"benchmarks/{name}.toml", *session.posargs)
    session.run("kdbench", "show", f"results/{name}")
    session.run("kdbench", "plot", f"results/{name}")


@nox.session
def tests(session: nox.Session) -> None:
    """Check style, layers and types, then run the tests; arguments go to pytest alone."""
    install(session, "test", "lint", "types")
    if not session.posargs:
        check_style(session)
        session.run("mypy")
        check_memory(session)
    # Two at a time, since many wait for a worker. A file's tests together, in the files' order: by
    # their number, the long ones would come last, and alone.
    how = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
    session.run("pytest", *how, *session.posargs)


@nox.session
def chaos(session: nox.Session) -> None:
    """Kill real sweeps 200 times, and more; nothing may be lost (it takes long)."""
    install(session, "test")
    session.run("python", "-m", "tests.chaos", "--jobs", "4", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and the layering of imports."""
    session.install("-c", "constraints.txt", *nox.project.dependency_groups(PYPROJECT, "lint"))
    session.install("-c", "constraints.txt", "--no-deps", "-e", ".")
    check_style(session)


def check_style(session: nox.Session) -> None:
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Check types, strictly."""
    install(session, "types")
    session.run("mypy")


@nox.session
def gate(session: nox.Session) -> None:
    """Hold the paper's cells against their baselines; `-- --update` writes those anew."""
    install(session)
    check_memory(session)


def check_memory(session: nox.Session) -> None:
    for profile in ("cpu", "h100"):
        baseline = f"benchmarks/baselines/fig4-{profile}.txt"
        check = ("kdbench", "check", "--matrix", "benchmarks/fig4.toml", "--baseline", baseline)
        session.run(*check, "--profile", profile, *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Time kdbench itself, as ratios within one run."""
    install(session, "bench")
    session.run("pytest", "benchmarks", "-rP", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fire hostile files at the readers for ten minutes, or as long as `-- --seconds N` says."""
    install(session, "test")
    session.run("python", "-m", "tests.hostile", *session.posargs)


@nox.session
def gpu(session: nox.Session) -> None:
    """Gather the evidence that needs an NVIDIA GPU (results/reference/)."""
    install(session, "test")
    session.run("python", "-m", "tests.gpu", *session.posargs)
