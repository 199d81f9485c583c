"""Workers: forked, drained, and started again."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import trionet
from tests.server.programs import Program, ask, eventually, is_alive, reply, start

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")


def test_all_workers_serve_and_a_signal_drains_them(programs: list[Program], path: str) -> None:
    program, pids = start(programs, f"run_workers(main, 2, binds=[('unix', {path!r})])", 2)
    assert len(pids) == 2
    answers: set[int] = set()
    for _ in range(1000):
        answers.add(int(reply(ask(path))))
        if answers == pids:
            break
    assert answers == pids

    slow = ask(path, "slow")
    assert slow.recv(5) == b"wait "
    program.signal(signal.SIGTERM)

    # Nobody new is let in, at once; who is being served is served to the end.
    eventually(lambda: not os.path.exists(path))
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        ask(path)
    assert int(reply(slow)) in pids
    code, errors = program.end()
    assert code == 0
    assert "ERROR" not in errors


def test_a_second_signal_ends_the_drain_at_once(programs: list[Program], path: str) -> None:
    program, _ = start(programs, f"run_workers(main, 2, binds=[('unix', {path!r})])", 2)
    stuck = ask(path, "never")
    assert stuck.recv(5) == b"wait "

    begun = time.monotonic()
    program.signal(signal.SIGTERM)
    time.sleep(0.3)
    assert program.process.poll() is None
    program.signal(signal.SIGTERM)

    assert program.end()[0] == 0
    assert time.monotonic() - begun < 5
    stuck.close()


def test_a_third_signal_kills_a_worker_that_heeds_none(programs: list[Program]) -> None:
    program = Program(
        """
        async def deaf(sockets):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("started", flush=True)
            import time
            while True:
                time.sleep(1)

        run_workers(deaf, 1)
        """
    )
    programs.append(program)
    assert program.line() == "started"
    for _ in range(3):
        time.sleep(0.1)
        assert program.process.poll() is None
        program.signal(signal.SIGTERM)

    code, errors = program.end()
    assert code == 0
    assert "ended with -9" in errors


def test_ctrl_c_reaches_the_workers_once_and_drains_them(
    programs: list[Program], path: str
) -> None:
    program, pids = start(programs, f"run_workers(main, 1, binds=[('unix', {path!r})])", 1)
    slow = ask(path, "slow")
    assert slow.recv(5) == b"wait "

    os.killpg(program.process.pid, signal.SIGINT)

    assert int(reply(slow)) in pids
    told = f"INFO:trionet.process:worker 0 ({pids.pop()}) ended with 0\n"
    assert program.end() == (0, told)


def test_a_dead_worker_is_replaced_and_its_backlog_served(
    programs: list[Program], path: str
) -> None:
    program, (old,) = start(
        programs,
        f"run_workers(main, 1, binds=[('unix', {path!r})], backoff=Backoff(first=0.2, jitter=0))",
        1,
    )
    dying = ask(path, "die")
    assert reply(dying) == ""
    # It comes while nobody is there.
    waiting = ask(path)

    new = int(reply(waiting))

    assert new != old
    assert program.line().split()[:2] == ["worker", str(new)]
    program.signal(signal.SIGTERM)
    code, errors = program.end()
    assert code == 0
    assert f"worker 0 ({old}) ended with 3; the next one starts in 0.20 s" in errors


def test_workers_that_die_at_once_are_started_ever_more_slowly(programs: list[Program]) -> None:
    program = Program(
        """
        async def fail(sockets):
            print("started", flush=True)
            raise RuntimeError("no configuration")

        run_workers(fail, 1, backoff=Backoff(first=0.1, factor=3, maximum=50, jitter=0))
        """
    )
    programs.append(program)
    moments = []
    for _ in range(4):
        assert program.line() == "started"
        moments.append(time.monotonic())
    program.signal(signal.SIGTERM)

    # 0.1, 0.3 and 0.9 seconds; told by a process that may be late itself, but never early.
    assert moments[-1] - moments[0] >= 1.2
    assert moments[3] - moments[2] > moments[1] - moments[0]
    code, errors = program.end()
    assert code == 0
    assert "RuntimeError: no configuration" in errors


def test_workers_drain_when_their_parent_is_killed(programs: list[Program], path: str) -> None:
    program, pids = start(programs, f"run_workers(main, 2, binds=[('unix', {path!r})])", 2)
    slow = ask(path, "slow")
    assert slow.recv(5) == b"wait "

    program.signal(signal.SIGKILL)

    assert int(reply(slow)) in pids
    eventually(lambda: not any(is_alive(pid) for pid in pids))


def test_a_workers_exit_code_and_its_words_are_told(programs: list[Program]) -> None:
    for how, code in (("sys.exit(7)", 7), ("sys.exit('enough')", 1), ("sys.exit()", 0)):
        program = Program(
            f"""
            async def leave(sockets):
                print("started", flush=True)
                {how}

            run_workers(leave, 1, backoff=Backoff(first=30))
            """
        )
        programs.append(program)
        assert program.line() == "started"
        time.sleep(0.2)
        program.signal(signal.SIGTERM)
        ended, errors = program.end()
        assert ended == 0
        assert f"ended with {code}; the next one" in errors
        assert ("enough" in errors) == ("enough" in how)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT")
def test_with_reuse_port_each_worker_has_one_socket_at_the_same_port(
    programs: list[Program],
) -> None:
    program = Program("run_workers(main, 3, binds=[('tcp', '127.0.0.1:0')], reuse_port=True)")
    programs.append(program)
    lines = [program.line() for _ in range(3)]
    ports = {line.split()[-1].strip("()") for line in lines}
    assert len(ports) == 1

    address = ("127.0.0.1", int(ports.pop()))
    for _ in range(4):
        with socket.create_connection(address, timeout=5) as sock:
            sock.send(b"sockets\n")
            assert sock.recv(100) == b"1"
    program.signal(signal.SIGTERM)
    assert program.end()[0] == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, timeout=5)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT")
def test_a_unix_socket_is_shared_also_where_tcp_ports_are_reused(
    programs: list[Program], path: str
) -> None:
    binds = [("tcp", "127.0.0.1:0"), ("unix", path)]
    program = Program(f"run_workers(main, 2, binds={binds}, reuse_port=True)")
    programs.append(program)
    lines = [program.line() for _ in range(2)]
    assert all(line.startswith("worker ") for line in lines)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(path)
        sock.send(b"sockets\n")
        assert sock.recv(100) == b"2"
    program.signal(signal.SIGTERM)
    assert program.end()[0] == 0


def test_sockets_that_listen_already_are_shared(programs: list[Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        program, pids = start(
            programs,
            f"run_workers(main, 2, binds=[socket.socket(fileno={sock.fileno()})])",
            2,
            pass_fds=[sock.fileno()],
        )
        with socket.create_connection(sock.getsockname(), timeout=5) as client:
            client.send(b"pid\n")
            assert int(client.recv(100)) in pids
        program.signal(signal.SIGTERM)
        assert program.end()[0] == 0


def test_a_successors_unix_socket_is_left_alone(programs: list[Program], path: str) -> None:
    program, _ = start(programs, f"run_workers(main, 1, binds=[('unix', {path!r})])", 1)
    successor, pids = start(programs, f"run_workers(main, 1, binds=[('unix', {path!r})])", 1)

    program.signal(signal.SIGTERM)
    assert program.end()[0] == 0

    assert int(reply(ask(path))) in pids
    successor.signal(signal.SIGTERM)
    assert successor.end()[0] == 0
    assert not os.path.exists(path)


def test_an_address_in_use_is_told_before_anything_is_forked(programs: list[Program]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        program = Program(
            f"""
            fds = len(os.listdir("/dev/fd"))
            try:
                run_workers(main, 2, binds=[("tcp", ":0"), ("tcp", "127.0.0.1:{port}")])
            except OSError as error:
                print(type(error).__name__, error.errno, len(os.listdir("/dev/fd")) == fds)
            """
        )
        programs.append(program)
        assert program.line() == "OSError 98 True"
        assert program.end() == (0, "")


def test_signals_and_descriptors_are_as_before_afterwards(
    programs: list[Program], path: str
) -> None:
    program = Program(
        f"""
        before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
        fds = os.listdir("/dev/fd")
        run_workers(main, 2, binds=[("unix", {path!r})])
        after = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
        print(before == after, signal.set_wakeup_fd(-1), fds == os.listdir("/dev/fd"))
        """
    )
    programs.append(program)
    for _ in range(2):
        program.line()
    program.signal(signal.SIGTERM)

    assert program.line() == "True -1 True"
    assert program.end()[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_is_no_file_that_is_called_so(
    programs: list[Program], tmp_path: Path
) -> None:
    name = f"@trionet-{os.getpid()}"
    program = Program(
        f"""
        os.chdir({os.fspath(tmp_path)!r})
        open({name!r}, "w").close()
        run_workers(main, 1, binds=[("unix", {name!r})])
        print(os.listdir())
        """
    )
    programs.append(program)
    assert program.line().startswith("worker ")
    program.signal(signal.SIGTERM)

    assert program.line() == str([name])
    assert program.end()[0] == 0


def test_a_path_that_cannot_be_removed_does_not_keep_the_workers(
    programs: list[Program], path: str
) -> None:
    program = Program(
        f"""
        def refuse(path):
            raise PermissionError(13, "not yours")
        unlink, parent = os.unlink, os.getpid()
        os.unlink = lambda path: refuse(path) if os.getpid() == parent else unlink(path)
        run_workers(main, 2, binds=[("unix", {path!r})])
        print("done")
        """
    )
    programs.append(program)
    for _ in range(2):
        assert program.line().startswith("worker ")
    program.signal(signal.SIGTERM)

    assert program.line() == "done"
    code, errors = program.end()
    assert code == 0
    assert f"cannot remove {path!r}: [Errno 13] not yours" in errors


def test_a_parent_with_very_many_descriptors_waits_all_the_same(programs: list[Program]) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < 2000:
        pytest.skip(f"the hard limit of descriptors is {hard}")
    program = Program(
        f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (2000, {hard}))
        held = [os.dup(0) for _ in range(1500)]
        run_workers(main, 1, binds=[("tcp", "127.0.0.1:0")])
        """
    )
    programs.append(program)
    assert program.line().startswith("worker ")
    program.signal(signal.SIGTERM)

    assert program.end()[0] == 0


