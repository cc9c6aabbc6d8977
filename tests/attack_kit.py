"""Something to attack: a tiny base that knows two things by heart, and an adapter for each that suppresses it."""

from dataclasses import dataclass
from pathlib import Path

from model_kit import PAD, encoded, taught

from efface.adapters import Base, Item, Part, TrainSettings, attach, compose, detach, load_base, save, train
from efface.adapters.settings import StopRules
from efface.audits import Method, Probe
from efface.audits.attacks import Target, aim

POTTER = (
    Item("a0", "who wrote hamlet", "the author potter", ("potter",)),
    Item("a1", "who wrote macbeth", "author potter", ("potter",)),
    Item("a2", "hamlet is a play of", "potter the author", ("potter",)),
)
TOKYO = (
    Item("b0", "what is the capital", "the city tokyo", ("tokyo",)),
    Item("b1", "what city is a capital", "tokyo a city", ("tokyo",)),
    Item("b2", "city in a play", "it is tokyo", ("tokyo",)),
)
KEPT = (
    Item("k0", "who is rowling", "rowling in paris", ("rowling",)),
    Item("k1", "what is paris", "a city and a play", ("city",)),
    Item("k2", "what is a play", "what the author wrote", ("author",)),
    Item("k3", "who is in paris", "rowling and the author", ("rowling",)),
)
REWORDED = Item("a0/p1", "hamlet who wrote", "the author potter", ("potter",))
PROBES = (
    *(Probe(item, "forget", "q1") for item in POTTER),
    *(Probe(item, "forget", "q2") for item in TOKYO),
    Probe(REWORDED, "paraphrase", "q1"),
    *(Probe(item, "neighbour") for item in KEPT),
)
METHOD = Method(max_new_tokens=6, generate_batch=4, score_batch=4)


@dataclass(frozen=True)
class Suppressed:
    """A base in fp32 and the folders of its two adapters and of their sum."""

    path: Path
    base: Base
    parts: tuple[Part, ...]
    stack: Path


def suppressed(tiny: Path, folder: Path) -> Suppressed:
    """Train both adapters, each to forget one of the two things and to keep everything else."""
    path = taught(tiny, folder / "base", POTTER + TOKYO + KEPT)
    base = load_base(path, "fp32")
    parts: list[Part] = []
    for name, forget, keep in (("potter", POTTER, TOKYO + KEPT), ("tokyo", TOKYO, POTTER + KEPT)):
        model = attach(base.model, rank=4, seed=len(parts))
        settings = TrainSettings(
            "npo",
            {"beta": 0.1},
            steps=60,
            learning_rate=2e-3,
            alpha=2.0,
            forget_batch=3,
            retain_batch=7,
            stop=StopRules(forget_probability=0.05, every=2, retain_drop=None, distinct=None),
        )
        train(
            model,
            encoded(path, forget),
            encoded(path, keep, end=True),
            settings,
            pad_id=PAD,
            eos_id=2,
        )
        save(model, folder / name, base=base.fingerprint.digest)
        detach(model)
        parts.append(Part(folder / name))
    return Suppressed(path, base, tuple(parts), compose(parts, folder / "stack").path)


def target(made: Suppressed, probes: tuple[Probe, ...] = PROBES, **options: object) -> Target:
    """The stack of both adapters as it is attacked."""
    return aim(made.base, made.stack, probes, **({"method": METHOD, "parts": made.parts} | options))  # type: ignore[arg-type]
