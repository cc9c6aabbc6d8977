"""`efface adapter`: what was trained, rendered or imported, and where it goes."""

from __future__ import annotations

from typing import Annotated

import typer

from ..registry import Registry, get_adapter, list_adapters
from . import adapter_compact, adapter_end, adapter_overlap, adapter_transfer
from .options import (
    DEFAULT_REGISTRY,
    AdapterArgument,
    AfterOption,
    Format,
    FormatOption,
    LimitOption,
    RegistryOption,
)
from .output import emit, emit_table
from .records import AdapterRecord, adapter_json

app = typer.Typer(help="Sealed adapters.", no_args_is_help=True)


@app.command("list", epilog="Example: efface adapter list --request req-000001 --format json")
def list_(
    request: Annotated[str | None, typer.Option("--request", help="Only those of this request.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only those in this state.")] = None,
    after: AfterOption = None,
    limit: LimitOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """List adapters in the order they were sealed."""
    wanted = state.upper() if state else None
    with Registry.open(registry) as reg:
        found = list_adapters(reg, request, state=wanted, after=after, limit=limit)
        records = [adapter_json(adapter) for adapter in found]
    rows = [{**r, "requests": ", ".join(r["requests"])} for r in records]
    columns = ["digest", "kind", "state", "requests", "quantization", "sealed_at"]
    emit_table(rows if format is Format.text else records, columns, format, "No adapters.")


@app.command("show", epilog="Example: efface adapter show 1f0c8a")
def show(
    reference: AdapterArgument,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Show one adapter: what it forgets, its base, how it was made, and the digests of its files."""
    with Registry.open(registry) as reg:
        record = adapter_json(get_adapter(reg, reference))
    emit(record, format, "\n".join(_lines(record)))


app.command("compact", epilog=adapter_compact.EXAMPLE)(adapter_compact.compact)
app.command("export", epilog=adapter_transfer.EXPORT_EXAMPLE)(adapter_transfer.export)
app.command("import", epilog=adapter_transfer.IMPORT_EXAMPLE)(adapter_transfer.import_)
app.command("overlap", epilog=adapter_overlap.EXAMPLE)(adapter_overlap.overlap)
app.command("reject", epilog=adapter_end.REJECT_EXAMPLE)(adapter_end.reject)
app.command("retire", epilog=adapter_end.RETIRE_EXAMPLE)(adapter_end.retire)
app.command("purge", epilog=adapter_end.PURGE_EXAMPLE)(adapter_end.purge)


def _lines(record: AdapterRecord) -> list[str]:
    """One value a line; lists and mappings one line for each of theirs."""
    lines: list[str] = []
    for key, value in record.items():
        if isinstance(value, dict):
            lines += [f"{key:14} {name}: {inner}" for name, inner in value.items()]
        elif isinstance(value, list):
            lines += [f"{key:14} {inner}" for inner in value]
        else:
            lines.append(f"{key:14} {'–' if value is None else value}")
    return lines
