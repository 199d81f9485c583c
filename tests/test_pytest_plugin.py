"""The pytest plugin, in pytest runs of its own."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias
from xml.etree import ElementTree

import pytest
import trustme  # noqa: F401 - before runs in this process, which forget what they import

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]

SETTINGS = """
[pytest]
filterwarnings = error
addopts = --strict-markers --strict-config -p trionet.pytest_plugin
"""
HEAD = """
import random, time
import pytest, trio, trionet
from trionet.testing import Link, random_stream

async def echo(stream):
    async for data in stream:
        await stream.send_all(data)

async def order_of_five():
    order = []
    async def step(number):
        await trio.lowlevel.checkpoint()
        order.append(number)
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(step, number)
    return order
"""

Run: TypeAlias = "Callable[..., pytest.RunResult]"


@pytest.fixture
def write(pytester: pytest.Pytester) -> Callable[[str], None]:
    def write_test_file(source: str) -> None:
        pytester.makeini(SETTINGS)
        pytester.makepyfile(test_it=HEAD + textwrap.dedent(source))

    return write_test_file


@pytest.fixture
def run(pytester: pytest.Pytester, write: Callable[[str], None]) -> Run:
    """Return a function that runs pytest on the text of a test file, within this process."""

    def run_pytest(source: str, *options: str) -> pytest.RunResult:
        write(source)
        return pytester.runpytest_inprocess(*options)

    return run_pytest


@pytest.fixture
def run_apart(
    pytester: pytest.Pytester, write: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> Run:
    """The same in a process of its own, with another order of everything that has none."""

    def run_pytest(source: str, *options: str) -> pytest.RunResult:
        write(source)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setenv("PYTHONHASHSEED", "random")
        return pytester.runpytest_subprocess(*options)

    return run_pytest


# With and without pytest-trio, whose name as a plugin is "trio".
both = pytest.mark.parametrize("without", [(), ("-p", "no:trio")], ids=["pytest-trio", "alone"])


# Seeds


@both
def test_an_async_test_with_seeds_runs_once_for_each_in_virtual_time(
    run: Run, without: tuple[str, ...]
) -> None:
    result = run(
        """
        @pytest.mark.seeds(3)
        async def test_one(net_seed):
            await trio.sleep(10_000 - net_seed)
            assert time.monotonic() == 10_000 - net_seed
            assert random_stream("x").random() == random.Random(f"{net_seed}/program/x").random()
        """,
        "-v",
        *without,
    )

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*::test_one[[]seed0] PASSED*", "*::test_one[[]seed2] PASSED*"])


def test_a_test_need_not_ask_for_its_seed(run: Run) -> None:
    result = run(
        """
        seen = []

        @pytest.mark.seeds(4)
        async def test_one():
            seen.append(tuple(await order_of_five()))

        def test_two():
            assert len(set(seen)) > 1
        """
    )

    result.assert_outcomes(passed=5)


def test_seeds_of_a_class_and_of_other_parameters_multiply(run: Run) -> None:
    result = run(
        """
        @pytest.mark.seeds(2)
        class TestIt:
            @pytest.mark.parametrize("n", [1, 2, 3])
            async def test_one(self, n, nursery):
                assert trio.current_time() == 0
        """
    )

    result.assert_outcomes(passed=6)


def test_a_synchronous_test_gets_the_seed_and_is_left_alone(run: Run) -> None:
    result = run(
        """
        from trionet.testing import simulate

        @pytest.mark.seeds(2)
        def test_one(net_seed):
            assert simulate(order_of_five, seed=net_seed).seed == net_seed
        """
    )

    result.assert_outcomes(passed=2)


def test_the_option_chooses_one_seed(run: Run) -> None:
    result = run(
        """
        @pytest.mark.seeds(20)
        async def test_one(net_seed):
            assert net_seed == 137

        async def test_two(net_seed):
            assert net_seed == 137
        """,
        "--net-seed=137",
        "-v",
    )

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["*::test_one[[]seed137] PASSED*", "*::test_two PASSED*"])


@pytest.mark.parametrize(
    "mark", ["seeds()", "seeds(0)", "seeds('7')", "seeds(2, n=3)", "seeds(1, 2)"]
)
def test_a_mark_that_makes_no_sense_is_refused(run: Run, mark: str) -> None:
    result = run(
        f"""
        @pytest.mark.{mark}
        async def test_one(): ...
        """
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*test_one: seeds takes a positive number, got seeds(*"])


RACE = """
    @pytest.mark.seeds(12)
    async def test_race(nursery):
        order = await order_of_five()
        assert order[0] != 3, order
