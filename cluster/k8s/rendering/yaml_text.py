"""YAML as people read it: keys in the order given, texts of several lines as they are."""

from typing import Any


def plain(content: Any) -> str:
    """`content` as YAML."""
    import yaml

    class Dumper(yaml.SafeDumper):
        """Texts of several lines are written as blocks, and nothing is written as a reference to what came before."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
        style = "|" if "\n" in data.rstrip("\n") or data.endswith("\n") else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    Dumper.add_representer(str, text)
    return yaml.dump(content, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=1000)


def commented(head: str, content: Any) -> str:
    """`content` as YAML below the comment `head`."""
    lines = [f"# {line}".rstrip() for line in head.strip().splitlines()]
    return "\n".join([*lines, plain(content)])
