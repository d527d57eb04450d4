"""What must hold beyond the schema: one small function per rule, each with a reason.

To add a rule, write a function in the module of its noun and a file `tests/kb/bad/<rule id>.yaml`
that breaks it.
"""

from kb.rules import (  # noqa: F401  (each registers its rules)
    arithmetic,
    identifiers,
    links,
    prose,
    publication,
    relations,
    results,
    tags,
)
from kb.rules.registry import RULES, Finding, Rule, check, rule

__all__ = ["RULES", "Finding", "Rule", "check", "rule"]
