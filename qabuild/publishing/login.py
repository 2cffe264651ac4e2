"""A client of the Hub that may write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qabuild.errors import MissingEnvironment
from qabuild.system.hub_retry import LOG_IN

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def log_in() -> HfApi:
    """A client of the Hub that may write. Raises MissingEnvironment without a token, or with one that only reads."""
    from huggingface_hub import HfApi, get_token

    token = get_token()
    if token is None:
        raise MissingEnvironment("there is no token for the Hub here", LOG_IN)
    api = HfApi(token=token)
    account: dict[str, Any] = api.whoami()
    role = account.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise MissingEnvironment(f"the token of '{account.get('name')}' may read only", LOG_IN)
    return api
