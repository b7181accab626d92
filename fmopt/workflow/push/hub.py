"""A bundle to a model hub, in one commit, by huggingface_hub: the endpoint and the token are those that it knows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from fmopt.core.errors import ConfigError, StoreError
from fmopt.core.progress import Progress, Silent
from fmopt.edge import files
from fmopt.edge.manifest import MANIFEST
from fmopt.edge.parts import EdgeError
from fmopt.workflow.push.release import HUB_NAME, Release

PAUSES_S = (1.0, 2.0, 4.0)  # before the second, third and fourth try
PASSING = (408, 429, 500, 502, 503, 504)  # what a server answers that may be well again soon
Found = TypeVar("Found")


def push_to_hub(
    release: Release, repo: str, *, private: bool = False, revision: str = "main", replace: bool = False,
    progress: Progress | None = None,
) -> str:  # fmt: skip
    """Commit the release to the model repository `repo` ("owner/name") at the branch `revision`; returns the commit's address.

    Both are made where they are not there, the repository private if asked. What the hub has already is not sent again. A bundle
    that is there gives way only with `replace`; other files stay. A hub that does not answer is asked three times more.
    ConfigError for a repository that cannot be used so, StoreError when the hub refuses or cannot be reached.
    """
    if not HUB_NAME.fullmatch(repo):
        raise ConfigError(f"--repo {repo!r} is no name of a hub; it is owner/name")
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ConfigError("the hub asks who you are: run `hf auth login`, or set HF_TOKEN")
    api, shown = HfApi(library_name="fmopt", library_version=version("fmopt")), progress or Silent()
    with _quiet():
        return _tried(lambda: _commit(api, release, repo, private, revision, replace), repo, shown)


def _commit(api: Any, release: Release, repo: str, private: bool, revision: str, replace: bool) -> str:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    main = _main(api, repo, private)
    new = revision != "main" and revision not in {branch.name for branch in api.list_repo_refs(repo).branches}
    # What is looked at is what the commit goes on from; a branch that is not there yet begins as main is.
    parent = main.sha if new else api.repo_info(repo, revision=revision).sha
    there = {one for one in api.list_repo_files(repo, revision=parent) if one != ".gitattributes"}
    before = _manifest(api, repo, parent) if MANIFEST in there else None
    ours = _bytes(release, MANIFEST)
    if there and before != ours and not replace:
        raise ConfigError(
            f"{repo} holds {len(there)} files at {'main' if new else revision}, such as {min(there)}; "
            "--replace puts this bundle in place of the one there, in a new commit"
        )
    stale = (_listed(before) & there) - set(release.files)
    contents = {name: one if isinstance(one, bytes) else str(one) for name, one in release.files.items()}
    added = [CommitOperationAdd(name, content) for name, content in contents.items()]
    if new:  # last, after the large files: until the commit it holds what main does, and is taken for the new one
        api.preupload_lfs_files(repo, added)
        api.create_branch(repo, branch=revision, revision=parent, exist_ok=True)
    done = api.create_commit(
        repo,
        [*added, *(CommitOperationDelete(name, is_folder=False) for name in sorted(stale))],
        commit_message=f"{release.title}: {release.verdict}", revision=revision, parent_commit=parent,
    )  # fmt: skip
    return str(done.commit_url)


def _main(api: Any, repo: str, private: bool) -> Any:
    """What the hub says of the repository, which is made where it is not there."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        known = api.repo_info(repo)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private, exist_ok=True)
        return api.repo_info(repo)
    if private and not known.private:
        raise ConfigError(f"{repo} is there already and public; leave --private out, or make it private on the hub")
    return known


def _bytes(release: Release, name: str) -> bytes:
    content = release.files[name]
    return content if isinstance(content, bytes) else content.read_bytes()


def _manifest(api: Any, repo: str, revision: str) -> bytes | None:
    """The manifest that lies there, None for one that is too large to be one."""
    with tempfile.TemporaryDirectory() as scratch:
        path = api.hf_hub_download(repo, MANIFEST, revision=revision, local_dir=scratch)
        return Path(path).read_bytes() if Path(path).stat().st_size <= files.LARGEST_JSON else None


def _listed(manifest: bytes | None) -> set[str]:
    """Names of the files of a manifest that was received; none where it is none."""
    if manifest is None:
        return set()
    try:
        names = files.parsed(manifest, MANIFEST).get("files")
    except (EdgeError, ValueError):
        return set()
    return set(filter(files.is_plain_name, names if isinstance(names, dict) else ()))


def _tried(attempt: Callable[[], Found], repo: str, progress: Progress) -> Found:
    """What an attempt gives, made again after a pause where the hub did not answer; errors in our words."""
    for pause in (*PAUSES_S, None):
        try:
            return attempt()
        except (ConfigError, StoreError):
            raise
        except Exception as error:  # of huggingface_hub, of the client that it uses, of the system
            answered = getattr(getattr(error, "response", None), "status_code", None)
            words = (str(error).strip().splitlines() or [""])[0][:200]
            if answered is None and isinstance(error, ValueError):
                raise ConfigError(f"{repo}: {words}") from error
            if pause is None or (answered is not None and answered not in PASSING):
                raise StoreError(_refusal(repo, answered, f"{type(error).__name__}: {words}")) from error
            progress.say(f"the hub did not take it ({answered or type(error).__name__}); trying again in {pause:g} s")
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _refusal(repo: str, answered: int | None, words: str) -> str:
    if answered == 401:
        return f"the hub does not accept the token for {repo}: run `hf auth login`, or set another HF_TOKEN"
    if answered in (403, 404):
        return f"the hub does not let you write to {repo}: ask its owner, or use a token that may write"
    if answered in (409, 412):
        return f"{repo} was changed by somebody else at the same time; run the same command again"
    return (
        f"{repo} could not be pushed ({words}); run the same command again, what the hub has already is not sent again"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of huggingface_hub, which know nothing of ours."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
