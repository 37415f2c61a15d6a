"""Who may use a server that others can reach: a file of names and password hashes.

One line a user, `name:scrypt$salt$hash` in hexadecimal; scrypt with n = 2^14, r = 8, p = 1. The
password itself is nowhere.
"""

import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from skipstep.pipelines.pictures import write_whole
from skipstep.plugins.errors import PluginError

__all__ = ["add_user", "read_users"]

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):scrypt\$([0-9a-f]{32})\$([0-9a-f]{64})")
SHORTEST, LONGEST = 8, 1000


def hashed(password: str, salt: bytes) -> bytes:
    """Return the hash of a password."""
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)


def read_lines(path: Path) -> dict[str, tuple[bytes, bytes]]:
    """Return salt and hash by name.

    Raises PluginError that names the line which is none.
    """
    found = {}
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise PluginError(f"{path}: there is no such file: make it with --add-user NAME") from None
    except UnicodeDecodeError:
        raise PluginError(f"{path}: this is no file of users") from None
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise PluginError(f"{path}: line {number} is no name:scrypt$salt$hash: remove it")
        found[match[1]] = (bytes.fromhex(match[2]), bytes.fromhex(match[3]))
    return found


def read_users(path: Path) -> Callable[[str, str], bool]:
    """Return a function that says whether a name and a password belong together.

    Raises PluginError for a file that is none, or names nobody.
    """
    users = read_lines(path)
    if not users:
        raise PluginError(f"{path}: names nobody: add somebody with --add-user NAME")
    nobody = (secrets.token_bytes(16), secrets.token_bytes(32))

    def is_user(name: str, password: str) -> bool:
        # An unknown name takes as long as a known one.
        salt, wanted = users.get(name, nobody)
        is_equal = hmac.compare_digest(hashed(password[:LONGEST], salt), wanted)
        return is_equal and name in users

    return is_user


def add_user(path: Path, name: str, password: str) -> None:
    """Add somebody to the file, or change the password.

    Raises PluginError for a name or a password that is not taken.
    """
    if NAME.fullmatch(name) is None:
        raise PluginError(f"user {name!r} is not allowed: 1 to 64 of A-Z, a-z, 0-9, . _ -")
    if not SHORTEST <= len(password) <= LONGEST:
        raise PluginError(f"the password has {len(password)} characters: {SHORTEST} to {LONGEST}")
    users = read_lines(path) if path.exists() else {}
    salt = secrets.token_bytes(16)
    users[name] = (salt, hashed(password, salt))
    lines = [f"{each}:scrypt${a.hex()}${b.hex()}" for each, (a, b) in sorted(users.items())]
    write_whole(path, ("\n".join(lines) + "\n").encode())
    os.chmod(path, 0o600)
