"""What the doctor says of a cluster whose storage or nodes are ill (the rest: tests/integration/test_submit.py)."""

from typing import Any

import pytest

from cluster import survey
from pipelines import doctor_cluster

NODE: dict[str, Any] = {
    "ip": "10.0.0.1", "head": False, "python": "3.11.7", "ray_cpus": 8.0, "ray_gpus": 1.0, "object_store": 8e9,
    "versions": {"ray": "2.60.0", "torch": "2.13.0", "vllm": "0.32.0", "transformers": "5.19.0", "pyarrow": "20.0.0"},
    "disk": 1e11, "memory_available": 1e11, "gpus": [{"name": "NVIDIA H100", "driver": "570.1"}], "sees": "",
}  # fmt: skip


def marks(checks: Any) -> list[str]:
    return [check.mark for check in checks]


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"error": "AccessDenied: no"}, "AccessDenied"),
        ({"written": "x", "whole": False, "create_only": False, "seconds": 0.1}, "not what is read"),
        ({"written": "x", "whole": True, "create_only": False, "seconds": 0.1}, "second create of one file is not"),
    ],
)
def test_storage_that_takes_no_commits(stored: dict[str, Any], said: str) -> None:
    (check,) = doctor_cluster.kept(stored, [NODE], "s3://b/x")
    assert check.mark == "fail" and said in check.found and check.do


def test_a_node_that_does_not_see_the_directory() -> None:
    stored = {"written": "x", "whole": True, "create_only": True, "seconds": 0.1}
    well, ill = doctor_cluster.kept(stored, [NODE, NODE | {"ip": "10.0.0.2", "sees": "it does not see"}], "/shared")
    assert (well.mark, ill.mark) == ("ok", "fail") and "10.0.0.2 (it does not see)" in ill.found


def test_a_directory_for_temporary_files_that_is_not_shared() -> None:
    assert doctor_cluster.shared([NODE | {"shares_temporary": True}], "/tmp").mark == "ok"
    apart = [NODE | {"shares_temporary": True}, NODE | {"ip": "10.0.0.2", "shares_temporary": False}]
    check = doctor_cluster.shared(apart, "/tmp")
    assert check.mark == "warn" and "10.0.0.2" in check.found and "TMPDIR" in check.do


def test_mixed_nodes_are_named() -> None:
    other = NODE | {"ip": "10.0.0.2", "python": "3.12.1", "versions": NODE["versions"] | {"ray": "2.59.0"}}
    found = {check.name: check for check in doctor_cluster.same([NODE, other, NODE | {"ip": "10.0.0.3"}])}
    assert found["python"].mark == found["ray"].mark == "fail"
    assert "2.59.0 on 10.0.0.2; 2.60.0 on 10.0.0.1, 10.0.0.3" in found["ray"].found
    assert found["torch"].mark == "ok"
    assert marks(doctor_cluster.same([NODE, NODE])) == ["ok"] * 5


def test_silent_idle_and_mixed_gpus_and_small_nodes() -> None:
    assert doctor_cluster.nodes([NODE, {**NODE, "error": "no answer within 120 s"}]).mark == "fail"
    assert marks(doctor_cluster.gpus([NODE | {"gpus": None}])) == ["fail", "ok"]
    assert "warn" in marks(doctor_cluster.gpus([NODE | {"ray_gpus": 0.0}]))
    mixed = NODE | {"gpus": [{"name": "NVIDIA A100", "driver": "570.1"}]}
    assert marks(doctor_cluster.gpus([NODE, mixed])) == ["warn"]
    assert marks(doctor_cluster.rooms([NODE, NODE | {"disk": 1e8, "object_store": 1e8, "memory_available": 1e9}])) == [
        "warn", "fail", "warn",
    ]  # fmt: skip
    assert marks(doctor_cluster.rooms([NODE, NODE | {"ray_cpus": 0.0, "ray_gpus": 0.0, "disk": 1e8}])) == ["ok"] * 3


def test_where_nobody_answers_that_is_all_there_is_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = {"nodes": [{**NODE, "error": "no answer"}], "storage": {}, "temporary": "/tmp"}
    monkeypatch.setattr(doctor_cluster, "ask", lambda *_: silent)
    (check,) = doctor_cluster.examine(None, None, None, {}, False)
    assert check.mark == "fail" and "no answer from 10.0.0.1" in check.found


def test_what_a_node_tells_of_itself(tmp_path: Any) -> None:
    told = survey.node("", "", ["ray", "no-such-package"], str(tmp_path))
    assert told["versions"]["ray"] and "no-such-package" not in told["versions"]
    assert told["memory"] >= told["memory_available"] > 0 and told["disk"] > 0 and told["sees"] is None
    assert told["shares_temporary"]
    stored = survey._write(str(tmp_path))
    assert stored["whole"] and stored["create_only"]
    assert survey.node(str(tmp_path), stored["written"], [], "")["sees"] == ""
    assert "does not see" in survey.node(str(tmp_path / "elsewhere"), stored["written"], [], "")["sees"]
