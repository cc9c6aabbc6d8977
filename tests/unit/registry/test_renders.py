"""How compositions are rendered: one spelling each, part of the digest, and an error that is never left out."""

from decimal import Decimal
from pathlib import Path

import pytest
from registry_kit import answered, audited, lora, seal, stack

from efface.registry import (
    Composition,
    GateFailed,
    InvalidInput,
    Registry,
    Release,
    activate_release,
    compose,
    create_release,
    parse_render,
    without,
)


@pytest.mark.parametrize(
    ("text", "rank", "error", "density"),
    [
        ("cat", None, None, None),
        ("live", None, None, None),
        ("svd:64", 64, None, None),
        ("error:0.05", None, Decimal("0.05"), None),
        ("ties:0.2:8", 8, None, Decimal("0.2")),
        ("dare:1:16", 16, None, Decimal(1)),
        ("knots:0.001:9999", 9999, None, Decimal("0.001")),
    ],
)
def test_a_render_is_read(
    text: str, rank: int | None, error: Decimal | None, density: Decimal | None
) -> None:
    found = parse_render(text)
    assert (found.rank, found.error, found.density) == (rank, error, density)
    assert found.method == text.partition(":")[0]
    assert found.exact == (text in ("cat", "live"))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "CAT",
            "cat ",
            "sum",
            "cat:1",
            "live:1",
            "svd",
            "svd:",
            "svd:0",
            "svd:08",
            "svd:+8",
            "svd:8\n",
            "svd:٨",
        ),
        *(
            "svd:10000",
            "error:1",
            "error:0",
            "error:0.10",
            "error:.1",
            "error:1e-3",
            "error:-0.1",
            "error:nan",
        ),
        *("ties:0.2", "ties:8", "ties:0:8", "ties:2:8", "ties:0.2:0", "ties:0.20:8", "knots:0.2:8:1"),
        *("", 8, None, b"cat"),
    ],
)
def test_every_other_spelling_is_refused(text) -> None:
    with pytest.raises(InvalidInput, match="render to be one of cat, live, svd:R"):
        parse_render(text)


@pytest.fixture
def both(reg: Registry, tmp_path: Path) -> Composition:
    return stack([answered(reg, tmp_path, seed)[1] for seed in (1, 2)])


def as_rendered(composition: Composition, render: str) -> Composition:
    return compose(composition.base, composition.quantization, composition.parts, render)


def test_the_render_is_part_of_the_digest_and_survives_a_removal(both: Composition) -> None:
    renders = ["cat", "live", "svd:8", "svd:16", "error:0.1", "ties:0.2:8"]
    made = [as_rendered(both, render) for render in renders]
    assert len({one.digest for one in made}) == len(renders)
    assert [without(one, both.adapters[:1]).render for one in made] == renders
    bare = [without(one, both.adapters) for one in made]
    assert {one.digest for one in bare} == {compose(both.base, both.quantization, ()).digest}


def create(reg: Registry, composition: Composition, rendered: str | None) -> Release:
    return create_release(reg, "prod", composition, rendered=rendered, reason="r", actor="a")


def test_an_approximate_release_has_an_adapter_that_says_how_approximate(
    reg: Registry, tmp_path: Path, both: Composition
) -> None:
    svd = as_rendered(both, "svd:2")
    ids = ["req-000001", "req-000002"]

    def rendering(seed: int, of: Composition, bound: str | None) -> str:
        folder = lora(tmp_path / f"rendered-{seed}", seed)
        facts = {"composition": of.digest}
        return seal(reg, folder, ids, kind="rendered", facts=facts, error_bound=bound).digest

    with pytest.raises(InvalidInput, match="digest of its rendered adapter"):
        create(reg, svd, None)
    with pytest.raises(InvalidInput, match="bound of its error"):
        create(reg, svd, rendering(10, svd, None))
    with pytest.raises(InvalidInput, match="bound of its error"):
        create(reg, both, rendering(11, both, "0.1"))
    with pytest.raises(InvalidInput, match="a rendering of"):
        create(reg, svd, rendering(12, both, "0.1"))
    live = as_rendered(both, "live")
    with pytest.raises(InvalidInput, match="no rendered adapter for a live composition"):
        create(reg, live, rendering(13, live, None))
    assert create(reg, live, None).rendered is None
    assert create(reg, svd, rendering(14, svd, "0.25")).state == "CANDIDATE"


def test_the_audit_of_the_exact_stack_does_not_carry_an_approximation(
    reg: Registry, tmp_path: Path, both: Composition
) -> None:
    svd = as_rendered(both, "svd:2")
    made = seal(
        reg,
        lora(tmp_path / "rendered", 10),
        ["req-000001", "req-000002"],
        kind="rendered",
        facts={"composition": svd.digest},
        error_bound="0.25",
    )
    version = create(reg, svd, made.digest).version
    with pytest.raises(GateFailed, match="an audit of composition"):
        activate_release(reg, "prod", version, audit=audited(reg, both).digest, approved_by="b")
    audit = audited(reg, svd).digest
    assert activate_release(reg, "prod", version, audit=audit, approved_by="b").state == "ACTIVE"
