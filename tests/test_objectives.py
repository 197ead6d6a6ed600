import pytest
import torch
from torch import Tensor

from gate_lessons import losses
from gate_lessons.objectives import LOSSES, GateHybrid, LearnableTemperature, NLIHead, TripletObjective

BATCH, WIDTH = 6, 10


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _batch(k: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    return _random(BATCH, WIDTH), _random(BATCH, WIDTH, seed=1), _random(BATCH, k, WIDTH, seed=2)


# ------------------------------------------------------------------- the learned temperature


@pytest.mark.parametrize("initial", [0.006, 0.02, 0.05, 0.5, 0.99])
def test_a_learned_temperature_starts_where_it_is_told(initial):
    temperature = LearnableTemperature(initial)
    assert temperature().item() == pytest.approx(initial, rel=1e-5)
    (gradient,) = torch.autograd.grad(temperature(), temperature.position)
    assert gradient.item() > 0


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("learning_rate", [1.0, 10.0])
@pytest.mark.parametrize(("sign", "bound"), [(1, 0.01), (-1, 0.5)])
def test_a_learned_temperature_stays_inside_its_bounds_and_can_come_back(optimizer, learning_rate, sign, bound):
    temperature = LearnableTemperature(0.05, low=0.01, high=0.5)
    steps = optimizer(temperature.parameters(), lr=learning_rate)

    def push(direction: int, times: int) -> None:
        for _ in range(times):
            steps.zero_grad()
            (direction * temperature().log()).backward()
            steps.step()
            assert 0.01 * (1 - 1e-5) <= temperature().item() <= 0.5 * (1 + 1e-5)

    push(sign, 500)
    assert temperature().item() == pytest.approx(bound, rel=0.2)
    push(-sign, 1000)
    middle = (0.01 * 0.5) ** 0.5
    assert (temperature().item() - middle) * sign > 0


def test_a_learned_temperature_goes_down_for_easy_batches_and_up_for_wrong_ones():
    a = torch.eye(4, 8)
    for positive, sign in ((a, 1), (-a, -1)):
        temperature = LearnableTemperature(0.2)
        losses.multiple_negatives_ranking(a, positive, temperature()).backward()
        assert temperature.position.grad.item() * sign > 0


@pytest.mark.parametrize("values", [(0.05, 0.05, 1), (0.05, 0.0, 1), (1.0, 0.01, 1.0), (2.0, 0.01, 1.0)])
def test_a_learned_temperature_needs_bounds_around_it(values):
    with pytest.raises(ValueError, match="need 0 < low < initial < high, got low="):
        LearnableTemperature(*values)


# ------------------------------------------------------------------- one call for every loss


def _stands_for(name: str, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
    """What `losses` says, with temperature 0.2 and margin 0.4, each negative on its own where a loss takes one."""
    if name == "info_nce":
        return losses.info_nce(a, p, n, 0.2)
    if name == "multiple_negatives_ranking":
        return losses.multiple_negatives_ranking(a, torch.cat([p, *n.flatten(0, 1).split(1)]), 0.2)
    function = getattr(losses, name)
    return torch.stack([function(a, p, n[:, j], 0.4) for j in range(n.shape[1])]).mean()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 3])
def test_the_objective_equals_the_loss_it_stands_for(name, k):
    batch = _batch(k)
    objective = TripletObjective(name, temperature=0.2, margin=0.4)
    found, expected = [], []
    for function, into in ((objective, found), (lambda *x: _stands_for(name, *x), expected)):
        leaves = [x.clone().requires_grad_() for x in batch]
        value = function(*leaves)
        into += [value, *torch.autograd.grad(value, leaves)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_ranking_leaves_out_the_answers_of_the_same_group(k):
    """Rows 0 and 2 mean the same: neither counts in the other's denominator, their negatives do."""
    a, p, n = _batch(k)
    group = torch.tensor([7, 1, 7, 2, 3, 4])
    cosine = torch.nn.functional.cosine_similarity
    total = 0.0
    for i in range(BATCH):
        answers = [p[j] for j in range(BATCH) if j == i or group[j] != group[i]]
        everybody = torch.stack([*answers, *n.flatten(0, 1)])
        own = cosine(a[i], p[i], dim=0) / 0.2
        total += torch.logsumexp(cosine(a[i][None], everybody) / 0.2, 0) - own
    objective = TripletObjective(temperature=0.2)
    assert objective(a, p, n, group).item() == pytest.approx(total.item() / BATCH, rel=1e-5)
    assert objective(a, p, n, group) < objective(a, p, n)
    assert objective(a, p, n, torch.arange(BATCH)).item() == pytest.approx(objective(a, p, n).item(), rel=1e-6)


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"multiple_negatives_ranking"}))
def test_the_group_changes_nothing_where_the_batch_gives_no_negatives(name):
    objective = TripletObjective(name)
    assert objective(*_batch(), torch.zeros(BATCH)).item() == objective(*_batch()).item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("k", [1, 3])
