"""A bundle to MLflow: a run with what was measured and the bundle as its artifact, and a version of a registered model."""

from __future__ import annotations

import importlib.util
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fmopt.core import escaping
from fmopt.core.errors import ConfigError, StoreError
from fmopt.core.stages.store import link_or_copy
from fmopt.evaluation.record import Record, percentile, value_of
from fmopt.workflow.push.release import Release

ARTIFACT = "bundle"  # its folder among the artifacts of the run
NAME = re.compile(r"[^/:%\"'\x00-\x1f]{1,250}")  # of a registered model, as MLflow takes it
UNNAMEABLE = re.compile(r"[^\w. /-]")  # characters that a metric's name does not have
LONGEST_PARAM = 500  # characters that every store of MLflow takes


class Logged(NamedTuple):
    """Where a bundle is in MLflow."""

    run_id: str
    artifact_uri: str
    version: str | None  # of the registered model


def push_to_mlflow(release: Release, *, experiment: str = "fmopt", register: str | None = None) -> Logged:
    """Log the release as a new run of `experiment`, at the tracking server that MLflow's own settings name.

    Metrics are what was measured: scores, drop and speedup with their bounds, latencies in ms, bytes. A run that was cut off is
    not finished, and has neither the tags nor a version; the next one is another. With `register`, the
    bundle becomes a further version of the registered model of that name, which is made where there is none. ConfigError where
    MLflow is not installed or a name is none, StoreError when it refuses.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("MLflow is not installed: pip install 'fmopt[mlflow]'")
    if register is not None and not NAME.fullmatch(register):
        raise ConfigError(f"--register {register!r} is no name of a registered model; leave out '/', ':' and quotes")
    for teller in ("alembic", "mlflow.store.db.utils"):  # a new store tells of each of its tables
        logging.getLogger(teller).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with _explained():
        client = MlflowClient()
        known = client.get_experiment_by_name(experiment)
        home = known.experiment_id if known else client.create_experiment(experiment)
        run = client.create_run(home, run_name=release.title)
        number, where = run.info.run_id, f"{run.info.artifact_uri}/{ARTIFACT}"
        try:
            _log(client, number, release)
            version = _registered(client, register, where, number, release)
        except BaseException as error:
            with suppress(Exception):  # the server may be what is gone; the first reason is the one to tell
                client.set_terminated(number, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        client.set_terminated(number)
        return Logged(number, where, version)


def _log(client: Any, run: str, release: Release) -> None:
    for name, value in _params(release).items():
        client.log_param(run, name, str(value)[:LONGEST_PARAM])
    for name, number in measured(release).items():
        client.log_metric(run, name, number)
    with tempfile.TemporaryDirectory() as scratch:
        for name, content in release.files.items():
            place = Path(scratch) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                place.write_bytes(content)
            else:
                link_or_copy(content, place)
        client.log_artifacts(run, scratch, ARTIFACT)
    for name, value in _tags(release).items():  # by which a run is found: once there is something to find
        client.set_tag(run, name, value)


def _registered(client: Any, name: str | None, where: str, run: str, release: Release) -> str | None:
    from mlflow.exceptions import MlflowException

    if name is None:
        return None
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name)
    told = (
        escaping.markdown(release.record.summary) if release.record else "without a record"
    )  # pages draw it as Markdown
    made = client.create_model_version(name, where, run_id=run, description=told, tags=_tags(release))
    return str(made.version)


def _tags(release: Release) -> dict[str, str]:
    return {
        "fmopt.verdict": release.verdict,
        "fmopt.digest": release.manifest["digest"],
        "license": release.licence,
        "task": release.metadata.task,
    }


def _params(release: Release) -> dict[str, Any]:
    manifest, record = release.manifest, release.record
    found = {
        "task": release.metadata.task,
        "runtime": manifest["runtime"],
        "recipe": manifest["recipe"].get("name", "model"),
        "precision": manifest["recipe"].get("precision", "fp32"),
        "parameters": release.metadata.parameters,
        "model_digest": release.metadata.digest,
    }
    if record is not None:
        found |= {"workload": record.judged_on.sentence(), "effort": record.effort, "data": record.data.get("name")}
        found |= {"target": record.target.name, "reference": record.reference}
    return found


def measured(release: Release) -> dict[str, float]:
    """What was measured of the bundle, by a name that MLflow takes; only its size where it was not judged."""
    found = {"size_bytes": float(release.size_bytes)}
    winner = release.record.winning if release.record else None
    if release.record is None or winner is None:
        return found
    for q in (50, 90, 99):
        if (value := percentile(winner.latency, q)) is not None:
            found[f"latency_p{q}_ms"] = value
    for name, estimate in (("speedup", winner.speedup), ("accuracy_drop", winner.final_drop)):
        if estimate is not None:
            found |= {name: estimate.point, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return found | _scores(release.record)


def _scores(record: Record) -> dict[str, float]:
    winner = record.winning
    assert winner is not None
    return {
        f"{split}/{UNNAMEABLE.sub('_', scores.name)}": value_of(scores)
        for split, all_scores in (("test", winner.test_scores), ("validation", winner.scores))
        for scores in all_scores
    }


@contextmanager
def _explained() -> Iterator[None]:
    """What MLflow, its stores and the network raise, as one line."""
    try:
        yield
    except (ConfigError, StoreError):
        raise
    except Exception as error:
        words = (str(error).strip().splitlines() or [""])[0][:200]
        raise StoreError(
            f"MLflow did not take it ({type(error).__name__}: {words}); look at MLFLOW_TRACKING_URI, then run it again"
        ) from error
