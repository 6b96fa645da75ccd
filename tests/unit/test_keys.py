"""Keys files: what is read, what is refused without being shown, and that a change is seen."""

import hashlib
import re
from pathlib import Path

import pytest

from serving import keys

ONE, TWO = "sk-first-0123456789", "sk-second-0123456789"


def hashed(secret: str) -> str:
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_plain_and_hashed_lines(file: Path) -> None:
    file.write_text(f"# ours\n\n{ONE}  # Ann\n{hashed(TWO)}\n")
    found = keys.read(file)
    assert [key.name for key in found] == ["line 3", "line 4"]
    for secret, key in ((ONE, found[0]), (TWO, found[1])):
        assert keys.find(found, secret) == key
    for wrong in ("", ONE[:-1], ONE + " ", hashed(TWO), "sk-other-0123456789", "\udcff"):
        assert keys.find(found, wrong) is None
    assert ONE not in repr(found) and hashed(ONE)[7:] not in repr(found), "only hashes are kept, and none is shown"


def test_tables(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(
        f'[[key]]\nname = "ann"\nkey = "{ONE}"\nmodels = ["sdd"]\nrequests_per_minute = 60\ntokens_per_minute = 1e4\n'
        f'[[key]]\nname = "bob"\nkey = "{hashed(TWO)}"\n'
    )
    ann, bob = keys.read(file)
    assert (ann.name, ann.models, ann.requests_per_minute, ann.tokens_per_minute) == ("ann", {"sdd"}, 60, 1e4)
    assert (bob.name, bob.models, bob.requests_per_minute, bob.tokens_per_minute) == ("bob", None, None, None)
    assert keys.find((ann, bob), TWO) == bob


TABLE = f'[[key]]\nname = "ann"\nkey = "{ONE}"\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("k", "", "holds no key"),
        ("k", "# nothing\n", "holds no key"),
        ("k", f"{ONE}\nshort-{ONE[:5]}\n", "line 2: a key has at least 16 characters"),
        ("k", f"{ONE}\nsk-with a space-0123\n", "line 2: a key has at least 16"),
        ("k", "sha256:12ab\n", "line 1: sha256: is followed by 64 hex digits"),
        ("k", f"{ONE}\n{ONE}\n", "same secret"),
        ("k", f"{ONE}\n{hashed(ONE)}\n", "same secret"),
        ("k.toml", TABLE + TABLE.replace(ONE, TWO), "same name"),
        ("k.toml", TABLE[:-2], "not TOML"),
        ("k.toml", TABLE + "rate = 3\n", "key 1: unknown field 'rate'"),
        ("k.toml", TABLE + "requests_per_minute = 0\n", "key 1: requests_per_minute is a number above 0"),
        ("k.toml", TABLE + "requests_per_minute = nan\n", "key 1: requests_per_minute is a number above 0"),
        ("k.toml", TABLE + "tokens_per_minute = inf\n", "key 1: tokens_per_minute is a number above 0"),
        ("k.toml", f'[[key]]\n{ONE} = "name"\n', "key 1: unknown field; there are key, models"),
        ("k", f"{ONE}ä\n", "line 1: a key has at least 16 characters of ASCII"),
        ("k", f"SHA256:{'0' * 63}\n", "line 1: sha256: is followed by 64 hex digits"),
        ("k.toml", TABLE + "tokens_per_minute = true\n", "tokens_per_minute is a number above 0"),
        ("k.toml", TABLE + 'models = "sdd"\n', "models is a list"),
        ("k.toml", '[[key]]\nname = "ann"\n', "name and key are needed"),
        ("k.toml", f'key = "{ONE}"\n', "tables [[key]]"),
    ],
)
def test_what_is_wrong_is_named_and_no_key_is_shown(tmp_path: Path, name: str, content: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError, match=re.escape(str(file))) as raised:
        keys.read(file)
    assert said in str(raised.value)
    assert ONE not in str(raised.value) and ONE[:5] + "\n" not in str(raised.value)


def test_large_and_binary_files_are_refused(file: Path) -> None:
    file.write_bytes(b"#" * (keys.SIZE + 1))
    with pytest.raises(ValueError, match="1 MiB"):
        keys.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        keys.read(file)


def test_a_change_is_seen_and_a_broken_one_leaves_the_keys_as_they_were(file: Path) -> None:
    file.write_text(ONE)
    watched = keys.KeysFile(file)
    assert keys.find(watched.keys(), ONE)
    file.write_text(f"{TWO}\n")
    assert keys.find(watched.keys(), TWO) and not keys.find(watched.keys(), ONE)
    file.write_text("short")
    assert keys.find(watched.keys(), TWO) and "line 1" in watched.error
    file.unlink()
    assert keys.find(watched.keys(), TWO) and watched.error
    replaced = file.with_name("new")
    replaced.write_text(ONE)
    replaced.replace(file)  # as an editor, or a Kubernetes secret, does it
    assert keys.find(watched.keys(), ONE) and not watched.error


def test_a_key_may_hold_the_sign_of_a_comment_and_the_hash_may_be_spelt_large(file: Path) -> None:
    file.write_text(f"{ONE}#more # mine\n#{TWO}\n{hashed(TWO).upper()}\n")
    found = keys.read(file)
    assert len(found) == 2 and keys.find(found, ONE) is None
    assert keys.find(found, f"{ONE}#more") == found[0] and keys.find(found, TWO) == found[1]


def test_a_file_that_cannot_be_read_is_read_once_until_it_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text(ONE)
    watched, aside = keys.KeysFile(file), file.with_name("aside")
    file.rename(aside)
    assert keys.find(watched.keys(), ONE) and "No such file" in watched.error
    monkeypatch.setattr(keys, "read", lambda path: pytest.fail("read again"))
    for _ in range(3):
        assert keys.find(watched.keys(), ONE) and watched.error
    monkeypatch.undo()
    aside.rename(file)  # the same file as at first
    assert keys.find(watched.keys(), ONE) and not watched.error
