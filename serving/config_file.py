"""An endpoint as a Serve config file: `serve deploy` takes it, and a KubeRay RayService as its `serveConfigV2`."""

from pathlib import Path
from typing import Any

from serving.endpoint import APP
from serving.listening import Http
from serving.settings import Endpoint

HEAD = """\
# An endpoint of regrow: `serve deploy {name}` on a Ray cluster, or the text of serveConfigV2 in a RayService.
# Paths are those of the cluster's nodes, which have regrow installed.
"""


def content(endpoint: Endpoint, http: Http) -> dict[str, Any]:
    """The config (docs.ray.io, "Serve Config Files"). Settings that nobody changed are left out."""
    return {
        "proxy_location": "HeadOnly",
        "http_options": http.options(),
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": APP,
                "route_prefix": "/",
                "import_path": "serving.app:build",
                "args": endpoint.model_dump(exclude_defaults=True),
            }
        ],
    }


def write(file: Path, endpoint: Endpoint, http: Http) -> None:
    """Write the config as YAML. Raises OSError."""
    import yaml

    text = HEAD.format(name=file) + yaml.safe_dump(content(endpoint, http), sort_keys=False, allow_unicode=True)
    file.write_text(text, encoding="utf8")
