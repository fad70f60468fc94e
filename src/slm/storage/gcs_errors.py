"""What goes wrong with Google Cloud Storage, in words for the user: the place, the reason and the cure."""

from __future__ import annotations

import re

from slm.storage.files import MissingError, StorageError


class LoginError(StorageError):
    """Google refused the credentials; a new login may be there by the next call."""


def explain(error: BaseException, url: str) -> StorageError | None:
    """The error for the user in place of one of the client's, or None when `error` is not about storage."""
    import http.client

    import requests
    import urllib3
    from google.api_core import exceptions as api
    from google.auth import exceptions as auth
    from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

    if isinstance(error, api.RetryError) and error.cause is not None:
        return explain(error.cause, url)
    silence: tuple[type[Exception], ...] = (
        auth.TransportError,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
    )
    silence += (http.client.HTTPException, TimeoutError, ConnectionError, api.RetryError)
    # `POST https://host/path: ` begins the client's messages; the rest is the server's.
    words = re.sub(r"^[A-Z]+ https?:\S+: ", "", " ".join(str(getattr(error, "message", "") or error).split()))
    kind = StorageError
    if isinstance(error, silence):
        reason = "there is no answer. Check the network, the proxy and the firewall, then try again"
    elif isinstance(error, auth.DefaultCredentialsError):
        reason = "this machine has no Google credentials. Run `gcloud auth application-default login`"
    elif isinstance(error, auth.GoogleAuthError | api.Unauthorized):
        kind = LoginError
        reason = "Google refused the credentials (401). Run `gcloud auth application-default login` again"
    elif isinstance(error, DataCorruption):
        reason = "the bytes were damaged on the way, every time. Try again"
    elif isinstance(error, api.GoogleAPICallError | InvalidResponse):
        code = int(getattr(error, "code", None) or error.response.status_code)
        if code == 404 and "bucket does not exist" not in words:
            return missing(url)
        reason = _meaning(code, url.removeprefix("gs://").partition("/")[0])
    elif type(error).__module__.startswith(("aiohttp.", "gcsfs.")):
        reason = "reading failed. Try again, or download it first"
    else:
        return None
    return kind(f"Cannot use {url}: {reason}. ({words[:300]})")


def _meaning(code: int, bucket: str) -> str:
    """What an HTTP status means here, and the cure."""
    if code == 403:
        return (
            "Google refused permission (403). Give this account the role roles/storage.objectAdmin: `gcloud storage "
            f"buckets add-iam-policy-binding gs://{bucket} --member=user:YOU --role=roles/storage.objectAdmin`"
        )
    if code == 404:
        return f"there is no bucket {bucket!r}. Check the spelling or run `gcloud storage buckets create gs://{bucket}`"
    if code == 429 or code >= 500:
        return (
            f"Google Cloud Storage is busy or failing ({code}). Try later; https://status.cloud.google.com knows more"
        )
    return f"Google Cloud Storage refused the request ({code})"


def missing(url: str) -> MissingError:
    """The error that there is no such object."""
    parent = url.rstrip("/").rpartition("/")[0]
    return MissingError(f"There is no object {url}; `gcloud storage ls {parent}/` lists what is there.")