def test_without_descriptors_for_its_pipes_it_fails_and_leaves_none(
    programs: list[Program],
) -> None:
    program = Program(
        """
        import resource
        before = os.listdir("/dev/fd")
        handler = signal.getsignal(signal.SIGTERM)
        listener = socket.create_server(("127.0.0.1", 0))
        highest = os.dup(0)
        os.close(highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, highest + 3))
        try:
            run_workers(main, 1, binds=[listener])
        except OSError as error:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 3, highest + 3))
            print(error.errno, before == os.listdir("/dev/fd"))
            print(signal.getsignal(signal.SIGTERM) == handler, signal.set_wakeup_fd(-1))
        """
    )
    programs.append(program)

    assert program.line() == f"{errno.EMFILE} True"
    assert program.line() == "True -1"
    assert program.end()[0] == 0


async def nothing(sockets: list[socket.socket]) -> None:
    raise AssertionError("never runs")


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((None, 1), TypeError, "main must be an async function, got None"),
        ((nothing, 0), ValueError, "n must be at least 1, got 0"),
        ((nothing, True), TypeError, "n must be an int, got True"),
        ((nothing, 1.0), TypeError, "n must be an int, got 1.0"),
    ],
)
def test_wrong_arguments_are_named(arguments: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        trionet.run_workers(*arguments)


@pytest.mark.parametrize(
    ("bind", "error", "match"),
    [
        (("memb", "site"), ValueError, "cannot share memory networks"),
        (("tcp", "nonsense"), ValueError, "expected host:port"),
        ("tcp", TypeError, "pairs and sockets, got 'tcp'"),
        (("tcp", ":0", 5), TypeError, "pairs and sockets"),
    ],
)
def test_wrong_binds_are_named(bind: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        trionet.run_workers(nothing, 1, binds=[bind])
    with pytest.raises(TypeError, match="backoff must be a Backoff, got 3"):
        trionet.run_workers(nothing, 1, backoff=3)  # type: ignore[arg-type]


def test_a_socket_that_does_not_listen_is_refused() -> None:
    with socket.socket() as sock, pytest.raises(ValueError, match="must be listening"):
        trionet.run_workers(nothing, 1, binds=[sock])


async def test_inside_trio_there_is_no_forking() -> None:
    with pytest.raises(RuntimeError, match=r"outside of trio\.run"):
        trionet.run_workers(nothing, 1)


def test_beside_another_thread_there_is_no_forking() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="other")
    thread.start()
    try:
        with pytest.raises(RuntimeError, match=r"with one thread running, got .*other"):
            trionet.run_workers(nothing, 1)
    finally:
        done.set()
        thread.join()