"""


def orders_in(result: pytest.RunResult) -> set[str]:
    """Return the lists in the messages of assertions."""
    return set(re.findall(r"AssertionError: (\[[\d, ]+\])", str(result.stdout)))


@both
def test_a_failure_tells_how_to_repeat_it_and_that_repeats_it(
    run: Run, run_apart: Run, without: tuple[str, ...]
) -> None:
    source = RACE if not without else RACE.replace("nursery", "")
    first = run(source, *without)

    failed = [line for line in first.outlines if line.startswith("To repeat it: ")]
    assert 1 <= len(failed) < 12
    for line in failed[:2]:
        seed = line.rpartition("=")[2]
        assert line == (
            f'To repeat it: pytest "test_it.py::test_race[seed{seed}]" --net-seed={seed}'
        )
        again = run_apart(
            source, f"test_it.py::test_race[seed{seed}]", f"--net-seed={seed}", *without
        )
        again.assert_outcomes(failed=1)
        assert orders_in(again) <= orders_in(first)
        assert len(orders_in(again)) == 1


def test_the_same_seeds_fail_in_every_process_however_fixtures_were_ordered(
    run_apart: Run,
) -> None:
    # pytest-trio starts fixtures in the order of a set of objects, another one in each process.
    # How long the first of these takes, and so how much chance it uses up, depends on it.
    source = """
        ready = []

        @pytest.fixture
        async def one():
            while not ready:
                await trio.lowlevel.checkpoint()

        @pytest.fixture
        async def two():
            await trio.lowlevel.checkpoint()
            ready.append(True)
            yield
            ready.clear()

        @pytest.fixture
        async def three():
            for _ in range(6):
                await trio.lowlevel.checkpoint()

        @pytest.mark.seeds(12)
        async def test_race(one, two, three, nursery):
            order = await order_of_five()
            assert order[0] < 2, order
    """
    runs = {frozenset(orders_in(run_apart(source))) for _ in range(3)}

    assert len(runs) == 1
    assert len(runs.pop()) >= 1


def test_what_fixtures_start_runs_in_the_order_of_the_seed_in_every_process(
    run_apart: Run,
) -> None:
    source = """
        order = []

        async def start(nursery, number):
            async def wait():
                await trio.sleep(100)
                order.append(number)
            nursery.start_soon(wait)

        @pytest.fixture
        async def one(nursery):
            await start(nursery, 1)

        @pytest.fixture
        async def two(nursery):
            await start(nursery, 2)

        @pytest.fixture
        async def three(nursery):
            await start(nursery, 3)

        @pytest.mark.seeds(8)
        async def test_race(one, two, three, nursery):
            order.clear()
            await trio.sleep(200)
            print("ORDER", order)
    """
    runs = {
        tuple(line for line in run_apart(source, "-s").outlines if "ORDER" in line)
        for _ in range(3)
    }

    assert len(runs) == 1
    assert len(set(runs.pop())) > 1


# What fails a test


@both
def test_a_deadlock_fails_the_test_and_shows_the_tasks(run: Run, without: tuple[str, ...]) -> None:
    result = run(
        """
        async def test_one(net_seed):
            await trio.Event().wait()
        """,
        *without,
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*Deadlock: nothing can happen any more*", "*waits in Event.wait, test_it.py:*"]
    )


def test_a_deadlock_in_a_fixture_fails_the_test(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        async def stuck(net_seed):
            await trio.sleep_forever()

        async def test_one(stuck): ...
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Deadlock: nothing can happen any more*"])


def test_a_real_socket_fails_the_test(run: Run) -> None:
    result = run(
        """
        async def test_one(net_seed):
            ours, theirs = trio.socket.socketpair()
            with ours, theirs:
                await ours.recv(1)
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*EscapeError: a task waits for a socket*"])


