"""What is pushed: the manifest's files and a card that says what was measured, under a licence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import ModelCardData

import fmopt
from fmopt.core.errors import BundleError, ConfigError, StoreError
from fmopt.evaluation.record import Record, value_of
from fmopt.exporters.bundles.bundle_writer import sealed
from fmopt.reports.model_card import licence_fields
from fmopt.workflow.push.folder import push_to_folder
from fmopt.workflow.push.release import release_of


def card_of(bundle: Path, **options: str) -> ModelCard:
    text = release_of(bundle, **{"licence": "apache-2.0", **options}).files["README.md"]
    assert isinstance(text, bytes)
    return ModelCard(text.decode())


def test_a_card_carries_what_was_measured(judged: Path) -> None:
    record = Record.load(judged)
    card = card_of(judged, base_model="google/bert_uncased_L-2_H-128_A-2")
    data = card.data
    assert isinstance(data, ModelCardData)
    assert (data.license, data.pipeline_tag, data.library_name) == ("apache-2.0", "text-classification", "onnx")
    assert (data.base_model, data.base_model_relation) == ("google/bert_uncased_L-2_H-128_A-2", "quantized")
    assert data.tags == ["fmopt", "onnxruntime", "int8", "bert"]
    winner = record.winning
    assert winner is not None
    labelled = {scores.name: value_of(scores) for scores in winner.test_scores if not scores.against_baseline}
    assert labelled
    assert data.eval_results is not None
    assert {one.metric_name.partition(" of ")[0]: one.metric_value for one in data.eval_results} == pytest.approx(
        labelled, abs=1e-6
    )
    assert {one.dataset_split for one in data.eval_results} == {"test"}
    for check in record.verdict.checks:
        assert f"| {check.name} | {check.outcome.value} |" in card.text
    assert record.judged_on.sentence() in card.text
    assert f"the gate said **{record.verdict.outcome.value}**" in card.text
    assert "Licence: apache" in card.text


def test_without_a_record_nothing_is_claimed(exported: Path) -> None:
    card = card_of(exported)
    assert "No record lies beside the bundle" in card.text
    assert card.data.eval_results is None
    assert card.data.get("base_model") is None


def test_a_card_without_a_licence_is_asked_for(exported: Path) -> None:
    with pytest.raises(ConfigError, match=r"states no licence, .* say which with --license"):
        release_of(exported)
    with pytest.raises(ConfigError, match="is no name of a hub; it is owner/name"):
        release_of(exported, licence="mit", base_model="../bert")


def test_licences_are_the_hubs_own_or_others_by_name() -> None:
    assert licence_fields("Apache-2.0") == {"license": "apache-2.0"}
    assert licence_fields("Our Own v2") == {"license": "other", "license_name": "our-own-v2"}


def test_no_text_of_others_becomes_metadata_or_markup(judged: Path) -> None:
    document = json.loads((judged / "record.json").read_text())
    document["data"]["name"] = "x\nlicense: mit\n---\n<img src=x>"
    (judged / "record.json").write_text(json.dumps(document))
    manifest = json.loads((judged / "fmopt.json").read_text())
    manifest["checkpoint"]["title"] = "](http://a) <script>\n---"
    (judged / "fmopt.json").write_bytes(sealed(manifest))
    card = card_of(judged, licence="y: z\nlicense: mit")
    assert card.data.license == "other"
    assert "<script>" not in card.text
    assert "<img" not in card.text
    front = yaml.safe_load(card.content.split("---\n")[1])
    assert front["model-index"][0]["results"][0]["dataset"]["name"].startswith("x license: mit")


def test_only_what_the_manifest_lists_is_pushed(judged: Path) -> None:
    (judged / "private.txt").write_text("mine")
    release = release_of(judged, licence="mit")
    assert set(release.files) == {*json.loads((judged / "fmopt.json").read_text())["files"], "fmopt.json"}
    assert not set(release.files) & {"record.json", "private.txt"}


def test_a_damaged_bundle_and_a_record_of_another_are_refused(judged: Path) -> None:
    document = json.loads((judged / "record.json").read_text())
    (judged / "record.json").write_text(json.dumps({**document, "model": {**document["model"], "digest": "0" * 64}}))
    with pytest.raises(BundleError, match="is of another bundle: its model is not this one's"):
        release_of(judged, licence="mit")
    with (judged / "model.onnx").open("r+b") as stream:
        stream.seek(100)
        stream.write(b"xx")
    with pytest.raises(BundleError, match=r"model\.onnx"):
        release_of(judged, licence="mit")


def test_a_folder_is_a_bundle_that_can_be_committed(judged: Path, tmp_path: Path) -> None:
    out = tmp_path / "repo"
    subprocess.run(["git", "init", "-q", out], check=True)
    release = release_of(judged, licence="mit")
    push_to_folder(release, out)
    assert (out / ".gitattributes").read_text() == "*.onnx filter=lfs diff=lfs merge=lfs -text\n"
    assert (out / "model.onnx").stat().st_ino == (judged / "model.onnx").stat().st_ino
    assert "\nlicense: mit\n" in (out / "README.md").read_text()
    assert fmopt.verify(out) == []  # with its .git and .gitattributes
    done = subprocess.run([sys.executable, "run.py", "verify"], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (judged / "README.md").read_text().startswith("# ")  # the bundle stays as it was
    again = release_of(out, licence="mit")  # a bundle that was pushed is one, though without its record
    assert again.files["README.md"] != release.files["README.md"]


def test_nothing_in_a_folder_is_overwritten_without_a_word(judged: Path, exported: Path, tmp_path: Path) -> None:
    out, release = tmp_path / "repo", release_of(judged, licence="mit")
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"holds files already, such as mine\.txt"):
        push_to_folder(release, out)
    with pytest.raises(StoreError, match="and no bundle to replace"):
        push_to_folder(release, out, replace=True)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    push_to_folder(release, out)
    (out / "mine.txt").write_text("mine")
    push_to_folder(release_of(exported, licence="isc"), out, replace=True)
    assert (out / "mine.txt").read_text() == "mine"
    assert "license: isc" in (out / "README.md").read_text()
