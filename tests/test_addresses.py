"""Addresses that are typed are looked at before anything waits for them; runs of one second take names of their own."""

import re
from pathlib import Path

import pytest

from fedcl import config, rundir
from fedcl.addresses import host_problem, server_problem
from fedcl.cli import main


@pytest.mark.parametrize("address", ["fed.example.org:8000", "10.0.0.5:1", "[::1]:65535", "a:80", "under_score:9"])
def test_a_server_is_host_and_port(address: str) -> None:
    assert server_problem(address, 8000) == ""


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("http://fed.example.org:8000", "fed.example.org:8000"),
        ("https://fed.example.org:443/", "fed.example.org:443"),
        ("grpc://10.0.0.5", "10.0.0.5:8000"),
        ("fed.example.org", "fed.example.org:8000"),
        ("fed.example.org:8000/v1", "fed.example.org:8000"),
        ("fed.example.org:0", "fed.example.org:8000"),
        ("fed.example.org:65536", "fed.example.org:8000"),
        ("two words:8000", "fed.example.org:8000"),
        ("a;b:8000", "fed.example.org:8000"),
        ("::1:8000", "fed.example.org:8000"),
        (":8000", "fed.example.org:8000"),
        ("", "fed.example.org:8000"),
    ],
)
def test_what_is_no_server_is_told_with_what_is_meant(
    address: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "--server", address, "--state", str(tmp_path / "s")]) == 2
    assert capsys.readouterr().err == f"fedcl: --server {address!r}: must be HOST:PORT, as {meant}\n"
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["no such host", "300.1.1.1", "198.51.100.77"])
def test_a_server_says_at_once_where_it_cannot_listen(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """198.51.100.77: of a net for documentation, so no address of this machine but by chance."""
    assert main(["server", "split-digits", "--host", host, "--state", str(tmp_path / "s")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"fedcl: --host {host!r}: ")
    assert said.endswith("; 0.0.0.0 stands for all addresses of this machine\n")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_server_can_listen_at_addresses_of_this_machine(host: str) -> None:
    assert host_problem(host) == ""


def test_runs_that_begin_in_one_second_take_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    scenario = config.load("split-digits")
    made = [rundir.create(scenario, None) for _ in range(4)]
    first = made[0].name
    assert re.fullmatch("20260101-000000-[0-9a-f]{8}", first)
    assert [each.name for each in made] == [first, f"{first}.2", f"{first}.3", f"{first}.4"]
    assert all((each / "config.yaml").is_file() for each in made)