# Other tests, and other plugins


def test_tests_that_do_not_ask_are_run_as_ever(run: Run) -> None:
    result = run(
        """
        import os

        @pytest.mark.trio
        async def test_real_time():
            real = time.monotonic()
            await trio.sleep(0.05)
            assert time.monotonic() - real >= 0.05
            assert trio.current_time() > 100

        @pytest.mark.trio
        async def test_virtual_time(autojump_clock):
            await trio.sleep(1000)
            assert trio.current_time() == 1000
            assert time.time() < 1893456000

        def test_synchronous():
            assert os.urandom(8) != os.urandom(8)
        """
    )

    result.assert_outcomes(passed=3)


def test_the_mode_of_pytest_trio_does_not_matter(run: Run) -> None:
    result = run(
        """
        @pytest.mark.seeds(2)
        @pytest.mark.trio
        async def test_one(nursery):
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(1000)
            assert trio.current_time() == 1000
        """,
        "-o",
        "trio_mode=true",
    )

    result.assert_outcomes(passed=2)


def test_pytest_trios_autojump_clock_may_be_asked_for_and_its_mock_clock_not(run: Run) -> None:
    result = run(
        """
        async def test_one(net_seed, autojump_clock):
            autojump_clock.jump(5)
            await trio.sleep(1000)
            assert trio.current_time() == autojump_clock.current_time() == 1005

        async def test_two(net_seed, mock_clock): ...
        """
    )

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*a simulated test needs no clock*"])


def test_skipping_and_expecting_failure_work(run: Run) -> None:
    result = run(
        """
        async def test_skips(net_seed):
            pytest.skip("not today")

        async def test_expected(net_seed):
            pytest.xfail("known")

        @pytest.mark.xfail(strict=True)
        async def test_marked(net_seed):
            assert False
        """
    )

    result.assert_outcomes(skipped=1, xfailed=2)
    result.stdout.no_fnmatch_line("*To repeat it*")


def test_hypothesis_on_an_async_test_is_refused_in_words(run: Run) -> None:
    result = run(
        """
        from hypothesis import given, strategies

        @given(n=strategies.integers())
        async def test_one(net_seed, n): ...
        """
    )

    result.assert_outcomes(failed=0, errors=1)
    result.stdout.fnmatch_lines(["*@given on an async test cannot be simulated*"])


def test_hypothesis_and_simulate_go_together(run: Run) -> None:
    result = run(
        """
        from hypothesis import given, strategies
        from trionet.testing import simulate

        @given(n=strategies.integers(0, 1000), seed=strategies.integers(0, 1000))
        def test_one(n, seed):
            run = simulate(trio.sleep, n, seed=seed)
            assert run.time == n
        """
    )

    result.assert_outcomes(passed=1)


