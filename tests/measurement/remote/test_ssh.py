"""A board at the end of an ssh line: a real OpenSSH server, its line cut in the middle, and everything that can be wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fmopt.cli import app
from fmopt.core.errors import BoardError, ConfigError, UnmeasuredError
from fmopt.core.model import Artifact
from fmopt.core.target import read_target
from fmopt.edge.board.agent import FOLDER
from fmopt.exporters.bundles import bundle_writer
from fmopt.exporters.bundles.golden import Golden
from fmopt.measurement.remote import python_env
from fmopt.measurement.remote import ssh as boards
from fmopt.measurement.remote.ssh import Address, Board, open_board
from fmopt.workflow.benchmark import remote
from fmopt.workflow.benchmark.record import Benchmark
from tests import openssh
from tests.exporters.bundles.test_bundle import facts_of, write_graph

REASON = openssh.absent()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
NewDevice = Callable[..., openssh.Device]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openssh.Line]:
    made = openssh.Line(tmp_path_factory.mktemp("line"), openssh.namespaces_allowed())
    yield made
    made.close()


@pytest.fixture
def new_device(line: openssh.Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[NewDevice]:
    """Devices of a test; our ssh is found before the system's, and a dead line is found out in two seconds."""
    made: list[openssh.Device] = []

    def new(*, path: str | None = None, home: Path | None = None, before: tuple[str, ...] = ()) -> openssh.Device:
        folder = tmp_path / f"device{len(made)}"
        made.append(openssh.Device(line, folder, path or openssh.python_path(), home or folder / "home", before))
        monkeypatch.setenv("PATH", made[-1].client_path)
        return made[-1]

    quick = {"ServerAliveInterval=5": "ServerAliveInterval=1", "ServerAliveCountMax=3": "ServerAliveCountMax=2"}
    short = {**quick, "ConnectTimeout=10": "ConnectTimeout=3"}
    monkeypatch.setattr(boards, "OPTIONS", tuple(short.get(word, word) for word in boards.OPTIONS))
    yield new
    line.unthrottle()
    for one in made:
        if line.spaces:
            one.mend()
        one.stop()


@pytest.fixture
def tiny_bundle(tmp_path: Path, tiny_checkpoint: Any) -> Path:
    checkpoint = tiny_checkpoint("bert", "text-classification")
    return write_tiny(tmp_path / "tiny-bundle", checkpoint, tmp_path)


def write_tiny(out: Path, checkpoint: Path, scratch: Path, needs: tuple[str, ...] = ()) -> Path:
    from fmopt.edge import loading, runners
    from fmopt.edge import text as edge_text

    artifact = Artifact("onnxruntime", write_graph(scratch / "graph" / "model.onnx"), {})
    metadata = facts_of(checkpoint)
    samples = ["the cat sat on the mat", "a small dog"]
    model = loading.Model(
        {"pipeline": dict(metadata.pipeline)},
        edge_text.open_preprocessor(checkpoint, dict(metadata.pipeline)),
        runners.open_runner("onnxruntime", artifact.path, {}, 1),
    )
    return bundle_writer.write_bundle(
        out, metadata=metadata, artifact=artifact, recipe={"name": "tiny", "precision": "fp32"}, verdict="PASS",
        golden=Golden(list(zip(samples, model.predict(samples), strict=True)), tolerance=1e-3), needs_isa=needs,
    )  # fmt: skip


class Reported:
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def start(self, text: str, total: int) -> None:
        self.lines.append(text)

    def step(self, done: int = 1) -> None: ...

    def stop(self) -> None: ...


