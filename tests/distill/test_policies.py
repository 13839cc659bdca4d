"""Teacher policies: whom each chooses, why, and what is refused."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import DistillError, ScoreOrder, TeacherCandidate, check_policy, choose, policies

FULL = TeacherCandidate("largest after full", "full", 0.6120)
KERNEL = TeacherCandidate("largest after kernel", "kernel", 0.6310)
DEPTH = TeacherCandidate("largest after depth_1", "depth_1", 0.6050)


def test_each_policy_chooses_its_own() -> None:
    candidates = (FULL, KERNEL, DEPTH)
    assert policies() == ("fixed", "progressive", "best")
    assert [choose(policy, candidates).candidate for policy in policies()] == [FULL, DEPTH, KERNEL]


@pytest.mark.parametrize("policy", ["fixed", "progressive", "best"])
def test_a_single_candidate_teaches_under_every_policy(policy: str) -> None:
    choice = choose(policy, [FULL])
    assert choice.candidate == FULL
    assert "1 candidate" in choice.reason
    assert "1 candidates" not in choice.reason


def test_best_takes_the_newest_of_equals() -> None:
    equal = TeacherCandidate("largest after expand_1", "expand_1", KERNEL.score)
    choice = choose("best", [FULL, KERNEL, equal, DEPTH])
    assert choice.candidate == equal
    assert "the newest of the 2 best" in choice.reason


def test_best_is_the_same_network_in_whatever_order_when_none_are_equal() -> None:
    for candidates in itertools.permutations((FULL, KERNEL, DEPTH)):
        assert choose("best", candidates).candidate == KERNEL


@given(accuracies=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1), min_size=1, max_size=8))
def test_best_against_a_plain_search(accuracies: list[float]) -> None:
    candidates = [TeacherCandidate(f"network {i}", f"phase_{i}", accuracy) for i, accuracy in enumerate(accuracies)]
    best = candidates[0]
    for candidate in candidates:
        if candidate.score >= best.score:
            best = candidate
    assert choose("best", candidates).candidate is best
    assert choose("fixed", candidates).candidate is candidates[0]
    assert choose("progressive", candidates).candidate is candidates[-1]


def test_lower_scores_are_better_where_the_order_says_so() -> None:
    order = ScoreOrder(higher_is_better=False)
    assert choose("best", [FULL, KERNEL, DEPTH], order).candidate == DEPTH
    equal = TeacherCandidate("largest after expand_1", "expand_1", DEPTH.score)
    assert choose("best", [DEPTH, FULL, equal, KERNEL], order).candidate == equal


def test_the_reason_is_a_sentence_that_names_policy_network_phase_and_scores() -> None:
    order = ScoreOrder(show=lambda score: f"{100 * score:.2f} %")
    assert choose("best", [FULL, KERNEL, DEPTH], order).reason == (
        "best: largest after kernel, left by phase kernel with 63.10 % on validation, is the best of "
        "3 candidates (oldest first: 61.20 %, 63.10 %, 60.50 %)."
    )
    assert choose("fixed", [FULL, KERNEL], order).reason == (
        "fixed: largest after full, left by phase full with 61.20 % on validation, is the first of 2 candidates "
        "and stays the teacher."
    )
    assert choose("progressive", [FULL, KERNEL], order).reason == (
        "progressive: largest after kernel, left by phase kernel with 63.10 % on validation, is the newest of "
        "2 candidates."
    )
    assert "with 0.612 on validation" in choose("fixed", [FULL]).reason


@pytest.mark.parametrize("policy", ["fixed", "progressive", "best"])
def test_no_candidates_are_refused_with_the_next_step(policy: str) -> None:
    with pytest.raises(DistillError, match=r"there is none; run the full phase first, or use none or timm:NAME"):
        choose(policy, [])


@pytest.mark.parametrize("policy", ["progresive", "", "Fixed", "timm", "resnet18", None, 3, ["best"]])
def test_an_unknown_policy_is_refused_with_all_that_there_are(policy: str) -> None:
    listing = r"use one of fixed, progressive, best, none or timm:NAME"
    with pytest.raises(DistillError, match=listing):
        check_policy(policy)
    with pytest.raises(DistillError, match=listing):
        choose(policy, [FULL])


def test_a_near_policy_is_suggested() -> None:
    with pytest.raises(DistillError, match=r"'progresive'.*did you mean progressive\?"):
        check_policy("progresive")


@pytest.mark.parametrize("policy", ["none", "timm:resnet18"])
def test_policies_without_candidates_are_valid_but_do_not_choose(policy: str) -> None:
    check_policy(policy)
    with pytest.raises(DistillError, match=r"does not choose among earlier networks; use one of fixed"):
        choose(policy, [FULL])


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_cannot_be_compared_is_refused(score: float) -> None:
    with pytest.raises(DistillError, match=r"score \(.*candidate largest must be finite"):
        TeacherCandidate("largest", "full", score)
