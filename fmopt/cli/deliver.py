"""Verbs that hand a bundle on: checked against the one before, signed, laid out as other programs open it, pushed, served."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fmopt.cli import completion
from fmopt.cli.options import Bundle, Json, answer
from fmopt.cli.parsing import parse_share
from fmopt.core import escaping
from fmopt.core.errors import ConfigError
from fmopt.core.plugins import did_you_mean

# where a bundle is pushed to, with the options that only this place knows
DESTINATIONS = {
    "hub": ("repo", "private", "revision", "replace"),
    "folder": ("output", "replace"),
    "mlflow": ("experiment", "register"),
}


def sign(
    bundle: Bundle,
    key: Annotated[Path, typer.Option("--key", help="The private key (PEM, elliptic curve) to sign with.")],
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="The certificate (PEM) that was made for that key.")
    ] = None,
    chain: Annotated[
        list[Path] | None, typer.Option("--chain", help="The certificates of its issuers (PEM); repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle (OpenSSF model-signing), so that others can check that it comes from you; see `fmopt verify --key`."""
    from fmopt.exporters.bundles.signing import sign_bundle

    made = sign_bundle(bundle, key=key, certificate=certificate, chain=tuple(chain or ()))
    answer(
        {"signature": str(made)},
        as_json,
        lambda: print(escaping.terminal(f"{made} is the signature; keep both together")),
    )


