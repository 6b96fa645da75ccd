"""A plan on the screen: its tables and what to bear in mind. All figures come from `plan.plan`."""

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

WIDTH = 118  # where the output is piped: a pipe has no width of its own


def show(plan: dict[str, Any]) -> None:
    """Print `plan` to standard output."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    teacher, pruned, gpu = plan["teacher"], plan["pruned"], plan["gpu"]
    console.print(f"[bold]plan of {plan['recipe']}[/bold]: nothing is started, no weights are read\n")
    console.print(
        f"teacher  {teacher['model']}: {teacher['parameters']:,} parameters, {teacher['layers']} blocks "
        f"({teacher['family']}, {teacher['from']})",
        soft_wrap=True,
    )
    share = 100 * (1 - pruned["parameters"] / teacher["parameters"])
    console.print(
        f"pruned   {pruned['parameters']:,} parameters, {pruned['layers']} blocks "
        f"({pruned['removed']} removed, {share:.2f} % smaller)"
    )
    if gpu:
        console.print(
            f"GPU      {plan['total']['cluster_gpus']} × {gpu['name']}: {gpu['memory'] / 1e9:.0f} GB, "
            f"{gpu['flops'] / 1e12:.0f} TFLOP/s bf16, {gpu['bandwidth'] / 1e12:.2f} TB/s"
        )
    able = [_volumes(plan), _resources(plan)] if plan["capacity"] else []
    for table in (_stages(plan), _memory(plan), _work(plan), *able, _assumptions(plan)):
        console.print()
        console.print(table)
    for note in plan["notes"]:
        console.print(f"[yellow]note[/yellow]: {note}", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)


def _stages(plan: dict[str, Any]) -> Table:
    shown = _table("Stages, in order", "artifact", "reads", "makes", "state")
    said = None
    for row in plan["stages"]:
        shown.add_row(row["artifact"], "the same" if row["reads"] == said else row["reads"], row["makes"], row["state"])
        said = row["reads"]
    return shown


def _memory(plan: dict[str, Any]) -> Table:
    shown = _table("Memory of one GPU, in GB", "what", "GPUs", "parts", "sum", "limit", "")
    for row in plan["memory"]:
        parts = " + ".join(f"{name} {_gb(size)}" for name, size in row["bytes"].items())
        fits = {True: "fits", False: "[red]does not fit[/red]", None: ""}[row["fits"]]
        limit = "" if row["limit"] is None else _gb(row["limit"])
        shown.add_row(
            row["what"], str(row["gpus"]), f"{parts}\n[dim]{row['about']}[/dim]", _gb(row["total"]), limit, fits
        )
    node, head = _gb(plan["host_memory"]), plan["head_memory"]
    shown.caption = f"Main memory of a node that runs every worker: {node} GB"
    shown.caption += "." if head is None else f"; of the head, which prunes in fp32: {_gb(head)} GB for the weights."
    shown.caption_justify = "left"
    return shown


def _work(plan: dict[str, Any]) -> Table:
    total, price = plan["total"], plan["total"]["gpu_hour_price"]
    shown = _table("Work, in millions of tokens", "stage", "what", "read", "written", "trained", "scored")
    for name in ("GPUs", "hours", "GPU hours", *(["cost"] if price is not None else [])):
        shown.add_column(name, justify="right")
    for row in plan["work"]:
        tokens = [_millions(row["tokens"].get(name)) for name in ("read", "written", "trained", "scored")]
        cost = [] if price is None or row["gpu_hours"] is None else [f"{row['gpu_hours'] * price:,.2f}"]
        hours = [_hours(row["hours"]), _hours(row["gpu_hours"])]
        shown.add_row(row["stage"], row["what"], *tokens, str(row["gpus"]), *hours, *cost)
    if total["hours"] is not None:
        cost = [] if price is None else [f"{total['cost']:,.2f}"]
        shown.add_row(
            "all", "GPUs at work", "", "", "", "", "", _hours(total["hours"]), _hours(total["gpu_hours"]), *cost
        )
        cost = [] if price is None else [f"{total['cost_held']:,.2f}"]
        held = [str(total["cluster_gpus"]), _hours(total["hours"]), _hours(total["gpu_hours_held"])]
        shown.add_row("", "a cluster held throughout", "", "", "", "", *held, *cost)
    return shown


def _volumes(plan: dict[str, Any]) -> Table:
    able = plan["capacity"]
    rate, price = able["tokens_per_second"], plan["total"]["gpu_hour_price"]
    title = (
        f"Capacity: the teacher writes on {able['gpus']:,} × {plan['gpu']['name']}, generate.engines={able['engines']}"
    )
    shown = _table(title, "tokens", "rows", "shards")
    for name in ("hours", "GPU hours", *(["cost"] if price is not None else [])):
        shown.add_column(name, justify="right")
    shown.add_column("first bottleneck")
    shown.add_column("next one")
    for row in able["volumes"]:
        cost = [] if price is None else [f"{row['cost']:,.2f}"]
        after = row["next"]
        then = f"from {after['gpus']:,} GPUs: {after['bottleneck']}" if after else "none up to 100,000 GPUs"
        sizes = [_count(row["tokens"]), f"{row['rows']:,}", f"{row['shards']:,}"]
        hours = [_hours(row["hours"]), _hours(row["gpu_hours"])]
        shown.add_row(*sizes, *hours, *cost, row["bottleneck"], then)
    idle = f", {able['idle_gpus']} GPU(s) idle" if able["idle_gpus"] else ""
    shown.caption = (
        f"{rate['engine']:,.0f} tokens/s an engine, {rate['all']:,.0f} in all{idle}: prompts of "
        f"{able['prompt_tokens']:,.0f} tokens, answers of {able['written_tokens']:,.0f}, {able['sequences']:,.0f} of "
        f"{able['seats']:,} seats taken, decoding bound by {able['decoding_bound_by']}."
    )
    shown.caption_justify = "left"
    return shown


def _resources(plan: dict[str, Any]) -> Table:
    shown = _table("What 100 M tokens pass, the slowest place first", "part", "in", "rate")
    shown.add_column("hours", justify="right")
    shown.add_column("of the time", justify="right")
    shown.add_column("rests on")
    for row in plan["capacity"]["resources"]:
        hours = f"{row['hours']:,.2f}" if row["hours"] >= 0.1 else f"{row['hours']:.4f}"
        shown.add_row(row["resource"], row["where"], row["rate"], hours, f"{row['share']:.1%}", row["rests_on"])
    return shown


def _assumptions(plan: dict[str, Any]) -> Table:
    shown = _table("Assumptions; change one with --assume name=value", "name", "value", "what it is")
    for row in plan["assumptions"]:
        shown.add_row(row["name"], f"{row['value']:g}", row["about"])
    return shown


def _count(tokens: int) -> str:
    return f"{tokens / 1e9:,.0f} B" if tokens >= 1e9 else f"{tokens / 1e6:,.0f} M"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.1f}" if size >= 1e9 else f"{size / 1e9:.2g}"


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value:,.2f}"


def _millions(tokens: float | None) -> str:
    return "" if not tokens else f"{tokens / 1e6:,.2f}"
