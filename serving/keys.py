"""API keys of an endpoint: read from a file, kept as hashes only, compared in constant time."""

import hashlib
import hmac
import math
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZE = 1 << 20  # bytes of the largest keys file that is read
HASHED = "sha256:"
COMMENT = re.compile(r"(^|\s)#.*")  # a key may hold the sign
FIELDS = {"name", "key", "models", "requests_per_minute", "tokens_per_minute"}


@dataclass(frozen=True)
class Key:
    """Who may ask. `models` None: for any model; rates None: as often as there is room."""

    name: str
    digest: bytes = field(repr=False)
    models: frozenset[str] | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


def read(path: Path) -> tuple[Key, ...]:
    """The keys in `path`: a line a key (# begins a comment), plain or as `sha256:` and 64 hex digits; or, where the
    file's name ends in .toml, tables [[key]] with `name`, `key` (plain or hashed), and where wanted `models`,
    `requests_per_minute`, `tokens_per_minute`.

    Raises ValueError that names the line or the table and never shows a key; OSError where it cannot be read."""
    with path.open("rb") as file:
        data = file.read(SIZE + 1)
    if len(data) > SIZE:
        raise ValueError(f"{path}: keys files end at {SIZE >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8") from None
    found = _tables(path, text) if path.suffix == ".toml" else _lines(path, text)
    if not found:
        raise ValueError(f"{path}: holds no key; write one a line")
    for what in ("name", "digest"):
        if len({getattr(key, what) for key in found}) < len(found):
            raise ValueError(f"{path}: two keys have the same {'name' if what == 'name' else 'secret'}")
    return tuple(found)


def find(keys: tuple[Key, ...], secret: str) -> Key | None:
    """Whose key `secret` is. All are compared, each in constant time: how long it takes tells nothing."""
    digest, found = _digest(secret), None
    for key in keys:
        if hmac.compare_digest(key.digest, digest):
            found = key
    return found


class KeysFile:
    """The keys of a file, read again when it changes. A change that cannot be read leaves the keys as they were and
    is kept in `error`, until the file is right again."""

    def __init__(self, path: Path) -> None:
        self.path, self.error = path, ""
        self._seen = self._state()
        self._keys = read(path)

    def keys(self) -> tuple[Key, ...]:
        """What the file says now."""
        seen = self._state()
        if seen != self._seen:
            self._seen = seen  # also where it cannot be read: once is enough until it changes
            try:
                self._keys, self.error = read(self.path), ""
            except (OSError, ValueError) as error:
                self.error = str(error)
        return self._keys

    def _state(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf8", "surrogateescape")).digest()


def _parsed(secret: str, where: str) -> bytes:
    """The hash of a key as written in a file."""
    if not secret.lower().startswith(HASHED):
        if len(secret) < 16 or not secret.isprintable() or not secret.isascii() or " " in secret:
            raise ValueError(f"{where}: a key has at least 16 characters of ASCII, none of them a space")
        return _digest(secret)
    try:
        digest = bytes.fromhex(secret[len(HASHED) :])
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"{where}: sha256: is followed by 64 hex digits (`printf %s KEY | sha256sum`)")
    return digest


def _lines(path: Path, text: str) -> list[Key]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        secret = COMMENT.sub("", line).strip()
        if secret:
            found.append(Key(f"line {number}", _parsed(secret, f"{path}, line {number}")))
    return found


def _tables(path: Path, text: str) -> list[Key]:
    try:
        said = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # its message may show the line
        raise ValueError(f"{path}: not TOML; tables [[key]] with name and key are expected") from None
    tables = said.get("key")
    if set(said) - {"key"} or not isinstance(tables, list) or not all(isinstance(one, dict) for one in tables):
        raise ValueError(f"{path}: tables [[key]] with name and key are expected, and nothing else")
    return [_table(table, f"{path}, key {number}") for number, table in enumerate(tables, 1)]


def _table(table: dict[str, Any], where: str) -> Key:
    if unknown := sorted(set(table) - FIELDS):
        named = f" {unknown[0]!r}" if re.fullmatch("[a-z_]{1,30}", unknown[0]) else ""  # others may be a key
        raise ValueError(f"{where}: unknown field{named}; there are {', '.join(sorted(FIELDS))}")
    name, secret, models = table.get("name"), table.get("key"), table.get("models")
    if not (isinstance(name, str) and name and isinstance(secret, str)):
        raise ValueError(f"{where}: name and key are needed, both as text")
    if models is not None and not (isinstance(models, list) and all(isinstance(one, str) for one in models)):
        raise ValueError(f"{where}: models is a list of names")
    rates = {}
    for rate in ("requests_per_minute", "tokens_per_minute"):
        value = table.get(rate)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 < value < math.inf):
            raise ValueError(f"{where}: {rate} is a number above 0")
        rates[rate] = value
    return Key(name, _parsed(secret, where), None if models is None else frozenset(models), **rates)
