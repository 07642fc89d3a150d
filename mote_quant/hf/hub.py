"""A finished model on its way to the Hub: all of its files in one commit, the card unless somebody wrote another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import nn

from mote_quant.hf import card


@dataclass(frozen=True)
class Destination:
    """Where to, and how: the options of `push_to_hub` in transformers."""

    repo_id: str
    token: str | bool | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] = (),
    latent: bool | None = None,
    **options: Any,
) -> Any:
    """Save `model` aside and upload it to `repo_id`, which is made where it is missing; huggingface_hub's CommitInfo.

    `options` are those of Destination, `latent` is that of `save_pretrained`. The card is ours unless the repository
    has one that somebody else wrote; `tags` are added to its head.
    """
    destination = Destination(repo_id, **options)
    if tags:
        cast(Any, model).add_model_tags(list(tags))
    with TemporaryDirectory() as folder:
        cast(Any, model).save_pretrained(folder, max_shard_size=max_shard_size, latent=latent)
        names = sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())
        return upload(Path(folder), names, destination)


def upload(folder: Path, names: Sequence[str], to: Destination) -> Any:
    """Upload the files `names` of `folder` in one commit, and our card where it may replace what is there."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=to.token)
    repo_id = api.create_repo(to.repo_id, private=to.private, exist_ok=True).repo_id
    branch = to.revision if to.revision and not to.revision.startswith("refs/pr") else None
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    sent = [name for name in names if name != card.NAME]
    if _ours(folder / card.NAME) and _replaceable_there(api, repo_id, to.revision):
        sent.append(card.NAME)
    return api.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(folder / name)) for name in sent],
        commit_message=to.commit_message or "Upload model",
        commit_description=to.commit_description,
        revision=to.revision,
        create_pr=to.create_pr,
    )


def _ours(path: Path) -> bool:
    return path.is_file() and card.replaceable(path)


def _replaceable_there(api: Any, repo_id: str, revision: str | None) -> bool:
    """Whether the repository has no card yet, or one of ours."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return card.replaceable(Path(api.hf_hub_download(repo_id, card.NAME, revision=revision)))
    except EntryNotFoundError:
        return True
