"""Attacks: who could get back what was forgotten, and with how much trouble.

Read `table.py` (all of them by name), then `target.py` (what is attacked) and the family that you came for:
`relearn.py`, `precision.py`, `prompts.py`, `sampling.py`, `adapter.py`, `locate.py`. Each attack gives one
`AttackResult` a request. docs/audits.md says what they assume of an attacker, with the papers.
"""

from .sampling import leak_at_k
from .settings import Settings
from .table import ATTACKS, Attack, lacking, run_attack, settings_of
from .target import Target, aim

__all__ = [
    "ATTACKS",
    "Attack",
    "Settings",
    "Target",
    "aim",
    "lacking",
    "leak_at_k",
    "run_attack",
    "settings_of",
]
