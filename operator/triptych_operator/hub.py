"""Fetches a model repository from a hub: resumable, with the hub client's own progress bars.

Only what an engine reads is fetched: weights as safetensors, configuration, tokenizer, chat template. Weights that
hold code (pickles) and code itself never are.
"""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.errors import HTTPError as ConnectionFailed  # type: ignore[attr-defined]  # of its HTTP client
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined]

WANTED = ("*.safetensors", "*.json", "*.jinja", "tokenizer*", "vocab*", "merges.txt", "LICENSE*")
UNWANTED = ("*.bin", "*.pt", "*.pth", "*.py", "original/*", "*/*")

_FAILURES = (HfHubHTTPError, ConnectionFailed, HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError)


@dataclass(frozen=True, slots=True)
class Hub:
    """Where and as whom to fetch.

    Attributes:
        endpoint: Base URL of a mirror; None is the library's default.
        token: Of the user, None for none.
        cache: Folder of the cache; None is the library's default, shared with other programs.
        progress: Show progress bars on stderr.
    """

    endpoint: str | None = None
    token: str | None = None
    cache: Path | None = None
    progress: bool = True


class HubFailed(Exception):
    """Nothing was fetched; the message says why and what to do."""


def fetch(repo: str, revision: str, hub: Hub) -> Path:
    """The folder of a repository's snapshot, fetched where it is not in the cache yet.

    Raises:
        HubFailed: Unknown, private, gated, or the hub cannot be reached and the cache does not hold it.
    """
    (enable_progress_bars if hub.progress else disable_progress_bars)()
    try:
        folder = snapshot_download(
            repo,
            revision=revision or None,
            endpoint=hub.endpoint,
            token=hub.token or False,
            cache_dir=hub.cache,
            allow_patterns=list(WANTED),
            ignore_patterns=list(UNWANTED),
        )
    except (
        HfHubHTTPError,
        ConnectionFailed,
        HFValidationError,
        IncompleteSnapshotError,
        LocalEntryNotFoundError,
    ) as error:
        raise HubFailed(_remedy(error, repo, revision)) from None
    except OSError as error:
        reason = error.strerror or "the cache cannot be written"
        raise HubFailed(f"{repo} cannot be kept: {reason}; free space, or set HF_HOME to another folder") from None
    return Path(str(folder))


def _remedy(error: Exception, repo: str, revision: str) -> str:
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated; accept its terms on the hub, then set HF_TOKEN"
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'}; write a branch, tag or commit of it"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no repository {repo}, or it is private; check the name, or set HF_TOKEN"
    if isinstance(error, HFValidationError):
        return f"{repo} is not the name of a repository; write hf://OWNER/NAME"
    return (
        f"{repo} is not in the cache and the hub cannot be reached; "
        "check the network or HF_ENDPOINT (a mirror), or write host://PATH of a folder that you have"
    )
