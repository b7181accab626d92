"""This machine as a target."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from fmopt.core.errors import ConfigError, StoreError
from fmopt.core.target import Target, read_target
from fmopt.measurement import host_probe


@pytest.fixture(scope="module")
def host() -> Target:
    return host_probe.probe_host()


def test_a_probe_measures_what_it_claims(host: Target) -> None:
    assert host.name == "host"
    assert host.present
    assert host.cores >= 1
    assert host.bandwidth_gbs is not None
    assert host.bandwidth_gbs > 0.1
    assert {"fp32", "int8"} <= set(host.gops)
    assert all(gops > 0.1 for gops in host.gops.values())
    assert {"onnxruntime", "openvino", "torch"} <= set(host.runtimes)
    assert set(host.gops) <= set(host.precisions)


def test_bf16_is_offered_only_where_the_cpu_has_it(host: Target) -> None:
    assert ("bf16" in host.precisions) == bool(host_probe.BF16_ISA & set(host.isa))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux")
def test_isa_flags_are_those_of_the_kernel() -> None:
    text = Path("/proc/cpuinfo").read_text()
    for name in ("avx2", "avx512_vnni", "amx_int8"):
        assert (name in host_probe.isa_flags()) == (name in text.split())


@pytest.mark.parametrize(
    ("cpuinfo", "isa"),
    [
        ("processor : 0\nmodel name : Some CPU\nflags : fpu sse4_1 avx avx2 fma avx512f avx512_vnni amx_tile\n\nx : y",
         ("amx_tile", "avx", "avx2", "avx512_vnni", "avx512f", "fma", "sse4_1")),
        ("processor : 0\nFeatures : fp asimd asimdhp asimddp i8mm bf16 sve\nCPU part : 0xd40\n",
         ("bf16", "dotprod", "fp16", "i8mm", "neon", "sve")),
        ("processor : 0\nFeatures : fp asimd evtstrm crc32 cpuid asimdhp asimddp\nCPU part : 0xd0b\n",
         ("dotprod", "fp16", "neon")),
        ("", ()),
    ],
)  # fmt: skip
def test_cpuinfo_of_other_machines_is_read(cpuinfo: str, isa: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(Path, "read_text", lambda self, *args, **more: cpuinfo)
    assert host_probe.isa_flags() == isa


def test_a_saved_target_reads_back(host: Target, tmp_path: Path) -> None:
    path = tmp_path / "new" / "mine.toml"
    host_probe.save_target(host, path)
    read = read_target(str(path))
    assert read == host.model_copy(update={"name": "mine", "present": False})
    assert "measured by fmopt targets probe" in path.read_text()


def test_a_target_that_cannot_be_written_says_so(host: Target, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        host_probe.save_target(host, tmp_path / "file" / "mine.toml")


def test_the_host_is_probed_once_and_remembered(host: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    probes: list[int] = []

    def probed() -> Target:
        probes.append(1)
        return host

    monkeypatch.setattr(host_probe, "probe_host", probed)
    assert host_probe.load_target("host") == host_probe.load_target("host") == host
    assert len(probes) == 1
    assert host_probe.load_target("host", fresh=True) == host
    assert len(probes) == 2
    next(tmp_path.rglob("host-*.json")).write_text("damaged")
    assert host_probe.load_target("host") == host
    assert len(probes) == 3


def test_other_targets_are_read_and_unknown_ones_get_a_suggestion() -> None:
    assert not host_probe.load_target("nvidia-t4").present
    with pytest.raises(ConfigError, match="did you mean 'nvidia-t4'"):
        host_probe.load_target("nvidia-t5")


def test_a_fingerprint_holds_no_names_of_the_machine_or_its_user() -> None:
    fingerprint = host_probe.host_fingerprint()
    assert {"cpu", "isa", "cores", "memory_gb", "os", "kernel", "python"} <= set(fingerprint)
    values = [str(value) for value in fingerprint.values()]
    assert platform.node() not in values
    assert getpass.getuser() not in values
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert fingerprint == host_probe.host_fingerprint()


def test_versions_are_read_without_importing() -> None:
    code = (
        "import sys, json; from fmopt.measurement import host_probe as probe; "
        "v = probe.versions(); probe.host_fingerprint(); probe.cores();"
        "print(json.dumps([v, sorted({'torch', 'onnxruntime', 'openvino', 'transformers'} & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, loaded = json.loads(done.stdout)
    assert {"torch", "onnxruntime", "openvino", "numpy"} <= set(found)
    assert loaded == []