def test_another_plugins_run_is_noticed(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest, trio

        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem):
            trio.run(lambda: pyfuncitem.obj(net_seed=0))
            return True
        """
    )
    result = run(
        """
        async def test_one(net_seed): ...
        """,
        "-p",
        "no:trio",
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*another plugin than pytest-trio runs this test*"])


def test_naming_the_plugin_twice_does_no_harm(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest("pytest_plugins = ['trionet.pytest_plugin']")
    result = run(
        """
        async def test_one(net_seed): ...
        """,
        "-p",
        "trionet.pytest_plugin",
    )

    result.assert_outcomes(passed=1)


def test_the_mark_and_the_option_are_described(run: Run) -> None:
    run("", "--markers").stdout.fnmatch_lines(
        ["@pytest.mark.seeds(n): run the test with the seeds*"]
    )
    run("", "--help").stdout.fnmatch_lines(["*--net-seed=N*"])


# The other fixtures


def test_a_memory_network_takes_tcp_and_unix(run: Run) -> None:
    result = run(
        """
        @pytest.mark.trio
        @pytest.mark.parametrize("kind", ["tcp", "tcp4", "tcp6", "unix", "memu", "memb"])
        async def test_one(memory_network, nursery, kind):
            [listener] = await memory_network.listen(kind, "server:80")
            await nursery.start(trionet.Server(echo).serve, [listener])
            async with await memory_network.dial(kind, "server:80") as stream:
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
            nursery.cancel_scope.cancel()
        """
    )

    result.assert_outcomes(passed=6)


def test_a_listener_left_open_in_a_memory_network_is_an_error(run: Run) -> None:
    result = run(
        """
        @pytest.mark.trio
        async def test_one(memory_network):
            await memory_network.listen("tcp", ":80")
        """
    )

    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*listeners are left open: {'memb': [[]':80']}*"])


def test_tls_contexts_trust_each_other_and_cost_once(run: Run) -> None:
    result = run(
        """
        from functools import partial

        async def handshake(tls, context, name):
            client, server = trionet.memory_stream_pair(65536)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(trionet.start_tls, server, context, server_side=True))
                await trionet.start_tls(client, tls.client, server_hostname=name)

        @pytest.mark.trio
        async def test_local(tls):
            for name in ("localhost", "127.0.0.1", "::1"):
                await handshake(tls, tls.server, name)

        @pytest.mark.trio
        async def test_named(tls):
            context = tls.server_called("api.example", "www.example")
            await handshake(tls, context, "www.example")
            assert tls.server_called("api.example", "www.example") is context
            with pytest.raises(ValueError, match="a server needs a name"):
                tls.server_called()
        """
    )

    result.assert_outcomes(passed=2)


# The virtual network

ECHO = """
    @pytest.fixture
    def server(net):
        return net.host("server")

    async def test_an_echo(net, nursery, server):
        assert net.host("server") is server
        await nursery.start(server.run, trio.serve_tcp, echo, 7)
        async with await trio.open_tcp_stream("server", 7) as stream:
            await stream.send_all(b"hi")
            assert await stream.receive_some() == b"hi"
"""


def test_unmodified_programs_meet_on_the_network(run: Run) -> None:
    run(ECHO).assert_outcomes(passed=1)


def test_the_network_needs_no_pytest_trio(run: Run) -> None:
    result = run(
        """
        async def test_an_echo(net):
            async with trio.open_nursery() as nursery:
                await nursery.start(net.host("server").run, trio.serve_tcp, echo, 7)
                async with await trio.open_tcp_stream("server", 7) as stream:
                    await stream.send_all(b"hi")
                    assert await stream.receive_some() == b"hi"
                nursery.cancel_scope.cancel()
        """,
        "-p",
        "no:trio",
    )

    result.assert_outcomes(passed=1)


def test_the_network_has_the_seed_of_the_test(run: Run) -> None:
    result = run(
        """
        @pytest.mark.seeds(3)
        async def test_one(net, net_seed):
            assert net.seed == net_seed
        """
    )

    result.assert_outcomes(passed=3)


def test_async_fixtures_may_set_up_servers(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        async def server(net, nursery):
            host = net.host("server")
            await nursery.start(host.run, trio.serve_tcp, echo, 7)
            return host

        @pytest.mark.seeds(3)
        async def test_one(server, net):
            async with await trio.open_tcp_stream("server", 7) as stream:
                await stream.send_all(b"hi")
                assert await stream.receive_some() == b"hi"
            with pytest.raises(OSError, match="attempts to connect"):
                await trio.open_tcp_stream("server", 8)
        """
    )

    result.assert_outcomes(passed=3)


