"""A server workload: queries arrive at the rate that was asked for, and 99 % of them are to be answered within a limit."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

from fmopt.core.progress import Progress
from fmopt.core.results import Check, Estimate, Outcome, UnderLoad
from fmopt.edge.loading import Model
from fmopt.measurement import latency
from fmopt.workflow.benchmark import scenarios
from fmopt.workflow.search.run import Run

FEWEST, MOST, SECONDS = 400, 2_000, 10.0  # queries of a load, and how long their arriving takes where that lies between
TRIES = 6  # rates that are tried for the highest one
WARM_UP = 5  # calls of every size


def serve(run: Run, name: str) -> UnderLoad:
    """How a variant answers at the asked rate and, where it misses the limit, the highest rate at which it keeps it."""
    workload = run.job.request.workload
    key = {
        "artifact": run.artifacts[name].digest,
        "host": run.clock.host,
        "workload": workload.model_dump(),
        "seed": run.job.request.seed,
        "data": run.job.data.digest,
        **run.clock_versions(),
    }
    return UnderLoad(**run.store.value("under-load", key, lambda: _serve(run, name, run.progress).model_dump()))


def _serve(run: Run, name: str, progress: Progress) -> UnderLoad:
    workload, seed = run.job.request.workload, run.job.request.seed
    rate, limit_ms = workload.rate or 0.0, workload.p99_ms or 0.0
    preprocessor = run.builder.preprocessor
    samples = [item.sample for item in run.items("validation")]
    queries = cycle(batch[0] for batch in latency.replayed(preprocessor, samples, 1, seed))
    runner = run.open(name, workload.threads)
    model = Model({"pipeline": dict(run.job.metadata.pipeline)}, preprocessor, runner)
    sizes = scenarios.batch_sizes(workload.batch)

    def answer(count: int) -> Any:
        return model.predict(list(islice(queries, count)), count)

    def load(asked: float) -> scenarios.Load:
        progress.start(f"{name} under {asked:.0f} queries per second", 1)
        count = int(min(max(asked * SECONDS, FEWEST), MOST))
        arrivals = scenarios.poisson_arrivals(asked, count, seed)
        took, busy = scenarios.serve(answer, arrivals, sizes=sizes, limit_ms=limit_ms, clock=scenarios.WallClock())
        progress.step()
        return scenarios.Load(rate=asked, queries=count, limit_ms=limit_ms, samples_ms=took, busy_s=busy)

    try:
        for size in sizes:
            for _ in range(WARM_UP):
                answer(size)
        found = load(rate)
        highest = rate if found.met else scenarios.search(load, rate / 2, TRIES).met
    finally:
        runner.close()
    return UnderLoad(rate=rate, limit_ms=limit_ms, samples_ms=found.samples_ms, met=found.met, highest_rate=highest)


def check(run: Run, winner: str, reference: str) -> Check:
    """Whether what is shipped holds the rate. UNDECIDED, with the highest rate that was held, where neither it nor full
    precision does; UNMEASURED where the device is not here or not this machine."""
    workload = run.job.request.workload
    name = f"p99 at {workload.rate or 0:g} per second"
    if not run.job.target.here:
        note = "loads are made on this machine, and the device is another one; run fmopt bench --matrix there"
        return Check(name=name, outcome=Outcome.UNMEASURED, limit=workload.p99_ms, unit="ms", note=note)
    for one in dict.fromkeys((reference, winner)):
        run.update(one, under_load=serve(run, one))
    ours, theirs = run.trials[winner].under_load, run.trials[reference].under_load
    assert ours is not None
    assert theirs is not None
    p99 = scenarios.quantile(ours.samples_ms, scenarios.SERVER_QUANTILE)
    got = Estimate(point=p99, low=p99, high=p99)
    if ours.met:
        return Check(name=name, outcome=Outcome.PASS, limit=workload.p99_ms, got=got, unit="ms")
    best, by = max((ours.highest_rate, winner), (theirs.highest_rate, reference))
    note = (
        f"the highest rate that was held is {best:.0f} per second, by {by}"
        if best
        else "no rate that was tried was held"
    )
    return Check(name=name, outcome=Outcome.UNDECIDED, limit=workload.p99_ms, got=got, unit="ms", note=note)
