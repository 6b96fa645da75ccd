"""An endpoint with engines on two nodes, one of which dies under load."""

from typing import Any

import pytest

from serving.listening import Http
from serving.settings import Endpoint
from tests import drivers, ports, tiny
from tests.asking import Asking, running

pytestmark = pytest.mark.timeout(1200)


def test_a_node_dies_under_load(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One engine a node: a node that comes under load gets one, and when it dies the other one answers."""
    import openai

    from cluster.session import session
    from serving import endpoint

    model = tiny.model_dir(tmp_path_factory.mktemp("model"))
    what = Endpoint(models={"model": str(model)}, max_model_len=256, max_num_seqs=2, max_replicas=2)
    room: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 128 << 20}  # of which an engine takes more than half
    with (
        drivers.cluster(cpus=1) as cluster,
        session(cluster.address, None),
        endpoint.endpoint(what, Http(port=ports.free())) as url,
    ):
        # The ingress is on the first node, which does not die here: the second comes only now, as the load needs it.
        with Asking(lambda: openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300), 6) as asking:
            node = cluster.add_node(**room)
            drivers.until(lambda: running() == 2, timeout=400)
            asking.more(2)
            cluster.remove_node(node, allow_graceful=False)
            waited = asking.more(3, 120)
            drivers.until(lambda: running() == 1, timeout=180)  # Ray misses a node after a minute; others answer before
            asking.more(3)
        print(f"all clients answered again after {waited:.0f} s")
        print(asking.failed)
    assert not asking.failed[False], "what had not begun was asked again"
    for failed in asking.failed[True]:
        assert failed.startswith("APIError: the engine died"), failed
