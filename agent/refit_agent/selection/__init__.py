"""Which engine of a model to use on a machine, and why none of the others: pure functions.

select ── choose ──► fit (does this engine run there?) ──► versions (which runtime loads it?)
              └────► records (what the caller gets)
"""

from __future__ import annotations

from refit_agent.selection.choose import select
from refit_agent.selection.records import Candidate, Refusal, Selection, Tier, no_match_detail

__all__ = ["Candidate", "Refusal", "Selection", "Tier", "no_match_detail", "select"]
