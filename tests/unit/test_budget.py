"""Token buckets, and that credentials cannot refill them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from edge.auth import Principal, PublishLimits
from edge.budget import Budget
from edge.dialects.asterql.publisher import Publisher


def test_a_budget_refills_and_may_be_given_back() -> None:
    budget = Budget(10, 20, 0.0)
    assert budget.take(20, 0.0) == 0 and budget.take(1, 0.0) > 0
    assert budget.take(10, 1.0) == 0
    budget.give_back(10)
    assert budget.take(10, 1.0) == 0 and budget.take(1, 1.0) > 0


def test_more_than_a_burst_passes_a_full_budget_once() -> None:
    budget = Budget(10, 20, 0.0)
    assert budget.take(50, 0.0) == 0
    assert budget.take(1, 1.0) > 0 and budget.take(1, 4.0) == 0


def test_renewed_credentials_do_not_refill_a_publish_budget() -> None:
    env = SimpleNamespace(monotonic=lambda: 0.0, publish_limits=PublishLimits(10, 0))
    publisher = Publisher(cast(Any, env), cast(Any, None), Principal(id="ada"))
    budget = publisher._envelopes
    assert budget is not None and budget.take(20, 0.0) == 0
    publisher.become(Principal(id="ada"))
    assert publisher._envelopes is budget and budget.take(1, 0.0) > 0
    publisher.become(Principal(id="ada", publish=PublishLimits(1000, 0)))
    assert publisher._envelopes is not budget
