"""What the checker reads: YAML as kubectl reads it, strictly, and every fault with its file and line."""

from pathlib import Path

import pytest

from cluster.k8s.checking import reading

OBJECT = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"


def put(folder: Path, name: str, text: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder


def test_documents_of_all_files_below_a_directory(tmp_path: Path) -> None:
    put(tmp_path, "b/one.yml", f"---\n{OBJECT}---\n# nothing here\n---\n{OBJECT}")
    put(tmp_path, "a.yaml", OBJECT)
    put(tmp_path, ".git/x.yaml", OBJECT)
    put(tmp_path, "notes.txt", "no: manifest")
    found = reading.read(str(tmp_path))
    assert [file for file, _ in found] == [str(tmp_path / "a.yaml"), *[str(tmp_path / "b/one.yml")] * 2]
    assert {content["kind"] for _, content in found} == {"ConfigMap"}
    assert reading.read(str(tmp_path / "a.yaml")) == found[:1]


def test_a_list_is_its_items(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "apiVersion: v1\nkind: List\nitems:\n- {kind: A}\n- {kind: B}\n")
    assert [content["kind"] for _, content in reading.read(str(tmp_path))] == ["A", "B"]
    put(tmp_path, "a.yaml", "apiVersion: v1\nkind: List\nitems: [1]\n")
    with pytest.raises(ValueError, match=r"a\.yaml: an item of a List is no object"):
        reading.read(str(tmp_path))


def test_what_a_kustomization_patches_with_is_no_object(tmp_path: Path) -> None:
    put(tmp_path, "kustomization.yaml", "resources: [a.yaml]\npatches: [{path: gpu.yaml}]\n")
    put(tmp_path, "gpu.yaml", "- op: replace\n  path: /data/a\n  value: b\n")
    put(tmp_path, "a.yaml", OBJECT)
    kinds = [(Path(file).name, content["kind"]) for file, content in reading.read(str(tmp_path))]
    assert kinds == [("a.yaml", "ConfigMap"), ("kustomization.yaml", "Kustomization")]


def test_values_as_kubectl_reads_them(tmp_path: Path) -> None:
    put(tmp_path, "a.yaml", "a: 2024-01-01\nb: yes\n1: 010\ntrue: =\n")
    assert reading.read(str(tmp_path))[0][1] == {"a": "2024-01-01", "b": True, "1": 8, "true": "="}


BOMB = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 8))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"a\.yaml, line 3: 'a' is there already, in line 1"),
        ("a:\n  - b: {c: 1, c: 2}\n", r"line 2: 'c' is there already"),
        ("a: 1\n---\n- 1\n", r"line 3: not an object but a list"),
        ("a: [1\n", r"line 2, column 1: not valid YAML"),
        ("a: !!python/object:os.system {}\n", r"line 1, column 4: not valid YAML: could not determine a constructor"),
        ("a: &x [*x]\n", r"line 1: an alias to the value that it is part of"),
        (f"l0: &l0 [1, 1]\n{BOMB}", r"line 1: the document's aliases stand for over 500000 values"),
        ("[" * 5000, r"nested too deeply|not valid YAML"),
        ("# nothing\n", r"no manifest there"),
    ],
)
def test_faults_have_their_line(tmp_path: Path, text: str, said: str) -> None:
    put(tmp_path, "a.yaml", text)
    with pytest.raises(ValueError, match=said):
        reading.read(str(tmp_path))


def test_no_directory_no_text_and_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        reading.read(str(tmp_path / "nowhere"))
    (tmp_path / "a.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(ValueError, match=r"byte 3 is not UTF-8"):
        reading.read(str(tmp_path))
    monkeypatch.setattr(reading, "LARGEST", 10)
    put(tmp_path, "a.yaml", OBJECT)
    with pytest.raises(ValueError, match="a file of manifests may have 10"):
        reading.read(str(tmp_path))
