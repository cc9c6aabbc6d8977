"""`efface adapter export | import`: adapters as plain PEFT folders, OCI image layouts and Hub repositories."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from ..registry import InvalidInput, Registry, get_adapter, get_request, seal_adapter
from ..registry.requests import check_accepted
from .card_facts import card_facts
from .options import (
    DEFAULT_ACTOR,
    DEFAULT_REGISTRY,
    ActorOption,
    AdapterArgument,
    Format,
    FormatOption,
    ModelOption,
    RegistryOption,
)
from .output import emit
from .record_acts import ExportRecord
from .records import adapter_json
from .targets import HELP, Target, packed, parse_target, send

EXPORT_EXAMPLE = "Example: efface adapter export 1f0c8a ./stack --license apache-2.0"
IMPORT_EXAMPLE = "Example: efface adapter import hub://org/lora@main --request req-000001 --model ./base"
SingleOption = Annotated[
    bool,
    typer.Option("--single-request", help="Let out an adapter whose difference points at one request."),
]
LicenseOption = Annotated[
    str | None, typer.Option("--license", help="For the model card; none is written by default.")
]
BaseNameOption = Annotated[
    str | None, typer.Option("--base-name", help="The base's id on the Hub, for the model card: org/name.")
]
PublicOption = Annotated[
    bool, typer.Option("--public", help="On the Hub: a public repository; private by default.")
]
SignOption = Annotated[
    Path | None,
    typer.Option(
        "--model-signing-key",
        metavar="PEM",
        help="Sign the folder in the format of OpenSSF Model Signing with this elliptic-curve key (an extra). "
        "EFFACE_MODEL_SIGNING_PASSPHRASE has its passphrase.",
    ),
]


def export(
    reference: AdapterArgument,
    target: Annotated[str, typer.Argument(metavar="TARGET", help=HELP)],
    single_request: SingleOption = False,
    license: LicenseOption = None,
    base_name: BaseNameOption = None,
    public: PublicOption = False,
    model_signing_key: SignOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    format: FormatOption = Format.text,
) -> None:
    """Write an adapter as a PEFT folder with a model card, as an OCI image layout, or to the Hub.

    The card has the newest audit's verdict and figures, no text of any row. An adapter of one request goes out only
    with --single-request: where it differs from the base points at what that person asked to have forgotten.
    """
    where = parse_target(target)
    with Registry.open(registry) as reg:
        adapter = get_adapter(reg, reference)
        facts = card_facts(reg, adapter, base_name=base_name, license=license)
        made = packed(reg, adapter)
    address = send(
        made, where, facts, single_request=single_request, public=public, signing_key=model_signing_key
    )
    record: ExportRecord = {
        "adapter": adapter.digest,
        "kind": where.kind,
        "target": target,
        "address": address,
        "audit": facts.audit.digest if facts.audit else None,
    }
    emit(record, format, f"{adapter.digest}\n{address}")


def import_(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=HELP)],
    request: Annotated[list[str], typer.Option("--request", help="What it forgets. Repeatable.")],
    model: ModelOption,
    quantization: Annotated[
        str, typer.Option("--quantization", help="Of the base it is served on: nf4, int8, bf16, …")
    ] = "nf4",
    registry: RegistryOption = DEFAULT_REGISTRY,
    actor: ActorOption = DEFAULT_ACTOR,
    format: FormatOption = Format.text,
) -> None:
    """Seal an adapter that was made elsewhere, for requests of this registry. Nothing is written on any error.

    Taken is a plain LoRA in safetensors whose every matrix fits the base. How it was trained is not known here, and
    not claimed: audit it before it is released.
    """
    where = parse_target(source)
    with Registry.open(registry) as reg, TemporaryDirectory(prefix="efface-import-") as scratch:
        for request_id in request:
            check_accepted(get_request(reg, request_id))
        folder = Path(scratch) / "adapter"
        origin, stated = _fetch(where, folder)
        base = checked_base(folder, model, quantization, stated)
        adapter = seal_adapter(
            reg,
            folder,
            kind="trained",
            base=base,
            quantization=quantization,
            request_ids=request,
            facts={"imported_from": origin, "objective": "unknown"},
            actor=actor,
        )
    emit(adapter_json(adapter), format, adapter.digest)


def _fetch(source: Target, folder: Path) -> tuple[str, str | None]:
    """Copy the adapter to `folder`, checked; says where it is from (no path of this machine) and its stated base."""
    from ..registry import oci, peft_folder, plain_files

    if source.hub is not None:
        from ..registry import hub

        pulled = hub.pull(source.hub.repo_id, folder, revision=source.hub.revision)
        return f"hub://{pulled.repo_id}@{pulled.commit}", None
    if source.kind == "folder":
        plain_files.write_folder(folder, peft_folder.read(source.folder))
        return "folder", None
    made = oci.read_layout(source.folder)
    if made.record["trained_on"] is not None:
        then = "Import what it stands on into a registry with its history, or train it on the bare base."
        raise InvalidInput("an adapter trained on the bare base", "one trained on other adapters", then)
    plain_files.write_folder(folder, made.files)
    return f"oci:{made.digest}", made.record["base"]


def checked_base(folder: Path, model: str, quantization: str, stated: str | None) -> str:
    """The digest of the base, whose every shape the adapter fits. Raises InvalidInput."""
    # Torch comes with these: after everything that can fail without them.
    from ..adapters import QUANTIZATIONS
    from ..adapters.model import fingerprint, resolve
    from ..registry import base_shapes, peft_folder

    if quantization not in QUANTIZATIONS:
        raise InvalidInput(f"--quantization of {', '.join(QUANTIZATIONS)}", "another word", "Choose one.")
    path = resolve(model)
    files = peft_folder.read(folder)
    peft_folder.check_against(files, base_shapes.read_shapes(path))
    digest = fingerprint(path).digest
    named = peft_folder.check_config(files[peft_folder.CONFIG]).base
    stated = stated or (named if named is not None and named.startswith("sha256:") else None)
    if stated not in (None, digest):
        raise InvalidInput(f"the base {stated}, which it names", digest, "Pass that model.")
    return digest
