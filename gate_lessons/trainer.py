"""The training loop: an encoder, a loss, a miner and a curriculum in, a trained encoder and its history out."""

import dataclasses
import json
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from gate_lessons.checkpoint import CheckpointError, Checkpoints
from gate_lessons.curriculum import CURRICULA, Curriculum, Stage
from gate_lessons.devices import launch
from gate_lessons.diagnostics import Watch, cause_of_failure, collapse_signs
from gate_lessons.encoder import Encoder, to_device
from gate_lessons.material import Material, Negatives
from gate_lessons.objectives import ROW_LOSSES, ScheduledTemperature, TripletObjective, cached_backward
from gate_lessons.recipe import Recipe
from gate_lessons.sampler import Batches

BLOCK_NUMBERS = 2**21  # similarities at a time where a loss is computed for some anchors at a time: 8 MB in float32
ASKED = 10  # how often in an epoch a curriculum is asked


def train(
    encoder: Encoder,
    triplets: pd.DataFrame,
    recipe: Recipe,
    *,
    objective: TripletObjective | None = None,
    curriculum: Curriculum | None = None,
    guide: Encoder | None = None,
    evaluate: Callable[[Encoder], dict[str, float]] | None = None,
    checkpoints: str | Path | None = None,
    save_every: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: str = "32-true",
    progress: bool = False,
) -> pd.DataFrame:
    """Train `encoder` in place.

    Started by `torchrun` it trains in all of its processes: each embeds its part of a batch, and all of them take the
    loss of the whole batch, whose embeddings they gather with their gradients.

    Args:
        encoder: any encoder; its weights change.
        triplets: columns anchor, positive, negative, group, and topic for the strategy `category`.
        recipe: see `Recipe`.
        objective: another objective than the recipe's.
        curriculum: another curriculum than the recipe's name stands for, such as `ByThreshold((0.9, 1.0, 1.1))`.
        guide: whose similarities `guided_ranking` trusts; the encoder as it is before training when not given.
        evaluate: called after each epoch; its numbers stand in the history's row.
        checkpoints: a folder to write checkpoints into after each epoch. Where it holds those of the same run, the
            training goes on from the last; on one CPU it ends with the same bits as an uninterrupted one.
        save_every: also write one after every so many steps.
        device: `cuda` where it must be a GPU, `auto` where one is welcome.
        precision: Lightning Fabric's name, such as `bf16-mixed`.
        progress: show a bar.

    Returns:
        The history, one row for each epoch: epoch; stage, triplets and difficulty, as the curriculum last chose;
        steps; shortfall (share of mined negatives that the strategy could not give, so that random ones stand in);
        what `diagnostics.Watch` saw; learning_rate, temperature; and what `evaluate` gave. `history.attrs["warnings"]`
        holds a sentence for each sign of collapse, which are also given as `CollapseWarning`s.

    Raises:
        ValueError: CUDA asked for where there is none; an empty stage of the curriculum; a metric of `evaluate` that is
            called like a column of the history.
        CheckpointError: the folder holds checkpoints of another run, or only damaged ones.
        FloatingPointError: the loss, its gradient, or a weight before mining is NaN or infinite; the message names the
            step, the batch and the likely cause. The last checkpoint stays.
    """
    from tqdm.auto import tqdm

    fabric = launch(device, precision)
    objective, curriculum = objective or recipe.objective(), curriculum or CURRICULA[recipe.curriculum]()
    material = Material(encoder, triplets, recipe)
    if objective.loss == "guided_ranking":
        material.guide = (guide or encoder).encode(material.texts)
    loop = _Loop(fabric, encoder, material, recipe, objective, curriculum)
    loop.given = {"precision": precision, "guide": material.guide_name(guide)}
    store = Checkpoints(checkpoints) if checkpoints is not None else None
    if store:
        loop.resume(store)
    steps = tqdm(
        total=loop.total,
        initial=loop.step,
        desc="training",
        unit="step",
        disable=not (progress and fabric.is_global_zero),
    )
    while loop.step < loop.total:
        loop.take_step()
        steps.update()
        end_of_epoch = loop.step % loop.epoch_steps == 0
        if end_of_epoch:
            loop.close_epoch(evaluate)
        if store and (end_of_epoch or (save_every and loop.step % save_every == 0)):
            loop.save(store)
    steps.close()
    return loop.finish()