def test_matryoshka_dims_add_the_loss_of_each_prefix(name, k):
    a, p, n = _batch(k)
    dims, group = (WIDTH, 4, 2), torch.tensor([7, 1, 7, 2, 3, 4])
    plain = TripletObjective(name, 0.2, 0.4)
    expected = sum(plain(a[:, :dim], p[:, :dim], n[..., :dim], group) for dim in dims)
    nested = TripletObjective(name, 0.2, 0.4, matryoshka_dims=dims)
    assert nested(a, p, n, group).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_learnable_temperature_is_a_parameter_of_the_objective():
    assert not list(TripletObjective().parameters())
    objective = TripletObjective("info_nce", 0.2, learnable_temperature=True)
    loss = objective(*_batch(3))
    assert loss.item() == pytest.approx(TripletObjective("info_nce", 0.2)(*_batch(3)).item(), rel=1e-5)
    loss.backward()
    assert [p.grad.abs().item() > 0 for p in objective.parameters()] == [True]


def test_an_unknown_loss_and_bad_settings_are_named():
    with pytest.raises(ValueError, match=r"unknown loss 'contrastive'; the losses are info_nce, .*triplet"):
        TripletObjective("contrastive")
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        TripletObjective(temperature=0)
    with pytest.raises(ValueError, match="margin must be 0 or more, not -1"):
        TripletObjective(margin=-1)


# ------------------------------------------------------------------- NLI and the hybrid


def test_the_nli_head_equals_a_naive_computation():
    head = NLIHead(WIDTH).double()
    u, v = _random(BATCH, WIDTH).double(), _random(BATCH, WIDTH, seed=1).double()
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    weight, bias = head.linear.weight, head.linear.bias
    total = 0.0
    for i in range(BATCH):
        scores = []
        for c in range(3):
            score = bias[c].item()
            for j in range(WIDTH):
                score += weight[c, j].item() * u[i, j].item()
                score += weight[c, WIDTH + j].item() * v[i, j].item()
                score += weight[c, 2 * WIDTH + j].item() * abs(u[i, j].item() - v[i, j].item())
            scores.append(score)
        assert head.logits(u, v)[i].tolist() == pytest.approx(scores, abs=1e-12)
        softmax = torch.tensor(scores, dtype=torch.float64).softmax(0)
        total -= softmax[label[i]].log().item()
    assert head(u, v, label).item() == pytest.approx(total / BATCH, abs=1e-12)


def test_the_nli_head_learns_what_only_the_difference_tells():
    """Label 1 where the sentences differ. No weighted sum of u and v alone can tell, |u − v| can."""
    torch.manual_seed(0)
    u = torch.randn(60, 4)
    label = torch.arange(60) % 2
    v = torch.where(label[:, None] == 1, torch.randn(60, 4), u)
    head = NLIHead(4, labels=2)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(150):
        optimizer.zero_grad()
        head(u, v, label).backward()
        optimizer.step()
    assert (head.logits(u, v).argmax(1) == label).float().mean() > 0.95


def test_the_hybrid_sends_each_batch_to_its_task():
    hybrid = GateHybrid(WIDTH, temperature=0.3)
    u, v = _random(BATCH, WIDTH), _random(BATCH, WIDTH, seed=1)
    label, score = torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6.0)
    assert hybrid("classification", u, v, label).item() == hybrid.head(u, v, label).item()
    assert hybrid("sts", u, v, score).item() == losses.cosent(u, v, score, 0.3).item()
    assert hybrid("sts", u, v, score).item() != losses.cosent(u, v, score).item()


def test_the_hybrid_rejects_an_unknown_task_and_a_bad_temperature():
    with pytest.raises(ValueError, match="unknown task 'retrieval'; the tasks are classification and sts"):
        GateHybrid(WIDTH)("retrieval", *_batch()[:2], torch.zeros(BATCH))
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        GateHybrid(WIDTH, temperature=0)
