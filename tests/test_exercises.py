"""Every check accepts the right function, and rejects the empty stub and the mistakes that people make."""

import pytest
import torch

from gate_lessons import losses
from gate_lessons.exercises import EXERCISES, check, solution

MISTAKES = [(name, cause) for name, exercise in EXERCISES.items() for cause in exercise.mistakes]


def stub(*arguments):
    raise NotImplementedError


@pytest.mark.parametrize("name", EXERCISES)
def test_the_right_function_passes(name):
    verdict = check(name, EXERCISES[name].solution)
    assert verdict
    assert verdict.sentence.startswith("Correct")


@pytest.mark.parametrize("name", EXERCISES)
def test_the_empty_stub_is_told_apart_from_a_wrong_answer(name):
    verdict = check(name, stub)
    assert not verdict
    assert repr(verdict).startswith("Not written yet")


@pytest.mark.parametrize(("name", "cause"), MISTAKES)
def test_each_mistake_is_rejected_and_named(name, cause):
    verdict = check(name, EXERCISES[name].mistakes[cause])
    assert not verdict
    assert cause in verdict.sentence


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_at_least_two_mistakes(name):
    assert len(EXERCISES[name].mistakes) >= 2


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize(
    "nonsense", [None, "نص", 3, object, [], torch.zeros(7, 7)], ids=lambda value: type(value).__name__
)
def test_nonsense_gets_a_sentence_and_never_raises(name, nonsense):
    verdict = check(name, lambda *arguments: nonsense)
    assert not verdict
    assert verdict.sentence


def test_an_error_inside_the_answer_is_shown_with_its_input():
    verdict = check("cosine", lambda a, b: a @ b)
    assert not verdict
    assert "RuntimeError on input 1 of 3" in verdict.sentence


def test_a_missing_return_is_guessed():
    assert "is there a `return`?" in check("triplet", lambda *arguments: None).sentence


def test_a_loop_written_from_the_formula_passes():
    def info_nce(anchor, positive, negatives, temperature):
        total = 0.0
        for a, p, ns in zip(anchor, positive, negatives, strict=True):
            cosine = torch.nn.functional.cosine_similarity
            scores = torch.stack([cosine(a, x, dim=0) for x in (p, *ns)]) / temperature
            total = total - torch.log_softmax(scores, dim=0)[0]
        return total / len(anchor)

    assert check("info_nce", info_nce)


def test_an_unknown_exercise_lists_those_there_are():
    with pytest.raises(ValueError, match="no exercise 'infonce'; the exercises are cosine, nearest"):
        check("infonce", stub)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_shown_on_request(name, capsys):
    solution(name)
    assert "def " in capsys.readouterr().out


def test_the_matryoshka_solution_is_what_the_library_does():
    for *arguments, temperature, dims in EXERCISES["matryoshka"].inputs:
        expected = losses.matryoshka(losses.info_nce, dims)(*arguments, temperature=temperature)
        torch.testing.assert_close(EXERCISES["matryoshka"].solution(*arguments, temperature, dims), expected)