def test_a_bundle_is_benched_there_and_leaves_nothing_but_its_folder(
    new_device: NewDevice, tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = new_device()
    asked = ["bench", str(tiny_bundle), "--on", device.url, "--length", "16", "-o", str(tmp_path / "out")]
    assert app.main([*asked, "--json"]) == 0
    reported = Benchmark.model_validate_json(capsys.readouterr().out)
    assert reported == Benchmark.load(tmp_path / "out")
    (cell,) = reported.cells
    assert (cell.place.batch, cell.place.length, reported.stopped) == (1, 16, "")
    assert len(cell.measured.samples_ms[str(tiny_bundle)]) >= 200
    assert reported.host["arch"] == os.uname().machine
    assert reported.host["memory_gb"] > 0
    assert set(reported.versions) == {"onnxruntime"}
    assert (tmp_path / "out" / "benchmark.html").is_file()
    assert [path.name for path in device.home.iterdir()] == [FOLDER]
    assert not any((device.home / FOLDER / "jobs").iterdir())
    assert app.main([*asked, "--clean"]) == 0
    shown = [line.strip().partition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert tiny_bundle.name in "".join(shown)  # a long path goes on in the next line of its cell
    assert list(device.home.iterdir()) == []


def test_a_probe_there_is_a_target(new_device: NewDevice, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fmopt.measurement import host_probe

    device = new_device()
    assert app.main(["targets", "probe", "--on", device.url, "-o", str(tmp_path / "board.toml"), "--clean"]) == 0
    capsys.readouterr()
    target = read_target(str(tmp_path / "board.toml"))
    here = host_probe.host_fingerprint()
    assert (target.title, list(target.isa), target.cores) == (here["cpu"], here["isa"], here["cores"])
    assert set(target.gops) == {"fp32", "int8"}
    assert all(figure > 0.1 for figure in (*target.gops.values(), target.bandwidth_gbs))
    assert {"onnxruntime", "openvino"} == set(target.runtimes)
    assert not target.present
    assert list(device.home.iterdir()) == []


def test_a_copy_goes_on_where_the_line_was_cut(
    new_device: NewDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, reported = new_device(), Reported()
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(6_000_000))
    board, _ = open_board(device.url, reported)
    sent: list[int] = []
    once = Board._once
    monkeypatch.setattr(
        Board, "_once",
        lambda self, verb, request, files: (
            sent.extend(offset for _, offset in files), once(self, verb, request, files)
        )[1],
    )  # fmt: skip
    if device.line.spaces:
        device.line.throttle("12mbit")  # some four seconds

    def cut() -> None:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            parts = list((device.home / FOLDER).glob("bundles/*.part-*"))
            if parts and parts[0].stat().st_size > 1_000_000:
                break
            time.sleep(0.01)
        device.cut()
        time.sleep(4)
        device.mend()

    cutter = threading.Thread(target=cut)
    cutter.start()
    board.send({"bundles/payload": payload})
    cutter.join()
    assert (device.home / FOLDER / "bundles" / "payload").read_bytes() == payload.read_bytes()
    assert any("was cut" in line for line in reported.lines)
    if device.line.spaces:  # a loopback may be too fast to be cut in the middle
        assert sent[0] == 0
        assert sent[-1] > 1_000_000
    sent.clear()
    board.send({"bundles/payload": payload})
    assert sent == []  # it is there


def test_a_run_goes_on_while_the_line_is_down(new_device: NewDevice, tmp_path: Path) -> None:
    device, reported = new_device(), Reported()
    board, _ = open_board(device.url, reported)
    runs = tmp_path / "runs"
    code = f"import time; runs = open({str(runs)!r}, 'a', 1); runs.write('x'); time.sleep(7); print('done', file=runs); print(41)"
    threading.Timer(2, device.cut).start()
    mend = threading.Timer(6.5, device.mend)
    mend.start()
    out, _ = board.job("slow", ["python3", "-c", code], cwd="jobs")
    mend.join()
    assert out == "41\n"
    assert runs.read_text() == "xdone\n"  # started once, and not cut short
    assert any("was cut" in line for line in reported.lines)
    assert not (device.home / FOLDER / "jobs" / "slow").exists()


def test_a_command_that_was_killed_finds_its_job_again(new_device: NewDevice, tmp_path: Path) -> None:
    board, _ = open_board(new_device().url)
    argv = ["python3", "-c", f"open({str(tmp_path / 'runs')!r}, 'a').write('x'); print(5)"]
    board.ask("start", job="left", argv=argv, cwd="jobs")
    assert board.job("left", argv, cwd="jobs")[0] == "5\n"
    assert (tmp_path / "runs").read_text() == "x"


def test_a_line_that_stays_down_is_unmeasured(new_device: NewDevice) -> None:
    device = new_device()
    board, _ = open_board(device.url)
    board.patience_s = 1
    device.cut()
    with pytest.raises(UnmeasuredError, match="did not come back"):
        board.ask("hello")


def one_line(device_url: str, capsys: pytest.CaptureFixture[str], bundle: Path | None = None) -> str:
    """What the command says, which is one line, with exit code 2."""
    verb = (
        ["targets", "probe"]
        if bundle is None
        else ["bench", str(bundle), "--length", "16", "-o", str(bundle.parent / "never")]
    )
    assert app.main([*verb, "--on", device_url]) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    assert "Traceback" not in said
    return said


def test_another_host_key_is_refused(new_device: NewDevice, capsys: pytest.CaptureFixture[str]) -> None:
    device = new_device()
    device.know((device.folder / "id.pub").read_text())
    assert "is not the one that is known" in one_line(device.url, capsys)
    device.know(None)
    assert "is not known yet" in one_line(device.url, capsys)
    assert not (device.home / FOLDER).exists()


def test_a_key_that_is_not_let_in(new_device: NewDevice, capsys: pytest.CaptureFixture[str]) -> None:
    device = new_device()
    (device.folder / "authorized_keys").write_text("")
    assert "lets no key of yours in" in one_line(device.url, capsys)


def test_no_route_and_nobody_there(new_device: NewDevice, capsys: pytest.CaptureFixture[str]) -> None:
    device = new_device()
    device.stop()
    assert "connection refused" in one_line(device.url, capsys)
    if device.line.spaces:
        device.start()
        device.cut()
        said = one_line(device.url, capsys)
        assert "there is no route to" in said or "does not answer" in said


def test_no_python_there(new_device: NewDevice, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "there is no python3 on" in one_line(new_device(path=str(tmp_path / "nothing")).url, capsys)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_there(
    new_device: NewDevice, small_disk: Path, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    device = new_device(home=small_disk)
    assert "are to be copied and 1 MB are free" in one_line(device.url, capsys, tiny_bundle)
    monkeypatch.setattr(boards, "SPARE_BYTES", -(10**9))  # it fills up while we copy
    (tmp_path / "big").write_bytes(os.urandom(3_000_000))
    board, _ = open_board(device.url)
    with pytest.raises(BoardError, match=r"the disk of .* is full \(.*No space left on device\)"):
        board.send({"big": tmp_path / "big"})


def test_a_cpu_without_what_the_bundle_was_judged_with(
    new_device: NewDevice, tmp_path: Path, tiny_checkpoint: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = write_tiny(
        tmp_path / "int8", tiny_checkpoint("bert", "text-classification"), tmp_path, needs=("avx512_vnni", "dotprod")
    )
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name : An older CPU\nflags : fpu sse4_1 avx avx2 fma\n")
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("no /proc/cpuinfo of our own can be shown to the server here")
    hide = ("unshare", "-m", "sh", "-c", f'mount --bind {cpuinfo} /proc/cpuinfo && exec "$@"', "sh")
    said = one_line(new_device(before=hide).url, capsys, made)
    assert "does not fit" in said
    assert "avx512_vnni, dotprod" in said


def test_a_virtual_environment_is_made_where_packages_lack(
    new_device: NewDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a real, if tiny, package that is on an index of our own."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    with zipfile.ZipFile(shelf / "tinything-1.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tinything.py", "answer = 42\n")
        wheel.writestr("tinything-1.5.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinything\nVersion: 1.5\n")
        wheel.writestr(
            "tinything-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("tinything-1.5.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    device = new_device(path=f"{Path(sys.base_prefix) / 'bin'}:/usr/bin:/bin")
    reported = Reported()
    board, place = open_board(device.url, reported)
    for _ in range(2):  # made once, then found; another version is taken where the wanted one is not to be had
        python = python_env.ensure_python(board, place, {"tinything": "9"})
        assert python == f"~/{FOLDER}/venv/bin/python"
    assert python_env.versions(board, python, ["tinything"]) == {"tinything": "1.5"}
    assert sum("virtual environment" in line for line in reported.lines) == 1
    assert sorted(path.name for path in (device.home / FOLDER).iterdir()) == ["venv"]
    with pytest.raises(BoardError, match="pip here finds no packages for the board"):
        python_env.ensure_python(board, place, {"nosuchthing": None})


def test_wheels_are_for_the_board_and_not_for_this_machine() -> None:
    place = {
        "system": "Linux",
        "machine": "aarch64",
        "libc": ["glibc", "2.31"],
        "python": [3, 11],
        "implementation": "CPython",
    }
    words = python_env.fits(place)
    assert {"manylinux_2_31_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= set(words)
    assert "manylinux_2_32_aarch64" not in words
    with pytest.raises(BoardError, match="install the packages there yourself"):
        python_env.fits({**place, "libc": ["", ""]})


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("root@board", "does not begin with ssh://"),
        ("ssh://", "names no host"),
        ("ssh://root:secret@board", "a password does not belong there"),
        ("ssh://board:99999", "out of range"),
        ("ssh://board/home", "nothing comes after"),
        ("ssh://-oProxyCommand=x", "is no host"),
        ("ssh://-x@board", "is no user"),
    ],
)
def test_a_malformed_address_is_said_in_one_line(url: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Address.parse(url)


def test_an_address_keeps_what_it_was_given() -> None:
    assert str(Address.parse("ssh://pi@[fe80::1]:2222")) == "ssh://pi@[fe80::1]:2222"
    assert Address.parse("ssh://board").command[-2:] == ["--", "board"]


def test_only_what_run_py_opens_goes_to_a_board(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["bench", str(tmp_path), "--on", "ssh://board"]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert app.main(["bench", "a", "b", "--on", "ssh://board"]) == 2
    assert "one bundle at a time" in capsys.readouterr().err
    assert app.main(["bench", "a", "--clean"]) == 2
    assert "--clean goes with --on" in capsys.readouterr().err


def test_packages_are_those_that_a_bundle_was_judged_with() -> None:
    manifest = {"runtime": "openvino", "versions": {"openvino": "2026.4", "numpy": "2.4.6", "torch": "2.13"}}
    assert remote.packages(manifest, ["tokenizers"]) == {
        "numpy": "2.4.6",
        "openvino": "2026.4",
        "tokenizers": None,
    }
    assert json.dumps(remote.packages(manifest, [])) == '{"numpy": "2.4.6", "openvino": "2026.4"}'
