"""A recipe: everything that decides a training run, beside the data."""

from dataclasses import dataclass, fields
from typing import Any, get_args

from gate_lessons import miner
from gate_lessons.curriculum import CURRICULA
from gate_lessons.objectives import TripletObjective

GIVEN = "given"
# A table of triplets does not say in which dialect its sentences are.
STRATEGIES = (GIVEN, *(name for name, strategy in miner.STRATEGIES.items() if "variety" not in strategy.needs))


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run, beside the data.

    The defaults were chosen on the corpus's dev split, to tell paraphrases from contradictions. They pay for that with
    what serves text that nobody wrote for the course; a higher temperature and a far lower rate keep it (lesson 03).

    Attributes:
        loss, temperature, final_temperature, learnable_temperature, margin, memory: see `objectives.TripletObjective`.
        strategy: where negatives come from: `given` takes those of the triplets, the others mine them, see `miner`; a
            mixture is written `hard:0.7+random:0.3`, one whose weights change over training `random:1..0+hard:0..1`
            (at each mining they are those of the share of steps that is done).
        negatives: mined negatives for each anchor.
        remine_every: steps between two minings with the current encoder (Xiong et al. 2021, ANCE); an epoch's steps
            when not given.
        curriculum: a name from `curriculum.CURRICULA`.
        epochs: the training takes as many steps as this many passes over all triplets have, whatever the curriculum
            selects.
        batch_size: triplets in a batch; with several processes, of each of them.
        accumulate: batches whose gradients make one step; their rows are no negatives of each other.
        chunk: texts that are embedded at a time where a batch is too large for the memory (GradCache); 0 for all.
        no_duplicates: no two triplets of one group in a batch; otherwise their false negatives are masked.
        augment: share of the places where a text is varied, see `text.vary`, anew at every step; 0 for none.
        learning_rate: of AdamW at its highest, after the warm-up; the encoder's own `learning_rate` when not given.
        warmup: share of all steps in which the rate rises; then it falls linearly to 0.
        clip: largest norm of a gradient.
        seed: of batches, mining, augmentation and dropout; the encoder's own start has a seed of its own.
    """

    loss: str = "multiple_negatives_ranking"
    temperature: float = 0.05
    final_temperature: float | None = None
    learnable_temperature: bool = False
    margin: float = 0.3
    memory: int = 0
    strategy: str = "hard"
    negatives: int = 1
    remine_every: int | None = None
    curriculum: str = "none"
    epochs: int = 5
    batch_size: int = 64
    accumulate: int = 1
    chunk: int = 0
    no_duplicates: bool = False
    augment: float = 0.0
    learning_rate: float | None = None
    warmup: float = 0.1
    clip: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        names = [part.partition(":")[0] for part in self.strategy.split("+")]
        for kind, chosen, choices in (("strategy", names, STRATEGIES), ("curriculum", [self.curriculum], CURRICULA)):
            for name in chosen:
                if name not in choices:
                    raise ValueError(f"unknown {kind} {name!r}; choose from {', '.join(choices)}")
        if self.strategy != GIVEN:
            miner.parse(self.strategy, 0.0)
        for name in ("negatives", "epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("memory", "chunk"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if self.remine_every is not None and self.remine_every < 1:
            raise ValueError(f"remine_every must be at least 1, not {self.remine_every}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")
        for name in ("warmup", "augment"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")
        if not self.clip > 0:
            raise ValueError(f"clip must be above 0, not {self.clip}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, not {self.seed}")
        self.objective()  # checks loss, temperatures, margin and memory

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Name → default of every field; 0 in its type for those that have none."""
        return {
            field.name: get_args(field.type)[0]() if field.default is None else field.default for field in fields(cls)
        }

    def objective(self) -> TripletObjective:
        """The loss that this recipe minimises."""
        return TripletObjective(
            self.loss,
            self.temperature,
            self.margin,
            self.learnable_temperature,
            final_temperature=self.final_temperature,
            memory=self.memory,
        )