def test_a_failure_shows_the_trace_and_open_sockets(run: Run) -> None:
    result = run(ECHO.replace('== b"hi"', '== b"ho"'))

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- trionet -*",
            "seed 0, virtual time 0 s, *",
            "The last events of * on the network:",
            "* sent tcp#1 DATA server(10.*:7) > localhost(*2 bytes*",
            "What was open when it failed:",
            "  server *tcp * 0.0.0.0:7 * LISTEN",
            'To repeat it: pytest "test_it.py::test_an_echo" --net-seed=0',
        ]
    )


def test_a_deadlock_shows_the_sockets_of_its_moment(run: Run) -> None:
    result = run(
        """
        async def test_one(net, nursery):
            await nursery.start(net.host("server").run, trio.serve_tcp, echo, 7)
            async with await trio.open_tcp_stream("server", 7) as stream:
                await stream.receive_some()
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*Deadlock: nothing can happen*",
            "What was open when it failed:",
            "  localhost *tcp * 10.0.0.1:32768 * 10.0.0.2:7 * ESTABLISHED",
            "  server *tcp * 0.0.0.0:7 * LISTEN",
            "  server *tcp * 10.0.0.2:7 * 10.0.0.1:32768 * ESTABLISHED",
        ]
    )


def test_a_failure_leaves_a_picture_and_a_capture(run: Run, pytester: pytest.Pytester) -> None:
    result = run(ECHO.replace('== b"hi"', '== b"ho"'))

    files = pytester.path / ".pytest_cache" / "d" / "trionet"
    stem = "test_it.py_test_an_echo"
    result.stdout.fnmatch_lines(
        [
            f"Its end as a picture: {files}/{stem}.svg",
            f"All of it for Wireshark: {files}/{stem}.pcapng",
        ]
    )
    picture = ElementTree.parse(files / f"{stem}.svg").getroot()
    assert {"localhost", "server"} <= set(picture.itertext())
    # The magic number of pcapng's section header.
    assert (files / f"{stem}.pcapng").read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"


def test_a_picture_that_cannot_be_written_is_no_second_failure(
    run: Run, pytester: pytest.Pytester
) -> None:
    (pytester.path / ".pytest_cache" / "d" / "trionet" / "test_it.py_test_an_echo.svg").mkdir(
        parents=True
    )
    result = run(ECHO.replace('== b"hi"', '== b"ho"'))

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["There is no picture and no capture: *"])


def test_pytest_html_shows_the_picture(run_apart: Run, pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_html")
    result = run_apart(ECHO.replace('== b"hi"', '== b"ho"'), "--html=report.html")

    result.assert_outcomes(failed=1)
    assert "&lt;svg" in (pytester.path / "report.html").read_text()


def test_a_synchronous_test_cannot_have_a_network(run: Run) -> None:
    result = run(
        """
        def test_one(net): ...
        """
    )

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["the fixture net is for async tests*"])


def test_a_socket_left_open_fails_the_test(run: Run) -> None:
    result = run(
        """
        async def test_one(net, nursery):
            await nursery.start(net.host("server").run, trio.serve_tcp, echo, 7)
            global stream
            stream = await trio.open_tcp_stream("server", 7)
        """
    )

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*sockets were left open:", "<virtual tcp socket * of localhost, *"]
    )


def test_a_network_and_tls(run: Run) -> None:
    result = run(
        """
        @pytest.mark.seeds(2)
        async def test_one(net, nursery, tls):
            await nursery.start(
                net.host("api.example").run,
                trio.serve_ssl_over_tcp, echo, 443, tls.server_called("api.example"),
            )
            stream = await trio.open_ssl_over_tcp_stream("api.example", 443, ssl_context=tls.client)
            async with stream:
                await stream.send_all(b"hi")
                assert await stream.receive_some() == b"hi"
        """
    )

    result.assert_outcomes(passed=2)
