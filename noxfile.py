"""Everything this project does to itself, by name: ``nox -s NAME``, or ``nox -l`` for the list."""

from __future__ import annotations

import pathlib
import sys

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.sessions = ["tests", "lint", "typing"]
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
PYTHONS = nox.project.python_versions(PROJECT)
HERE = pathlib.Path(__file__).parent


def say(text: str) -> None:
    """Print a line that stands out from the tools' own."""
    print(f"\n>>> {text}", flush=True)


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install trionet as a wheel, as its users get it, and the named dependency groups."""
    packages = nox.project.dependency_groups(PROJECT, *groups) if groups else ()
    session.install(f".{extras}", *packages)


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the test suite on all cores, or the part of it named after ``--``."""
    install(session, "test")
    # A file's tests stay together: some share what was made for all of them.
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)
    say("The tests passed. Every skipped one is listed above with its reason.")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting with ruff."""
    session.install(*nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def typing(session: nox.Session) -> None:
    """Check types with mypy and pyright, where trio-typing's stubs are not installed."""
    install(session, "typing")
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "trionet")


@nox.session
def trio_typing(session: nox.Session) -> None:
    """Prove that an application still carrying trio-typing can use trionet."""
    install(session, extras="[httpx,anyio,prometheus,websocket,hypercorn]")
    # pytest for the plugin, which is no module without it.
    session.install("trio-typing==0.10.0", "pytest>=9")
    modules = [
        ".".join(("trionet", *path.relative_to(HERE / "trionet").with_suffix("").parts))
        for path in sorted((HERE / "trionet").rglob("*.py"))
    ]
    imports = "".join(f"import {module.removesuffix('.__init__')}\n" for module in modules)
    session.run("python", "-W", "error", "-c", imports)
    session.run("python", "examples/echo.py")
    say(f"{len(modules)} modules import and the echo example runs beside trio-typing 0.10.")


@nox.session
def serve(session: nox.Session) -> None:
    """Serve examples/httpd/site over TCP and TLS until Ctrl-C, or as the arguments after -- say."""
    install(session, "examples")
    arguments = session.posargs or ["--bind", "tcp::8080", "--tls-bind", "tcp::8443"]
    session.run("python", "-m", "examples.httpd", *arguments, success_codes=[0, 130])


@nox.session
def demo(session: nox.Session) -> None:
    """Fetch pages over TCP, TLS and memory, and drain while a download runs."""
    install(session, "examples")
    session.run("python", "-m", "examples.demo", *session.posargs)


@nox.session
def examples(session: nox.Session) -> None:
    """Run the tests of the example programs."""
    install(session, "test")
    session.run("pytest", "tests/examples", *session.posargs)


@nox.session
def mutants(session: nox.Session) -> None:
    """Break pool, multiplexer and virtual network, one way at a time: their tests must notice."""
    install(session, "test")
    files = [f"tests/{area}/mutants.py" for area in ("pool", "mux", "testing")]
    session.run("pytest", *files, *session.posargs)


@nox.session
def interop(session: nox.Session) -> None:
    """Meet foreign peers: hashicorp/yamux, built with Debian's Go, where both are installed."""
    install(session, "test")
    session.run("pytest", "-rs", "tests/interop", *session.posargs)


@nox.session
def fuzz(session: nox.Session) -> None:
    """Fuzz the multiplexer's protocol for ten minutes; ``-- -max_total_time=60`` for one."""
    install(session, "test", "fuzz")
    session.run("python", "-m", "tests.yamux.fuzz", *session.posargs)
    say("Nothing was found. What reached new code was added to tests/yamux/corpus.txt.")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation into docs/_build; a warning is an error."""
    install(session, "docs")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-j", "auto", "docs", "docs/_build")
    say("Read docs/_build/index.html.")


@nox.session
def bench(session: nox.Session) -> None:
    """Measure trionet and its peers in turns; ``-- memory`` measures one file of ``bench/``."""
    names = session.posargs or sorted(
        path.stem.removeprefix("bench_") for path in HERE.glob("bench/bench_*.py")
    )
    unknown = [name for name in names if not (HERE / f"bench/bench_{name}.py").exists()]
    if unknown:
        session.error(f"no benchmark is named {' or '.join(unknown)}: look into bench/")
    install(session, "bench", *(["bench-mux"] if "mux" in names else []))
    results = HERE / "bench" / "results"
    results.mkdir(exist_ok=True)
    for number, name in enumerate(names, 1):
        say(f"{name}, {number} of {len(names)}")
        # A process each: no file's garbage is another's.
        session.run(
            "pytest",
            "-s",
            *("-o", "python_files=bench_*.py", "-o", "python_functions=bench_*", "-o", "timeout=0"),
            *("--benchmark-columns=median,rounds", f"--benchmark-json={results / name}.json"),
            f"bench/bench_{name}.py",
        )
    session.run("python", "-m", "bench.report", str(results))


if __name__ == "__main__":
    sys.exit("run me with nox: python3 -m nox -l")
