import dataclasses

import pytest

from gate_lessons import miner
from gate_lessons.curriculum import CURRICULA
from gate_lessons.objectives import LOSSES, LearnableTemperature
from gate_lessons.recipe import GIVEN, STRATEGIES, Recipe


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"strategy": "easy"},
            f"unknown strategy 'easy'; choose from {', '.join(STRATEGIES)}",
        ),
        ({"strategy": "hard+dialect_twin"}, "unknown strategy 'dialect_twin'; choose from given, random"),
        ({"strategy": "given:0.5+hard:0.5"}, "unknown strategy 'given'; choose from random"),
        ({"strategy": "hard:0.5+random:0"}, "the weight of strategy 'random' must be a number above 0"),
        ({"strategy": "hard:0..1"}, "at the beginning and at the end some weight must be above 0"),
        ({"strategy": "hard:1..x+random"}, "the weight of strategy 'hard' must be a number above 0, not '1..x'"),
        ({"curriculum": "staged"}, f"unknown curriculum 'staged'; choose from {', '.join(CURRICULA)}"),
        ({"negatives": 0}, "negatives must be at least 1, not 0"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, not -1"),
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"memory": -1}, "memory must be 0 or more, not -1"),
        ({"chunk": -1}, "chunk must be 0 or more, not -1"),
        ({"remine_every": 0}, "remine_every must be at least 1, not 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0, not nan"),
        ({"warmup": -0.1}, "warmup must lie between 0 and 1, not -0.1"),
        ({"warmup": 1.5}, "warmup must lie between 0 and 1, not 1.5"),
        ({"augment": -0.1}, "augment must lie between 0 and 1, not -0.1"),
        ({"augment": 1.1}, "augment must lie between 0 and 1, not 1.1"),
        ({"augment": float("nan")}, "augment must lie between 0 and 1, not nan"),
        ({"clip": 0.0}, "clip must be above 0, not 0.0"),
        ({"clip": -1.0}, "clip must be above 0, not -1.0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"temperature": 0.0}, "temperature must be above 0, not 0.0"),
        ({"final_temperature": -0.1}, "temperature must be above 0, not -0.1"),
        ({"margin": -0.1}, "margin must be 0 or more, not -0.1"),
        ({"learnable_temperature": True, "temperature": 2.0}, "need 0 < low < initial < high"),
        ({"learnable_temperature": True, "final_temperature": 0.1}, "a temperature is learned or scheduled, not both"),
        ({"memory": 8, "loss": "triplet"}, "a memory works with multiple_negatives_ranking"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(options, match):
    with pytest.raises(ValueError, match=match):
        Recipe(**options)


def test_a_final_temperature_of_0_is_refused():
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        Recipe(final_temperature=0.0)


@pytest.mark.parametrize("options", [{"warmup": 0}, {"warmup": 1}, {"augment": 1}, {"margin": 0}, {"seed": 0}])
def test_a_recipe_takes_the_ends_of_what_can_be(options):
    Recipe(**options)


@pytest.mark.parametrize("name", ["loss", "strategy", "curriculum"])
def test_a_recipe_takes_every_name(name):
    assert (GIVEN, *(name for name in miner.STRATEGIES if name != "dialect_twin")) == STRATEGIES
    for value in {"loss": LOSSES, "strategy": STRATEGIES, "curriculum": CURRICULA}[name]:
        assert getattr(Recipe(**{name: value}), name) == value


def test_a_recipe_takes_weights_that_change_over_training():
    assert Recipe(strategy="random:1..0+hard:0..1").strategy == "random:1..0+hard:0..1"


def test_a_recipe_makes_its_objective():
    objective = Recipe(loss="triplet", margin=0.7).objective()
    assert (objective.loss, objective.margin, objective.memory) == ("triplet", 0.7, None)
    assert Recipe(temperature=0.3).objective().temperature() == 0.3
    learned = Recipe(temperature=0.3, learnable_temperature=True).objective().temperature
    assert isinstance(learned, LearnableTemperature) and learned().item() == pytest.approx(0.3)
    scheduled = Recipe(temperature=0.3, final_temperature=0.1).objective().temperature
    assert (scheduled.first, scheduled.last) == (0.3, 0.1)
    assert Recipe(memory=12).objective().memory.size == 12


def test_a_recipe_makes_a_new_objective_each_time():
    recipe = Recipe(learnable_temperature=True)
    assert recipe.objective() is not recipe.objective()


def test_a_recipe_cannot_be_changed_behind_its_checks():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().epochs = 0
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        dataclasses.replace(Recipe(), epochs=0)
