"""What looks like a secret, and what does not."""

import pytest

from cluster import secrets
from pipelines import recipe_file


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("key AKIAIOSFODNN7EXAMPLE in a text", "an AWS access key id"),
        ("hf_" + "aB3" * 11, "a Hugging Face token"),
        ("ghp_" + "a1B2" * 9, "a GitHub token"),
        ("sk-proj-" + "a1B2" * 6, "an API key"),
        ("https://me:word@hub.example/m", "a password in a URL"),
        ("redis://:word@host:6379", "a password in a URL"),
        ("s3://AKIA:pass@bucket/x", "a password in a URL"),
        ("glpat-" + "a1B2c3D4" * 3, "a GitLab token"),
        ("DefaultEndpointsProtocol=https;AccountKey=" + "a1B2" * 8, "an account's key"),
        ("Authorization: Basic dXNlcjpwYXNzd29yZDEyMw==", "a bearer token"),
        ("https://b/x?Expires=1&Signature=0123456789abcdef", "a signed URL"),
        ("https://me:pl/anted+word@hub/m", "a password in a URL"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMII", "a private key"),
        ("https://b.s3.amazonaws.com/x?X-Amz-Signature=0123456789abcdef0123", "a signed URL"),
        ("Authorization: Bearer abcdefghij0123456789xyz", "a bearer token"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTYifQ.c2lnbmF0dXJl", "a JSON web token"),
    ],
)
def test_values_by_their_form(text: str, kind: str) -> None:
    assert secrets.kind(text) == kind


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/run", "meta-llama/Llama-3.1-8B@main", "http://host:8265/path@x", "arc_challenge:25",
        "hf://datasets/openai/gsm8k/main/train.parquet", "sha256:0123456789abcdef0123456789abcdef", "a@b.example:22",
        "", "sk-learn", "data/sk-learn-datasets-regression-v2", "http://host:8000?x=a@b",
        "sk-learn-datasets-regression-v2",
    ],
)  # fmt: skip
def test_ordinary_values_are_none(text: str) -> None:
    assert secrets.kind(text) is None


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("AWS_SECRET_ACCESS_KEY", True), ("AWS_ACCESS_KEY_ID", True), ("HF_TOKEN", True), ("password", True),
        ("apiKey", True), ("redis-password", True), ("db_passwd", True), ("credentials", True), ("token", True),
        ("PGPASSWORD", True), ("MY_PASS", True), ("GITHUB_PAT", True), ("SECRET_KEY_BASE", True), ("SECRETKEY", True),
        ("AZURE_STORAGE_CONNECTION_STRING", True), ("compass", False), ("file_path", False), ("PATH", False),
        ("max_tokens", False), ("batch_tokens", False), ("keys", False), ("tokenizer", False), ("monkey", False),
        ("AWS_ENDPOINT_URL", False), ("KEYS_FILE", False),
    ],
)  # fmt: skip
def test_names(name: str, is_one: bool) -> None:
    assert secrets.named(name) is is_one


def test_every_place_of_a_content_is_told() -> None:
    content = {"a": {"token": "x", "empty_token": ""}, "b": [{"c": "https://u:p@h/"}, "fine"], "n": 3}
    assert list(secrets.found(content)) == [
        ("a.token", "a secret by its name"),
        ("b.0.c", "a password in a URL"),
    ]


def test_no_packaged_recipe_looks_like_one() -> None:
    for name in recipe_file.names():
        assert list(secrets.found(recipe_file.load(name).model_dump(mode="json"))) == []


def test_a_recipe_with_one_is_refused_and_does_not_show_it() -> None:
    with pytest.raises(recipe_file.BadInput) as refused:
        recipe_file.load("quickstart", ["teacher.model=https://me:planted@hub/m", "serve.api_key=planted"])
    said = str(refused.value)
    assert "teacher.model looks like a password in a URL" in said
    assert "serve.api_key looks like a secret by its name" in said
    assert "planted" not in said and "Secrets regrow-s3" in said


@pytest.mark.parametrize(
    "override", ["teacher.model.token=planted", "dataset.none.token=planted", "hf_" + "planted9" * 4]
)
def test_an_override_that_is_refused_does_not_show_its_value(override: str) -> None:
    with pytest.raises(recipe_file.BadInput) as refused:
        recipe_file.load("quickstart", [override])
    assert "planted" not in str(refused.value)
