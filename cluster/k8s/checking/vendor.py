"""Makes `crds/` from KubeRay's CRD files: `python -m cluster.k8s.checking.vendor DIR`.

DIR holds the files of `ray-operator/config/crd/bases` of a KubeRay release. A CRD's served versions are kept as
compressed JSON, whole but for the descriptions, which are most of their size and say nothing that is checked."""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

CRDS = Path(__file__).parent / "crds"


def undescribed(schema: Any) -> Any:
    """`schema` without its descriptions. A property that is called `description` stays."""
    if isinstance(schema, list):
        return [undescribed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: undescribed(part) for name, part in value.items()} if key == "properties" else undescribed(value)
        for key, value in schema.items()
        if key != "description" or not isinstance(value, str)
    }


def versions(crd: dict[str, Any]) -> dict[str, Any]:
    """Version → schema, of the versions that a CRD serves."""
    served = (version for version in crd["spec"]["versions"] if version["served"])
    return {version["name"]: undescribed(version["schema"]["openAPIV3Schema"]) for version in served}


def write(source: Path, target: Path = CRDS) -> list[Path]:
    """Write one file a kind into `target`; the same input gives the same bytes. Raises OSError, KeyError where a file
    is no CRD."""
    import yaml

    written = []
    for file in sorted(source.glob("*.yaml")):
        crd = yaml.load(file.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        text = json.dumps(versions(crd), sort_keys=True, separators=(",", ":"))
        written.append(target / f"{crd['spec']['names']['kind'].lower()}.json.gz")
        written[-1].write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    return written


if __name__ == "__main__":
    for made in write(Path(sys.argv[1])):
        print(made)
