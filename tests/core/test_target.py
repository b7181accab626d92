"""The shipped devices, as rows of facts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fmopt.core.errors import ConfigError
from fmopt.core.plugins import data_folder, names
from fmopt.core.target import Target, read_target, target_names

SHIPPED = target_names()[1:]
NO_ADAPTER_YET = {"tensorrt"}
EXPECTED = {
    "x86-avx2", "x86-avx512-vnni", "x86-amx", "raspberry-pi-5", "graviton3", "graviton4", "apple-m", "nvidia-t4",
    "nvidia-a100", "nvidia-h100", "nvidia-h200", "rtx-4090", "jetson-orin-nano", "jetson-agx-orin", "android-arm64",
    "browser",
}  # fmt: skip


def test_all_devices_are_shipped_and_host_comes_first() -> None:
    assert set(SHIPPED) >= EXPECTED
    assert target_names()[0] == "host"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_target_loads_and_makes_sense(name: str) -> None:
    target = read_target(name)
    assert target.name == name
    assert not target.present
    assert set(target.gops) <= set(target.precisions)
    assert set(target.runtimes) <= set(names("runtimes")) | NO_ADAPTER_YET
    assert target.cores >= 1
    if {"fp32", "int8"} <= set(target.gops):
        assert target.gops["int8"] > target.gops["fp32"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_figure_of_a_target_has_its_source(name: str) -> None:
    text = (data_folder("targets") / f"{name}.toml").read_text()
    assert text.startswith("# ")
    ceilings = text.partition("[gops]")[2].strip()
    assert not ceilings or ceilings.startswith("#")
    if "bandwidth_gbs" in text:
        assert re.search(r"^bandwidth_gbs = [0-9.]+  # \S", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("name", "has", "lacks"),
    [
        ("raspberry-pi-5", {"dotprod"}, {"i8mm", "bf16"}),
        ("graviton3", {"dotprod", "i8mm", "bf16"}, {"sve2"}),
        ("graviton4", {"dotprod", "i8mm", "bf16", "sve2"}, set()),
        ("apple-m", {"dotprod"}, {"i8mm", "bf16"}),
        ("x86-avx2", {"avx2"}, {"avx512f", "avx512_vnni", "avx_vnni"}),
        ("x86-avx512-vnni", {"avx512_vnni"}, {"avx512_bf16", "amx_int8"}),
        ("x86-amx", {"amx_int8", "amx_bf16", "avx512_vnni"}, set()),
    ],
)
def test_isa_is_what_the_cores_truly_have(name: str, has: set[str], lacks: set[str]) -> None:
    isa = set(read_target(name).isa)
    assert has <= isa
    assert not lacks & isa


def test_only_where_products_are_summed_in_32_bits_weights_have_eight() -> None:
    without = {name for name in SHIPPED if not read_target(name).int8_dot}
    assert without == {"x86-avx2", "raspberry-pi-4"}


def test_bf16_is_offered_only_with_the_instructions_for_it() -> None:
    for name in SHIPPED:
        target = read_target(name)
        if target.kind == "cpu" and "bf16" in target.precisions:
            assert {"avx512_bf16", "amx_bf16", "bf16"} & set(target.isa), name
    assert "bf16" not in read_target("nvidia-t4").precisions


def test_a_users_own_file_is_a_target_and_a_broken_one_an_error(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text((data_folder("targets") / "raspberry-pi-5.toml").read_text())
    assert read_target(str(mine)) == read_target("raspberry-pi-5").model_copy(update={"name": "mine"})
    mine.write_text('title = "no more than a title"')
    with pytest.raises(ConfigError, match=r"mine\.toml is not a target"):
        read_target(str(mine))
    mine.write_text("title = ")
    with pytest.raises(ConfigError, match=r"mine\.toml is not a target"):
        read_target(str(mine))
    with pytest.raises(ConfigError, match="did you mean 'raspberry-pi-5'"):
        read_target("raspberry-pi5")


def test_a_target_cannot_claim_to_be_here() -> None:
    assert all(not read_target(name).present for name in SHIPPED)
    assert Target.model_fields["present"].default is False