class _Loop:
    """One training run: what it has, what it has seen, and one step after the other."""

    def __init__(
        self,
        fabric,
        encoder: Encoder,
        material: Material,
        recipe: Recipe,
        objective: TripletObjective,
        curriculum: Curriculum,
    ) -> None:
        self.fabric, self.encoder, self.material = fabric, encoder, material
        self.recipe, self.curriculum = recipe, curriculum
        curriculum.begin()
        self.objective = objective.to(fabric.device)
        self.rate = recipe.learning_rate or encoder.learning_rate
        self.model = fabric.setup_module(encoder)
        weights = [*self.model.parameters(), *self.objective.parameters()]
        self.optimizer = fabric.setup_optimizers(torch.optim.AdamW(weights, lr=self.rate, weight_decay=0.0, fused=True))
        self.batch = recipe.batch_size * fabric.world_size
        self.epoch_steps = -(-len(material) // (self.batch * recipe.accumulate))
        self.total = recipe.epochs * self.epoch_steps
        self.generator = torch.Generator().manual_seed(recipe.seed)
        group = material.group if recipe.no_duplicates else None
        self.batches = Batches(self.batch * recipe.accumulate, self.generator, group)
        self.step, self.history, self.watch, self.mined = 0, [], Watch(recipe.margin), None
        self.stage, self.saved, self.warned, self.given = None, None, {}, {}

    def take_step(self) -> None:
        """Mine where it is time, choose a batch, follow its gradient."""
        if self.step % (self.recipe.remine_every or self.epoch_steps) == 0:
            self._mine()
            self.stage = None
        if self.stage is None or self.step % self.epoch_steps % max(1, self.epoch_steps // ASKED) == 0:
            self.stage = self.curriculum(self.mined.difficulty, self.step / self.total)
        rows = self.batches.take(self.stage.indices)
        # Dropout draws from the step's own seed, so that a resumed run needs no memory of earlier draws.
        seed = np.random.SeedSequence([self.recipe.seed, self.step, self.fabric.global_rank])
        self._seed_dropout(int(seed.generate_state(1)[0]))
        share = self._rate_share()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * share
        if isinstance(self.objective.temperature, ScheduledTemperature):
            self.objective.temperature.progress = self.step / max(1, self.total - 1)
        self.encoder.train()
        self.optimizer.zero_grad()  # before, since an interrupted step may have left some
        loss, parts = self._gradient(rows)
        self._check_finite(loss, "loss", loss, parts, rows)
        norm = self._clip()
        self._check_finite(norm, "gradient", loss, parts, rows)
        self.optimizer.step()
        self.step += 1
        last_batch = rows.split(self.batch)[-1]
        violations = self.watch.see(loss, norm, *parts, self.material.group[self._even(last_batch)])
        self.curriculum.observe(violations)

    def close_epoch(self, evaluate: Callable[[Encoder], dict[str, float]] | None) -> None:
        """Write the epoch's row, and warn where it shows a collapse that no earlier one showed."""
        row = {"epoch": len(self.history), "stage": self.stage.name, "triplets": len(self.stage.indices)}
        row |= {"steps": self.epoch_steps, "difficulty": float(self.mined.difficulty[self.stage.indices].mean())}
        row |= {"shortfall": self.mined.shortfall} | self.watch.summary()
        row |= {"learning_rate": self.optimizer.param_groups[0]["lr"], "temperature": self._temperature()}
        held_out = evaluate(self.encoder) if evaluate else {}
        if clash := row.keys() & held_out.keys():
            raise ValueError(f"evaluate gives {min(clash)!r}, which the history already has; name it dev_{min(clash)}")
        self.history.append(row | held_out)
        for warning in collapse_signs(self.history, self.objective.loss, self.recipe.margin):
            if warning.kind not in self.warned:
                self.warned[warning.kind] = str(warning)
                warnings.warn(warning, stacklevel=3)

    def finish(self) -> pd.DataFrame:
        """The history; the encoder goes back to the CPU."""
        # A fused AdamW keeps itself alive in a reference cycle, and with it twice the encoder's size.
        self.optimizer.optimizer.state.clear()
        self.optimizer.zero_grad()
        self.encoder.cpu()
        self.objective.cpu()
        history = pd.DataFrame(self.history)
        history.attrs["warnings"] = list(self.warned.values())
        return history

    def save(self, store: Checkpoints) -> None:
        """Write a checkpoint; with several processes the first one does."""
        self._check_weights()
        tensors = {"generator": self.generator.get_state()}
        tensors |= {"mined.indices": self.mined.indices, "mined.difficulty": self.mined.difficulty}
        tensors |= _prefixed("encoder", self.encoder.state_dict())
        tensors |= _prefixed("objective", self.objective.state_dict())
        tensors |= _prefixed("batches", self.batches.state())
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= _prefixed(f"optimizer.{number}", state)
        state = {
            "run": self._identity(),
            "step": self.step,
            "stage": self.stage.name,
            "curriculum": self.curriculum.state,
        }
        state |= {"shortfall": self.mined.shortfall, "watch": self.watch.rows}
        state |= {"history": self.history, "warned": self.warned}
        if self.material.guide is not None:
            tensors["guide"] = self.material.guide
        if self.fabric.is_global_zero:
            self.saved = store.save(self.step, tensors, state)

    def resume(self, store: Checkpoints) -> None:
        """Go on from the last checkpoint, where there is one of this run."""
        found = self.fabric.broadcast(store.latest() if self.fabric.is_global_zero else None)
        if found is None:
            return
        self.saved, tensors, state = found
        _check_same_run(found.path, state["run"], self._identity())
        self.material.guide = tensors.get("guide")  # the encoder may be another by now than before training
        self.step, self.history, self.warned = state["step"], state["history"], state["warned"]
        self.watch.rows, self.curriculum.state = state["watch"], state["curriculum"]
        self.mined = Negatives(tensors["mined.indices"], tensors["mined.difficulty"], state["shortfall"])
        self.generator.set_state(tensors["generator"])
        self.batches.restore(_without_prefix("batches", tensors))
        self.stage = Stage(state["stage"], self.batches.stage)
        self.encoder.load_state_dict(_without_prefix("encoder", tensors))
        self.objective.load_state_dict(_without_prefix("objective", tensors))
        groups = self.optimizer.state_dict()["param_groups"]
        moments = {n: _without_prefix(f"optimizer.{n}", tensors) for n in groups[0]["params"]}
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to belong to this run."""
        encoder, curriculum = self.encoder, self.curriculum
        shapes = [list(weight.shape) for weight in encoder.parameters()]
        plain = {n: v for n, v in vars(curriculum).items() if isinstance(v, int | float | str | tuple | list)}
        found = {"objective": f"{type(self.objective).__name__}({self.objective.extra_repr()})"}
        found |= {"curriculum object": f"{type(curriculum).__name__}({plain or ''})"}
        found |= {"encoder": f"{type(encoder).__name__}({getattr(encoder, 'config', shapes)})"}
        found |= {"triplets": self.material.fingerprint(), "processes": self.fabric.world_size}
        return dataclasses.asdict(self.recipe) | found | self.given

    def _seed_dropout(self, seed: int) -> None:
        # `torch.manual_seed` also notes it down for every kind of device there might be, which takes milliseconds.
        torch.default_generator.manual_seed(seed)
        if self.fabric.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _check_weights(self) -> None:
        # A sum is NaN or infinite where an entry is, and takes a tenth of the time of a look at each.
        if not all(torch.isfinite(weight.sum()) for weight in self.encoder.parameters()):
            raise FloatingPointError(
                f"the encoder's weights are NaN or infinite before step {self.step}: lower the learning rate "
                f"({self.rate}){self._last_checkpoint()}"
            )

    def _mine(self) -> None:
        self._check_weights()
        progress = self.step / self.total
        share = self.curriculum.mined_share(progress)
        with self.fabric.autocast():
            mined = self.material.mine(self.encoder, self.recipe, share, self.generator, progress)
        self.mined = self.fabric.broadcast(mined)  # processes must not differ in a tie

    def _gradient(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Leave the gradient of these rows' loss at the weights; the loss, and the last batch's embeddings."""
        batches = [self._even(batch) for batch in rows.split(self.batch)]
        count, loss = sum(map(len, batches)), torch.zeros((), device=self.fabric.device)
        backward = self._cached if self.recipe.chunk else self._at_once
        for number, batch in enumerate(batches):
            known = self.material.known(batch, self.mined.indices[batch], self.fabric.device)
            with nullcontext() if number == len(batches) - 1 else self._without_sync():
                part, parts = backward(batch, known, len(batch) / count)
            loss = loss + part
            self.objective.remember(parts[1], parts[2], known["group"], known["negative_group"])
        return loss, parts

    def _at_once(self, batch: Tensor, known: dict[str, Any], weight: float) -> tuple[Tensor, list[Tensor]]:
        """Embed a batch, take its loss, follow it backward."""
        texts = self._own_texts(batch)
        parts = self._whole_batch(self._embed(texts), batch)
        loss = self.objective(*parts, **known) * weight
        self.fabric.backward(loss)
        return loss.detach(), [part.detach() for part in parts]

    def _cached(self, batch: Tensor, known: dict[str, Any], weight: float) -> tuple[Tensor, list[Tensor]]:
        """The same in little memory: the texts are embedded in chunks, the loss is taken for some anchors at a time."""
        whole = []

        def loss_and_gradient(embeddings: Tensor) -> tuple[Tensor, Tensor]:
            leaf = embeddings.detach().requires_grad_()
            parts = self._whole_batch(leaf, batch)
            whole[:] = [part.detach().requires_grad_() for part in parts]
            loss = self._loss_by_blocks(whole, known, weight)
            torch.autograd.backward(parts, [part.grad for part in whole])
            for part in whole:
                part.grad = None
            return loss, leaf.grad

        chunks = self._own_texts(batch).split(self.recipe.chunk)
        loss = cached_backward(self._embed, chunks, loss_and_gradient, self.fabric.backward, self._without_sync)
        return loss, [part.detach() for part in whole]

    def _loss_by_blocks(self, parts: list[Tensor], known: dict[str, Any], weight: float) -> Tensor:
        """Leave the loss's gradient at the parts' `grad`, without all similarities in memory where the loss allows."""
        memory = self.objective.memory.size if self.objective.memory else 0
        size, columns = len(parts[0]), len(parts[0]) * (1 + parts[2].shape[1]) + memory
        in_parts = self.objective.loss in ROW_LOSSES
        block = max(1, BLOCK_NUMBERS // columns) if in_parts else size
        total = torch.zeros((), device=self.fabric.device)
        for start in range(0, size, block):
            rows = slice(start, min(start + block, size))
            loss = self.objective(*parts, **known, rows=rows if in_parts else None) * (
                weight * (rows.stop - start) / size
            )
            loss.backward()
            total += loss.detach()
        return total

    def _without_sync(self) -> AbstractContextManager:
        """Processes exchange gradients only with the last backward pass of a step."""
        return self.fabric.no_backward_sync(self.model) if self.fabric.world_size > 1 else nullcontext()

    def _clip(self) -> Tensor:
        limit = self.recipe.clip
        return self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)

    def _even(self, batch: Tensor) -> Tensor:
        """A batch of as many rows for each process: at most one less than processes are left out."""
        world = self.fabric.world_size
        return batch.repeat(world)[: max(1, len(batch) // world) * world]

    def _own_texts(self, batch: Tensor) -> Tensor:
        """[b·(2 + k)] the texts of this process's part of a batch: anchors, positives, negatives."""
        size = len(batch) // self.fabric.world_size
        own = batch[self.fabric.global_rank * size :][:size]
        return torch.cat([part.flatten() for part in self.material.texts_of(own, self.mined.indices[own])])

    def _embed(self, texts: Tensor) -> Tensor:
        features = self.material.features(texts, self.step)
        return self.model(to_device(features, self.fabric.device))

    def _whole_batch(self, embeddings: Tensor, batch: Tensor) -> list[Tensor]:
        """This process's embeddings [b·(2 + k), d] → anchors, positives [B, d], negatives [B, k, d] of all of them."""
        size = len(batch) // self.fabric.world_size
        parts = [embeddings[:size], embeddings[size : 2 * size], embeddings[2 * size :].unflatten(0, (size, -1))]
        if self.fabric.world_size == 1:
            return parts
        return [self._gather(part) for part in parts]

    def _gather(self, part: Tensor) -> Tensor:
        """[b, …] of each process → [B, …] of all of them, with a gradient for its own part."""
        gathered = self.fabric.all_gather(part, sync_grads=True)
        if gathered.requires_grad:
            # PyTorch's all_gather over gloo takes a gradient that is not contiguous for one that is.
            gathered.register_hook(Tensor.contiguous)
        return gathered.flatten(0, 1)

    def _check_finite(self, value: Tensor, name: str, loss: Tensor, parts: list[Tensor], rows: Tensor) -> None:
        if torch.isfinite(value):
            return
        where = f"epoch {self.step // self.epoch_steps}, step {self.step}"
        cause = cause_of_failure(parts, loss, self.rate, self._temperature())
        raise FloatingPointError(
            f"the {name} is {value.item()} at {where}, in the batch of {self.material.names(rows)}: {cause}"
            f"{self._last_checkpoint()}"
        )

    def _last_checkpoint(self) -> str:
        return f". The last checkpoint is {self.saved}" if self.saved else ""

    def _temperature(self) -> float:
        return torch.as_tensor(self.objective.temperature(), dtype=torch.float64).item()

    def _rate_share(self) -> float:
        """Share of the learning rate at this step: up in a line during the warm-up, then down to nothing."""
        warm = max(1, round(self.recipe.warmup * self.total))
        return min((self.step + 1) / warm, max(0.0, (self.total - self.step) / max(1, self.total - warm)))


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in tensors.items() if name.startswith(f"{prefix}.")}


def _check_same_run(path: Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name, value in json.loads(json.dumps(here)).items():
        if there.get(name) != value:
            raise CheckpointError(
                f"{path} belongs to another run: {name} is {there.get(name)!r} there and {value!r} here; use another "
                "folder, or the same settings and data"
            )
