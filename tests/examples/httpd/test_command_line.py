"""The server as a program: real sockets, curl, signals."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import trustme

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parents[3]
CURL = shutil.which("curl")

needs_curl = pytest.mark.skipif(CURL is None, reason="curl is not installed")


class Program:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], started: str) -> None:
        self.process = process
        self.started = started
        self.ports = [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)  ", started)]
        self.stopped = ""

    def stop(self) -> int:
        """Ask it to stop; return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        self.stopped = self.process.communicate(timeout=20)[0]
        return self.process.returncode


@contextmanager
def running(*arguments: str) -> Iterator[Program]:
    """Run ``python -m examples.httpd`` until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "examples.httpd", *arguments],
        cwd=HERE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        started = ""
        while "a second one stops at once" not in started:
            line = process.stdout.readline()
            assert line, f"it ended: {started}"
            started += line
        yield Program(process, started)
    finally:
        process.kill()
        process.communicate()


def curl(*arguments: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run curl."""
    assert CURL is not None
    return subprocess.run(
        [CURL, "--silent", "--show-error", "--max-time", "20", *arguments],
        input=data,
        capture_output=True,
        check=False,
    )


def test_it_serves_tcp_tls_and_unix_and_tells_where(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    binds = ["--bind", "tcp:127.0.0.1:0", "--tls-bind", "tcp:127.0.0.1:0", "--bind", f"unix:{path}"]
    with running(*binds, "--bind", "memu:site", "--root", str(root)) as program:
        plain, secure = program.ports
        authority = re.search(r"its authority: (\S+)", program.started)
        assert authority is not None
        context = ssl.create_default_context(cafile=authority[1])
        unix = httpx.HTTPTransport(uds=str(path))
        answers = [
            httpx.get(f"http://127.0.0.1:{plain}/a.txt", trust_env=False),
            httpx.get(f"https://localhost:{secure}/a.txt", verify=context, trust_env=False),
        ]
        with httpx.Client(transport=unix) as client:
            answers.append(client.get("http://site/a.txt"))

        assert [one.content for one in answers] == [b"0123456789"] * 3
        assert f"unix:{path}" in program.started
        assert "memu:site" in program.started
        assert program.stop() == 0, program.stopped
        assert "ShutdownReport" in program.stopped
        assert program.stopped.count('"GET /a.txt HTTP/1.1" 200 10\n') == 3
        assert not path.exists()
        assert not Path(authority[1]).exists()


def test_a_given_certificate_is_used(root: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    bind = ["--tls-bind", "tcp:127.0.0.1:0", "--cert", str(cert), "--key", str(key)]
    with running(*bind, "--root", str(root)) as program:
        url = f"https://localhost:{program.ports[0]}/"

        assert httpx.get(url, verify=context, trust_env=False).content == b"<h1>front</h1>"


def test_the_bundled_site_is_served_and_the_log_can_be_left_out() -> None:
    with running("--bind", "tcp:127.0.0.1:0", "--no-access-log") as program:
        url = f"http://127.0.0.1:{program.ports[0]}"
        with httpx.Client(base_url=url, trust_env=False) as client:
            page = client.get("/")
            links = re.findall(r'(?:href|src)="([^"]+)"', page.text)

            assert len(links) >= 5
            for link in links:
                assert client.get(httpx.URL(url + "/").join(link)).status_code == 200, link
        program.stop()

        assert "GET" not in program.stopped


@needs_curl
def test_curl_gets_what_it_asks_for(root: Path) -> None:
    with running("--bind", "tcp:127.0.0.1:0", "--root", str(root)) as program:
        url = f"http://127.0.0.1:{program.ports[0]}"

        assert curl(f"{url}/a.txt").stdout == b"0123456789"
        assert curl("--http1.0", f"{url}/a.txt").stdout == b"0123456789"
        head = curl("--head", f"{url}/a.txt").stdout
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"content-length: 10\r\n" in head
        assert curl("--range", "2-4", f"{url}/a.txt").stdout == b"234"
        assert curl("--compressed", f"{url}/a.txt", f"{url}/").stdout == b"0123456789<h1>front</h1>"
        assert curl("--http2", f"{url}/a.txt").stdout == b"0123456789"
        assert curl("--location", f"{url}/sub").stdout == b"<h1>sub</h1>"
        assert curl("--path-as-is", f"{url}/../secret.txt").stdout.startswith(b"404 ")
        # A failed request ends the program with 22.
        assert curl("--fail", f"{url}/missing").returncode == 22


@needs_curl
def test_curl_uploads_with_and_without_a_length_and_asks_first(root: Path) -> None:
    body = bytes(range(256)) * 20_000
    with running("--bind", "tcp:127.0.0.1:0", "--root", str(root)) as program:
        url = f"http://127.0.0.1:{program.ports[0]}/echo"

        chunked = curl("--header", "Transfer-Encoding: chunked", "-T", "-", url, data=body)
        sized = curl("--data-binary", "@-", url, data=body)
        asked = curl(
            "--verbose", "--header", "Expect: 100-continue", "-d", "@-", url, data=b"a" * 2000
        )

        assert chunked.stdout == body
        assert sized.stdout == body
        assert asked.stdout == b"a" * 2000
        assert b"100 Continue" in asked.stderr


def test_raw_pipelined_bytes_and_a_half_closed_client_are_answered(root: Path) -> None:
    with (
        running("--bind", "tcp:127.0.0.1:0", "--root", str(root)) as program,
        socket.create_connection(("127.0.0.1", program.ports[0]), timeout=20) as sock,
    ):
        sock.sendall(b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n" * 3)
        sock.shutdown(socket.SHUT_WR)
        received = b"".join(iter(lambda: sock.recv(65536), b""))

    assert received.count(b"0123456789") == 3


def test_a_download_that_runs_when_the_signal_comes_is_finished(root: Path) -> None:
    with running("--bind", "tcp:127.0.0.1:0", "--root", str(root)) as program:
        url = f"http://127.0.0.1:{program.ports[0]}/bytes/100000000"
        received = 0
        with httpx.stream("GET", url, trust_env=False) as response:
            for part in response.iter_raw():
                if not received:
                    program.process.send_signal(signal.SIGTERM)
                    time.sleep(0.2)
                    with pytest.raises(ConnectionRefusedError):
                        socket.create_connection(("127.0.0.1", program.ports[0]))
                received += len(part)
        output = program.process.communicate(timeout=20)[0]

    assert received == 100_000_000
    assert "ShutdownReport(completed=1, cancelled=0, forced=0)" in output


def test_a_second_signal_stops_at_once(root: Path) -> None:
    with running("--bind", "tcp:127.0.0.1:0", "--root", str(root), "--grace", "60") as program:
        url = f"http://127.0.0.1:{program.ports[0]}/bytes/100000000"
        with httpx.stream("GET", url, trust_env=False):
            program.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
            program.process.send_signal(signal.SIGINT)
            output = program.process.communicate(timeout=20)[0]

    assert "ShutdownReport(completed=0, cancelled=1, forced=0)" in output


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("ends", "told"), [("at once", "Broken pipe"), ("later", "Broken pipe"), ("never was", "")]
)
def test_it_serves_on_and_drains_when_nobody_reads_its_log(
    root: Path, tmp_path: Path, ends: str, told: str
) -> None:
    port = free_port()
    command = f"{sys.executable} -m examples.httpd --bind tcp:127.0.0.1:{port} --root {root}"
    errors = tmp_path / "errors"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {command}" + (" >&-" if ends == "never was" else "")],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        if ends == "later":
            while "a second one stops at once" not in process.stdout.readline():
                pass
        process.stdout.close()
        url = f"http://127.0.0.1:{port}/a.txt"
        with httpx.Client(transport=httpx.HTTPTransport(), trust_env=False) as client:
            for attempt in range(200):
                try:
                    client.get(url)
                    break
                except httpx.ConnectError:
                    assert attempt < 199, errors.read_text()
                    time.sleep(0.05)
            for _ in range(2):
                # Longer than lines wait to be written together.
                time.sleep(0.3)
                assert client.get(url).content == b"0123456789"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, errors.read_text()
    finally:
        process.kill()
        process.wait()

    message = errors.read_text()
    assert told in message
    assert message.count("\n") == bool(told)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bind", "nonsense"], "expected NETWORK:ADDRESS, got 'nonsense'"),
        (["--bind", "tcp:nonsense"], "'nonsense'"),
        (["--bind", "tcp:127.0.0.1:70000"], "'70000'"),
        (["--bind", "carrier:pigeon"], "unknown network 'carrier'"),
        (["--bind", "memu:"], "must not be empty"),
        (["--root", "/nonexistent"], "not a folder: '/nonexistent'"),
        (["--root", __file__], "not a folder"),
        (["--grace", "soon"], "expected a number of seconds, got 'soon'"),
        (["--grace", "-1"], "'-1'"),
        (["--grace", "nan"], "'nan'"),
        (["--cert", "x.pem"], "--cert and --key go together"),
        (["--cert", "x.pem", "--key", "y.pem"], "--tls-bind, which is missing"),
        (["--tls-bind", "tcp::0", "--cert", "x.pem", "--key", "y.pem"], "cannot use --cert x.pem"),
        (["--proxy-protocol", "10.0.0.0/99"], "10.0.0.0/99"),
        (["--max-connections", "0"], "expected a number above zero, got '0'"),
        (["--max-connections", "many"], "'many'"),
        (["--send-timeout", "0"], "expected seconds above zero, got '0'"),
        (["--send-timeout", "inf"], "'inf'"),
        (["--unknown"], "unrecognized arguments"),
    ],
)
def test_bad_arguments_are_told_and_end_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.httpd.command_line import main

    with pytest.raises(SystemExit) as caught:
        main(arguments)

    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_an_address_in_use_is_told_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    from examples.httpd.command_line import main

    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"tcp:127.0.0.1:{taken.getsockname()[1]}"

        assert main(["--bind", where, "--no-access-log"]) == 1

    assert f"cannot listen on {where}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "status"),
    [("/" + "x" * 102 + "/s", 2), ("/nonexistent/s", 1)],
    ids=["long", "nowhere"],
)
def test_an_address_that_cannot_be_listened_on_is_told(
    path: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from examples.httpd.command_line import main

    # The first one is fine, and must not be left listening.
    assert main(["--bind", "tcp:127.0.0.1:0", "--bind", f"unix:{path}"]) == status

    told = capsys.readouterr().err
    assert told.startswith(f"httpd: cannot listen on unix:{path}: ")
    assert told.count("\n") == 1


def test_a_client_that_does_not_read_is_cut_and_makes_room(root: Path) -> None:
    limits = ["--max-connections", "1", "--send-timeout", "0.5"]
    with (
        running("--bind", "tcp:127.0.0.1:0", "--root", str(root), *limits) as program,
        socket.create_connection(("127.0.0.1", program.ports[0]), timeout=20) as first,
        socket.create_connection(("127.0.0.1", program.ports[0]), timeout=20) as second,
    ):
        first.sendall(b"GET /bytes/1000000000 HTTP/1.1\r\nHost: a\r\n\r\n")
        second.sendall(b"GET /a.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(1)
        second.settimeout(20)

        assert second.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.skipif(not hasattr(signal, "SIGCHLD"), reason="this system cannot fork")
def test_workers_share_the_addresses_and_a_dead_one_is_replaced() -> None:
    with running("--workers", "2", "--bind", "tcp:127.0.0.1:0", "--no-access-log") as program:
        url = f"http://127.0.0.1:{program.ports[0]}/healthz"
        assert httpx.get(url).text == "ok\n"

        children = children_of(program.process.pid)
        assert len(children) == 2
        os.kill(children[0], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while len(alive := set(children_of(program.process.pid)) - {children[0]}) < 2:
            assert time.monotonic() < deadline, alive
            time.sleep(0.02)
        assert httpx.get(url).text == "ok\n"

        assert program.stop() == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


def children_of(pid: int) -> list[int]:
    """Return the processes that ``pid`` has forked and that run."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True, check=False
    )
    rows = [line.split() for line in listed.stdout.splitlines()]
    return [int(row[0]) for row in rows if not row[1].startswith("Z")]


def test_workers_serve_tls_beside_plain_http() -> None:
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
            ports.append(sock.getsockname()[1])
    plain, secure = ports
    arguments = ["--bind", f"tcp:127.0.0.1:{plain}", "--tls-bind", f"tcp:127.0.0.1:{secure}"]
    with running("--workers", "2", *arguments, "--no-access-log") as program:
        assert httpx.get(f"http://127.0.0.1:{plain}/healthz").text == "ok\n"
        authority = re.search(r"its authority: (\S+)", program.started)
        assert authority is not None
        context = ssl.create_default_context(cafile=authority[1])
        answer = httpx.get(f"https://127.0.0.1:{secure}/healthz", verify=context)
        assert answer.text == "ok\n"
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bind", "memu:site"], "shares tcp addresses only"),
        (["--bind", "tcp::8080", "--tls-bind", "tcp::0"], "need a port for each bind"),
        (["--bind", "tcp::8080", "--tls-bind", "tcp:127.0.0.1:8080"], "need a port for each bind"),
    ],
)
def test_what_workers_cannot_share_is_refused(arguments: list[str], words: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "examples.httpd", "--workers", "2", *arguments],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert run.returncode == 2
    assert words in run.stderr
