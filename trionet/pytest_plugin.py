"""The pytest plugin: tests on a virtual network, in virtual time, with a seed.

It is installed with trionet. A test that asks for `net` runs as `trionet.testing.simulate` runs a
program, on a `VirtualNetwork` of its own::

    async def test_an_echo(net, nursery):
        await nursery.start(net.host("server").run, trio.serve_tcp, echo, 7)
        async with await trio.open_tcp_stream("server", 7) as stream:
            await stream.send_all(b"hi")
            assert await stream.receive_some() == b"hi"


    @pytest.mark.seeds(200)
    async def test_the_order_does_not_matter(net, nursery): ...

``seeds(n)`` runs a test with the seeds 0 to n - 1, each a test of its own; an async one is
simulated, with or without `net`. A failure tells its seed and the last events on the network;
``--net-seed=N`` runs with the seed N alone. Deadlocks, real sockets, slow threads, and sockets that
a test leaves open fail it.

The fixtures `memory_network` and `tls` are for any test. Async tests are run with pytest-trio,
where that is installed, and so may use its fixtures; the seed begins anew when all are set up.
Other async plugins, and Hypothesis's ``@given`` on an async function, do not go together with
`net`: use `simulate` within a synchronous test.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence

    import trio
    from trio.testing import MockClock

    import trionet
    from trionet.testing import VirtualNetwork
    from trionet.testing.certificates import Certificates
    from trionet.testing.simulation import Simulation

__all__ = (
    "memory_network",
    "net_seed",
    "pytest_addoption",
    "pytest_collection_modifyitems",
    "pytest_configure",
    "pytest_generate_tests",
    "pytest_pyfunc_call",
    "pytest_runtest_call",
    "pytest_runtest_makereport",
    "pytest_runtest_setup",
    "tls",
)

# How much of a trace a failure shows.
LAST_EVENTS: Final = 30


@final
@dataclass
class _Story:
    """What is known of one simulated test, from its set-up to its report."""

    net: VirtualNetwork | None = None
    simulation: Simulation | None = None
    # Of the moment of failure: by the time of the report everything is closed.
    netstat: list[str] = field(default_factory=list)

    def look(self) -> None:
        """Take down what is open, the first time that something goes wrong."""
        if self.net is not None and not self.netstat:
            self.netstat = [str(line) for line in self.net.netstat()]


_STORY: Final = pytest.StashKey[_Story]()


# Options, marks, parameters


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--net-seed``."""
    parser.getgroup("trionet").addoption(
        "--net-seed",
        type=int,
        default=None,
        metavar="N",
        help="run simulated tests with this seed (instead of 0, or those of @pytest.mark.seeds)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the mark, and choose a `net`."""
    config.addinivalue_line(
        "markers", "seeds(n): run the test with the seeds 0 to n - 1; an async test is simulated"
    )
    # Where pytest-trio runs fixtures, those that ask for `net` have to be run within the test's
    # run, and so `net` too has to be one of its kind.
    asynchronous = config.pluginmanager.hasplugin("trio")
    config.pluginmanager.register(_NetInRun() if asynchronous else _Net(), "trionet.net")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each seed."""
    mark = metafunc.definition.get_closest_marker("seeds")
    if mark is None:
        return
    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], int) or mark.args[0] < 1:
        got = ", ".join([*map(repr, mark.args), *(f"{k}={v!r}" for k, v in mark.kwargs.items())])
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: seeds takes a positive number, got seeds({got})"
        )
    chosen = metafunc.config.getoption("net_seed")
    seeds = range(mark.args[0]) if chosen is None else [chosen]
    if "net_seed" not in metafunc.fixturenames:
        # Or it would not be a parameter that may be given.
        metafunc.fixturenames.append("net_seed")
    metafunc.parametrize("net_seed", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have pytest-trio run simulated tests by us."""
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        if "net_seed" in parameters and "net_seed" not in item.fixturenames:
            # pytest drops names that neither the test nor a fixture asks for.
            item.fixturenames.append("net_seed")
        if "net_seed" not in item.fixturenames:
            continue
        hypothesis = getattr(item.obj, "hypothesis", None)
        if not inspect.iscoroutinefunction(getattr(hypothesis, "inner_test", item.obj)):
            continue
        item.stash[_STORY] = _Story()
        if config.pluginmanager.hasplugin("trio"):
            # Before the marks that pytest-trio adds, or the test has: it takes the first `run`.
            mark = pytest.mark.trio(run=functools.partial(_run, item))
            item.add_marker(mark, append=False)


# Running


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Make the network; refuse what would silently run in real time."""
    has_net = "net" in getattr(item, "fixturenames", ())
    if _STORY not in item.stash:
        if has_net:
            pytest.fail(
                "the fixture net is for async tests; in others, open a VirtualNetwork in what "
                "trionet.testing.simulate() runs",
                pytrace=False,
            )
        return
    from trionet.testing import VirtualNetwork

    item.stash[_STORY] = _Story(net=VirtualNetwork() if has_net else None)
    if hasattr(item.obj, "hypothesis"):  # type: ignore[attr-defined]
        pytest.fail(
            "@given on an async test cannot be simulated, since pytest-trio would run it in real "
            "time: call trionet.testing.simulate() in a synchronous @given test",
            pytrace=False,
        )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Let the seed begin where the test does, before pytest-trio, a wrapper too, takes it."""
    if _STORY in item.stash:
        assert isinstance(item, pytest.Function)
        # Where a test is run again, pytest-trio's wrapper already has ours inside.
        if inspect.iscoroutinefunction(item.obj):
            item.obj = _beginning(item, item.obj)
    return (yield)


def _beginning(
    item: pytest.Function, test: Callable[..., Awaitable[object]]
) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def begin(**arguments: object) -> None:
        __tracebackhide__ = True
        story = item.stash[_STORY]
        if story.simulation is None:
            pytest.fail(
                "another plugin than pytest-trio runs this test, in real time and without a seed",
                pytrace=False,
            )
        story.simulation.restart()
        try:
            await test(**arguments)
        except BaseException:
            story.look()
            raise

    return begin


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Run a simulated test where there is no pytest-trio."""
    if _STORY not in pyfuncitem.stash or pyfuncitem.config.pluginmanager.hasplugin("trio"):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    _run(pyfuncitem, functools.partial(pyfuncitem.obj, **arguments))
    return True


def _run(
    item: pytest.Function,
    test: Callable[[], Awaitable[object]],
    *,
    clock: trio.abc.Clock | None = None,
    instruments: Sequence[trio.abc.Instrument] = (),
) -> None:
    from trionet.testing.simulation import Simulation

    __tracebackhide__ = True
    story = item.stash[_STORY]
    seed: Any = item.funcargs["net_seed"]
    story.simulation = Simulation(seed, clock=_checked(clock), at_problem=story.look)

    async def main() -> None:
        if story.net is None:
            await test()
        else:
            async with story.net:
                await _on_network(story.net, test)

    # What a deadlock calls the task at the root.
    main.__name__ = item.name
    with _fixtures_in_order(item):
        story.simulation.run(main, instruments=instruments)


@contextlib.contextmanager
def _fixtures_in_order(item: pytest.Function) -> Iterator[None]:
    # pytest-trio starts the tasks of fixtures in the order of a set of them, and so by their
    # addresses; each has a name. What the fixtures start is ordered by when they do.
    kinds = {type(value) for value in item.funcargs.values()}
    for kind in kinds:
        if kind.__module__.partition(".")[0] == "pytest_trio" and "__hash__" not in vars(kind):
            setattr(kind, "__hash__", _hash_of_name)  # noqa: B010 - mypy allows no other way
            try:
                yield
            finally:
                delattr(kind, "__hash__")
            return
    yield


def _hash_of_name(fixture: Any) -> int:
    return zlib.crc32(fixture.name.encode())


def _checked(clock: trio.abc.Clock | None) -> MockClock | None:
    from trio.testing import MockClock

    if clock is None or (isinstance(clock, MockClock) and clock.autojump_threshold == 0):
        return clock
    pytest.fail("a simulated test needs no clock, or the fixture autojump_clock", pytrace=False)


async def _on_network(net: VirtualNetwork, test: Callable[[], Awaitable[object]]) -> None:
    await test()
    # All fixtures are done with, too.
    if leaks := net.leaks():
        pytest.fail("sockets were left open:\n" + "\n".join(leaks), pytrace=False)


# Telling


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add to a failure what is needed to understand and repeat it."""
    report = yield
    story = item.stash.get(_STORY, None)
    if report.failed and story is not None and story.simulation is not None:
        report.sections.append(("trionet", _tell(item, story, story.simulation)))
        if item.config.pluginmanager.hasplugin("html") and story.net and story.simulation.traces:
            # What pytest-html puts beside the text.
            from pytest_html import extras

            picture = extras.html(story.net.sequence_svg())
            report.extras = [*getattr(report, "extras", ()), picture]  # type: ignore[attr-defined]
    return report


def _tell(item: pytest.Item, story: _Story, simulation: Simulation) -> str:
    parts = [simulation.report(LAST_EVENTS)]
    if story.netstat:
        parts += ["What was open when it failed:", *(f"  {line}" for line in story.netstat)]
    if story.net is not None and simulation.traces:
        parts.append(_draw(item, story.net))
    parts.append(f'To repeat it: pytest "{item.nodeid}" --net-seed={simulation.seed}')
    return "\n".join(parts)


def _draw(item: pytest.Item, net: VirtualNetwork) -> str:
    cache = getattr(item.config, "cache", None)
    if cache is None:
        return "For a picture and a capture of it, leave pytest its cacheprovider."
    stem = cache.mkdir("trionet") / re.sub(r"[^\w.-]+", "_", item.nodeid)
    picture, capture = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.pcapng")
    try:
        picture.write_text(net.sequence_svg(), encoding="utf-8")
        net.write_pcap(capture)
    except OSError as exc:
        return f"There is no picture and no capture: {exc}"
    return f"Its end as a picture: {picture}\nAll of it for Wireshark: {capture}"


# Fixtures


@pytest.fixture
def net_seed(request: pytest.FixtureRequest) -> int:
    """The seed of this test: the mark's, or ``--net-seed``, or 0."""
    given: int | None = getattr(request, "param", None)
    if given is None:
        given = request.config.getoption("net_seed")
    return 0 if given is None else given


def _net(request: pytest.FixtureRequest) -> VirtualNetwork:
    story: _Story = request.node.stash[_STORY]
    if story.net is None:
        pytest.fail("ask for net by a test's or a fixture's argument", pytrace=False)
    return story.net


@final
class _NetInRun:
    @pytest.fixture
    async def net(
        self,
        net_seed: int,  # noqa: ARG002 - to have it set up
        request: pytest.FixtureRequest,
    ) -> VirtualNetwork:
        """A `trionet.testing.VirtualNetwork` with the test's seed; the test runs in its block."""
        return _net(request)


@final
class _Net:
    @pytest.fixture
    def net(
        self,
        net_seed: int,  # noqa: ARG002 - to have it set up
        request: pytest.FixtureRequest,
    ) -> VirtualNetwork:
        """A `trionet.testing.VirtualNetwork` with the test's seed; the test runs in its block."""
        return _net(request)


@pytest.fixture
def memory_network() -> Iterator[trionet.Network]:
    """A `trionet.Network` whose ``tcp`` and ``unix`` are memory; what stays open in it is an error.

    Addresses are names there: dial the very text that was listened on.
    """
    from trionet import Network

    network = Network()
    for outside in ("tcp", "tcp4", "tcp6", "unix"):
        network.map_network(outside, "memb")
    yield network
    left = {kind: names for kind in ("memu", "memb") if (names := network.names(kind))}
    if left:
        pytest.fail(f"listeners are left open: {left}", pytrace=False)


@pytest.fixture(scope="session")
def tls() -> Certificates:
    """`Certificates` to be thrown away: ``tls.client``, ``tls.server``, ``tls.server_called()``."""
    try:
        from trionet.testing.certificates import Certificates

        return Certificates()
    except ImportError as exc:
        pytest.fail(f"the fixture tls needs trustme: pip install trustme ({exc})", pytrace=False)