def pack(
    bundle: Bundle,
    layout: Annotated[
        str,
        typer.Option(
            "--for",
            help="optimum, onnxruntime-genai, openvino-genai, transformers.js, tei, ovms, triton or kserve.",
            autocompletion=completion.layouts,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The new folder.")],
    name: Annotated[str | None, typer.Option("--name", help="What a server calls the model.")] = None,
    uri: Annotated[str | None, typer.Option("--uri", help="KServe: where it finds the folder, as pvc://…")] = None,
    as_json: Json = False,
) -> None:
    """Lay a bundle out as another program opens it: names, settings; weights are links to the bundle's."""
    from fmopt.exporters.bundles import layouts

    made = layouts.pack(bundle, layout, output, name=name, uri=uri)
    answer(
        {"folder": str(made), "for": layout},
        as_json,
        lambda: print(escaping.terminal(f"{made} is laid out for {layouts.LAYOUTS[layout].what}")),
    )


def push(
    bundle: Bundle,
    to: Annotated[
        str,
        typer.Option("--to", help="hub, folder or mlflow.", autocompletion=completion.words("hub", "folder", "mlflow")),
    ],
    license_: Annotated[
        str | None, typer.Option("--license", help="Of the model, where the bundle states none: apache-2.0.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option("--base-model", help="What it was made from, as a hub names it: owner/name.")
    ] = None,
    repo: Annotated[str | None, typer.Option("--repo", help="hub: the repository, owner/name.")] = None,
    private: Annotated[bool, typer.Option("--private", help="hub: a new repository is private.")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="hub: the branch; main if left out.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="folder: which.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="hub, folder: put it in place of the bundle that is there.")
    ] = False,
    experiment: Annotated[str | None, typer.Option("--experiment", help="mlflow: fmopt if left out.")] = None,
    register: Annotated[
        str | None, typer.Option("--register", help="mlflow: make it a version of this registered model.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Push a bundle with its model card to a hub, into a folder to commit, or to MLflow."""
    from fmopt.cli import console
    from fmopt.cli import output as cli_output
    from fmopt.workflow.push.folder import push_to_folder
    from fmopt.workflow.push.hub import push_to_hub
    from fmopt.workflow.push.mlflow_run import push_to_mlflow
    from fmopt.workflow.push.release import release_of

    given = {"repo": repo, "private": private, "revision": revision, "output": output, "replace": replace,
             "experiment": experiment, "register": register}  # fmt: skip
    require_fitting(to, given)
    release = release_of(bundle, licence=license_, base_model=base_model)
    where: dict[str, Any] = {}
    with console.live_progress() as progress:
        if to == "hub":
            where["commit"] = push_to_hub(
                release, str(repo), private=private, revision=revision or "main", replace=replace, progress=progress
            )
        elif to == "folder":
            where["folder"] = str(push_to_folder(release, Path(str(output)), replace=replace))
        else:
            where |= push_to_mlflow(release, experiment=experiment or "fmopt", register=register)._asdict()
    found = {"to": to, **where, "verdict": release.verdict, "license": release.licence, "files": len(release.files)}
    answer(found, as_json, lambda: cli_output.pushed(found))


def require_fitting(to: str, given: dict[str, Any]) -> None:
    """ConfigError for a destination that there is not, one without its place, and options of another."""
    if to not in DESTINATIONS:
        raise ConfigError(f"--to {to!r} is none of {', '.join(DESTINATIONS)}{did_you_mean(to, DESTINATIONS)}")
    for name, value in given.items():
        if value and name not in DESTINATIONS[to]:
            others = " or ".join(one for one, options in DESTINATIONS.items() if name in options)
            raise ConfigError(f"--{name} goes with --to {others}; leave it out")
    place = {"hub": "repo", "folder": "output"}.get(to)
    if place and not given[place]:
        example = {"repo": "--repo owner/name", "output": "--output FOLDER"}[place]
        raise ConfigError(f"--to {to} needs to know where; add {example}")


def check(
    candidate: Annotated[
        Path,
        typer.Argument(help="A record, a folder of an optimization, or a bundle.", autocompletion=completion.bundles),
    ],
    against: Annotated[Path, typer.Option("--against", help="What it is held to: another of these.")],
    max_drop: Annotated[str, typer.Option("--max-drop", help="Accuracy that may be lost: 1pt, 1%, none.")] = "1pt",
    max_slowdown: Annotated[str, typer.Option("--max-slowdown", help="How much slower: 5%, none.")] = "5%",
    max_growth: Annotated[str, typer.Option("--max-growth", help="How much larger: 5%, none.")] = "5%",
    max_change: Annotated[
        float | None,
        typer.Option("--max-change", min=0, help="How far answers to golden items may be, by the task's own distance."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Append a summary to this file.")] = None,
    history: Annotated[
        Path | None, typer.Option("--history", help="Keep the candidate's record in this folder, for `fmopt history`.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Print annotations as GitHub's workflows read them.")
    ] = False,
    accept_undecided: Annotated[
        bool, typer.Option("--accept-undecided", help="Exit 0 when only the point estimate is within bounds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Is it worse than the one before? Accuracy, time, size, answers; for continuous integration."""
    from fmopt.cli import output as cli_output
    from fmopt.core.stages.store import disk_errors, write_whole
    from fmopt.evaluation import gate
    from fmopt.evaluation import history as evaluation_history
    from fmopt.evaluation.record import Record
    from fmopt.reports import check_reports
    from fmopt.workflow.regressions import Tolerances
    from fmopt.workflow.regressions import check as find_regressions

    measured = None if history is None else Record.load(candidate, lenient=True)  # one without a record is said first
    found = find_regressions(
        candidate,
        against,
        Tolerances(
            max_drop=None if max_drop == "none" else gate.Drop.parse(max_drop),
            max_slowdown=parse_share("max-slowdown", max_slowdown),
            max_growth=parse_share("max-growth", max_growth),
            max_change=max_change,
        ),
    )
    checks = found.verdict.checks
    if history is not None and measured is not None:
        evaluation_history.keep(measured, history)
    if junit is not None:
        write_whole(junit, check_reports.junit(found.candidate, checks))
    if markdown is not None:
        outcome = gate.settle(found.verdict, accept_undecided=accept_undecided)
        summary = check_reports.markdown(found.candidate, found.reference, outcome, checks, found.caveats)
        with disk_errors(markdown), markdown.open("a", encoding="utf-8") as stream:
            stream.write(summary)
    if github:
        print(*check_reports.github_annotations(checks), sep="\n", file=sys.stderr if as_json else sys.stdout)
    answer(found.model_dump(mode="json"), as_json, lambda: cli_output.regressions(found))
    raise typer.Exit(gate.exit_code(found.verdict, accept_undecided=accept_undecided))


def serve(
    bundle: Bundle,
    host: Annotated[str, typer.Option("--host", help="Where it listens; 0.0.0.0 is everywhere.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=1024, help="Of one batch; as judged if left out.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=256, help="Batches at once; cores / threads if left out.")
    ] = None,
    most_batch: Annotated[int, typer.Option("--max-batch", min=1, max=4096, help="Items in one batch.")] = 32,
    batch_delay_ms: Annotated[
        float, typer.Option("--batch-delay-ms", min=0, max=1000, help="How long a batch waits for more items.")
    ] = 0.0,
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds of one request.")] = 30.0,
    max_body: Annotated[str, typer.Option("--max-body", help="Of a request: 4MB.")] = "4MB",
    max_requests: Annotated[int, typer.Option("--max-requests", min=1, help="At once; more are refused.")] = 256,
) -> None:
    """Serve a bundle over HTTP: OpenAI's embeddings or completions, the task's own answers, health and metrics."""
    from fmopt.evaluation.gate import parse_megabytes
    from fmopt.serving import server

    def ready(address: str) -> None:
        print(escaping.terminal(f"{bundle} at {address}; Ctrl-C ends it"), flush=True)

    server.serve(
        bundle, host=host, port=port, threads=threads, workers=workers, ready=ready, most_batch=most_batch,
        delay_s=batch_delay_ms / 1000, timeout_s=timeout, most_bytes=int(parse_megabytes(max_body, "max-body") * 1e6),
        most_requests=max_requests,
    )  # fmt: skip
