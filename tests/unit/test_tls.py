"""Certificates that cannot be served are refused before anything is started."""

from pathlib import Path

import pytest

from pipelines import cli_serve
from pipelines.recipe_file import BadInput
from serving.listening import Tls
from tests import tls


def test_a_certificate_and_its_key(tmp_path: Path) -> None:
    certificate, key = tls.self_signed(tmp_path)
    Tls(certificate, key).check()
    assert cli_serve._tls(certificate, key) == Tls(certificate, key)
    assert cli_serve._tls(None, None) is None


def test_what_cannot_be_served_is_named(tmp_path: Path) -> None:
    certificate, key = tls.self_signed(tmp_path)
    (other := tmp_path / "other").mkdir()
    stranger = tls.self_signed(other)[1]
    (hidden := tmp_path / "hidden").mkdir()
    locked = tls.self_signed(hidden, "secret")
    (torn := tmp_path / "torn.pem").write_text("-----BEGIN CERTIFICATE-----")
    for pair in ((tmp_path / "none.pem", key), (certificate, stranger), (torn, key), (certificate, torn), locked):
        with pytest.raises(BadInput, match=f"^--tls-cert, --tls-key: {pair[0]} and {pair[1]}: ."):
            cli_serve._tls(*pair)
    for half in ((certificate, None), (None, key)):
        with pytest.raises(BadInput, match="go together"):
            cli_serve._tls(*half)
