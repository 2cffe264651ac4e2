"""Logs in to the Hub with a token that may write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qabuild.errors import MissingEnvironment
from qabuild.system.hub_retry import LOG_IN

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def log_in() -> HfApi:
    """A Hub client with write access. Raises MissingEnvironment without a token, or with a read-only token."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise MissingEnvironment("no token for the Hub on this machine", LOG_IN)
    api = HfApi(token=token)
    account: dict[str, Any] = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MissingEnvironment(f"the token of '{account.get('name')}' may read only", LOG_IN)
    return api


def require_rights(api: HfApi, repo: str) -> None:
    """Raise MissingEnvironment unless the repository's owner is the account or one of its organisations."""
    account: dict[str, Any] = api.whoami()
    owner = repo.partition("/")[0]
    if owner not in {account.get("name"), *(organisation.get("name") for organisation in account.get("orgs", []))}:
        raise MissingEnvironment(
            f"the account '{account.get('name')}' does not belong to '{owner}'",
            "name another repository with --repo, or open a pull request with --create-pr",
        )
