"""API keys, from the environment: who may ask, and whose concepts are whose.

`ESCDIFF_API_KEYS=ann:SECRET,bob:SECRET`, or `ESCDIFF_API_KEYS_FILE`, a file with one NAME:SECRET a line. Only hashes
are kept in memory and handed to worker processes.
"""

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from escdiff.support.errors import UserError

KEYS, KEYS_FILE = "ESCDIFF_API_KEYS", "ESCDIFF_API_KEYS_FILE"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
ANYONE = "anyone"  # the owner of everything where there are no keys
SHORTEST = 16  # letters of a secret
MAKE_ONE = "make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"


def read_keys(environment: Mapping[str, str]) -> dict[str, str]:
    """Hash of a secret -> name of its owner; empty without keys.

    Raises:
        UserError: an entry that is no NAME:SECRET, a short secret, or one given twice; a file that cannot be read.
    """
    entries = environment.get(KEYS, "").split(",")
    if file := environment.get(KEYS_FILE):
        try:
            entries += Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{KEYS_FILE} names a file that cannot be read ({type(error).__name__})") from None
    owners: dict[str, str] = {}
    for number, entry in enumerate(filter(None, map(str.strip, entries)), 1):
        name, colon, secret = entry.partition(":")
        if not (colon and NAME.fullmatch(name)):  # the entry may be a bare secret, so it is not shown
            raise UserError(f"API key {number} is no NAME:SECRET with a name of letters, digits, - and _; {MAKE_ONE}")
        if len(secret) < SHORTEST:
            raise UserError(f"the API key of {name} has less than {SHORTEST} letters; {MAKE_ONE}")
        if owners.setdefault(hashed(secret), name) != name:
            raise UserError(f"{name} and {owners[hashed(secret)]} have the same API key; {MAKE_ONE}")
    return owners


def hashed(secret: str) -> str:
    """Hash of a secret. The time of comparing hashes reveals nothing about the secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def owner_of(owners: Mapping[str, str], authorization: str) -> str | None:
    """Owner of the key in `Authorization: Bearer SECRET`; None if unknown. Without keys, everybody is `ANYONE`."""
    if not owners:
        return ANYONE
    scheme, _, secret = authorization.partition(" ")
    return owners.get(hashed(secret.strip())) if scheme.lower() == "bearer" else None


def is_own(host: str) -> bool:
    """Whether only this machine can ask at this address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def asks_own(host: str) -> bool:
    """Whether a `Host` header names this machine.

    Another name would be that of a web page in this machine's browser, whose owner lets it lead here (DNS rebinding).
    """
    try:
        return is_own(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
