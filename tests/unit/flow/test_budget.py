"""What all flows may hold together."""

from trio_passt.flow.budget import Budget


def test_all_or_nothing_and_back_again() -> None:
    budget = Budget(10)
    assert budget.take(6)
    assert not budget.take(5)
    assert budget.take(4)
    assert not budget.take(1)
    budget.give_back(6)
    assert budget.left_bytes == 6
    assert budget.take(6)
