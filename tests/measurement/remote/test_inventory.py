"""Which boards --on means, and every way an inventory can be wrong, in one line with the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmopt.cli import app
from fmopt.core.errors import ConfigError
from fmopt.measurement.remote.inventory import fleet_of, is_fleet

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJe2mVJXaOwGZVY0i1nFwzAzrXpZkD5RkFSg0XhDkkBV"
TWO = """
[[board]]
name = "kitchen"
address = "ssh://pi@kitchen:2222"

[[board]]
name = "attic"
address = "ssh://attic"
"""


def written(folder: Path, text: str) -> str:
    path = folder / "fleet.toml"
    path.write_text(text)
    return str(path)


def test_one_address_is_no_fleet() -> None:
    assert not is_fleet(["ssh://pi@board"])
    assert is_fleet(["ssh://a", "ssh://b"])
    assert is_fleet(["fleet.toml"])
    assert is_fleet(["fleet.toml#attic"])


def test_addresses_are_named_by_themselves(tmp_path: Path) -> None:
    fleet = fleet_of(["ssh://pi@a:2222", "ssh://[fe80::1]"], tmp_path)
    assert [one.name for one in fleet.members] == ["pi-a-2222", "fe80-1"]
    assert fleet.require == 2


def test_an_inventory_has_names_keys_and_how_many_must_pass(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("a key")
    text = f'require = 1\n{TWO}host_key = "{KEY} root@attic"\nidentity = "id"\n'
    fleet = fleet_of([written(tmp_path, text)], tmp_path)
    kitchen, attic = fleet.members
    assert (kitchen.name, str(kitchen.address), fleet.require) == ("kitchen", "ssh://pi@kitchen:2222", 1)
    assert "HostKeyAlias=attic" in attic.address.command
    assert f'IdentityFile="{tmp_path / "id"}"' in attic.address.command
    assert (tmp_path / "attic.known_hosts").read_text() == f"attic {KEY}\n"
    # checks of host keys come first, so that nothing of an inventory turns them off
    assert attic.address.command.index("StrictHostKeyChecking=yes") < attic.address.command.index("HostKeyAlias=attic")
    assert [one.name for one in fleet_of([written(tmp_path, TWO) + "#attic"], tmp_path).members] == ["attic"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "board: Field required"),
        ("board = []", "board: List should have at least 1 item"),
        (TWO + "port = 22", "board.1.port: Extra inputs are not permitted"),
        ("needed = 1" + TWO, "needed: Extra inputs are not permitted"),
        ("require = 3" + TWO, "require is 3, and there are 2 boards"),
        ("require = 0" + TWO, "require: Input should be greater than or equal to 1"),
        ('[[board]]\nname = "a"', "board.0.address: Field required"),
        ('[[board]]\nname = "../a"\naddress = "ssh://a"', "board.0.name: String should match pattern"),
        ('[[board]]\nname = "a"\naddress = "a"', r"board.0 \(a\): address 'a' is not of the form"),
        (TWO + 'host_key = "ssh-ed25519 AAAA"', r"board.1 \(attic\): host_key is not a public key"),
        (TWO + f'host_key = "{KEY.replace("ed25519", "rsa")}"', "host_key is not a public key"),
        (TWO + 'host_key = "whatever"', "host_key is not a public key"),
        (TWO + 'identity = "nowhere"', "there is no file .*nowhere; identity is a private key"),
        (TWO + '[[board]]\nname = "attic"\naddress = "ssh://c"', "board.name: attic is named twice"),
        (TWO + '[[board]]\nname = "c"\naddress = "ssh://attic"', "board.address: ssh://attic is named twice"),
        ("[[board", "is not an inventory of boards"),
    ],
)
def test_what_is_wrong_with_an_inventory_is_one_line(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what) as caught:
        fleet_of([written(tmp_path, text)], tmp_path)
    assert "fleet.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_boards_that_do_not_exist_and_mixtures(tmp_path: Path) -> None:
    path = written(tmp_path, TWO)
    with pytest.raises(ConfigError, match="has no board 'kitchn'; did you mean 'kitchen'"):
        fleet_of([f"{path}#kitchn"], tmp_path)
    with pytest.raises(ConfigError, match="there is no inventory"):
        fleet_of([str(tmp_path / "no.toml")], tmp_path)
    with pytest.raises(ConfigError, match="addresses or one inventory"):
        fleet_of([path, "ssh://c"], tmp_path)
    with pytest.raises(ConfigError, match="ssh://a is named twice"):
        fleet_of(["ssh://a", "ssh://a"], tmp_path)


def test_verbs_for_one_board_refuse_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in (["targets", "probe"], ["optimize", str(tmp_path)]):
        for words in (["--on", "ssh://a", "--on", "ssh://b"], ["--on", written(tmp_path, TWO)]):
            assert app.main([*verb, *words]) == 2
            said = capsys.readouterr().err.strip().splitlines()
            assert len(said) == 1
            assert "takes one board" in said[0]
