"""Kernel ridge regression against solving for each row left out, and what must not change it."""
import math
import pytest, torch
from rdbpfn.core import generator
from rdbpfn.model import ModelConfig, RDBPFN
from rdbpfn.ridge import RIDGES, ask_ridges, fit_ridges, places, relevance
from test_evidence import counted, data as columns


def solved(x, y):
    "The same numbers, 64 bits, one system of equations for every row left out: x (B, R, C), y (B, n) -> (B, R, 6)"
    n, (B, R, C) = y.shape[1], x.shape
    said = counted(x, y)[:, :n, :, 3].double()
    x = x.double()
    seen = ~x[:, :n].isnan()
    mean = x[:, :n].nan_to_num().sum(1, keepdim=True)/seen.sum(1, keepdim=True).clamp(min=1)
    std = (((x[:, :n] - mean).nan_to_num()**2).sum(1, keepdim=True)/seen.sum(1, keepdim=True).clamp(min=1)).sqrt()
    z = ((x - mean)/(std + 1e-8)).nan_to_num().clamp(-100, 100)
    at, out = torch.sign(z)*torch.log(1 + z.abs()), []
    w = (said**2).mean(1, keepdim=True)
    p = y.double().mean(1)
    r = (y.double() - p[:, None])/(p*(1 - p)).sqrt().clamp(min=.03)[:, None]
    for weight in (torch.ones(B, 1, C), w/(w.mean(2, keepdim=True) + 1e-6)):
        apart = (at[:, :, None] - at[:, None]).abs()*weight[:, None].sqrt()
        for power, h, penalty in RIDGES:
            K, f = torch.exp(-(apart**power).sum(3)/C/h), torch.zeros(B, R, dtype=torch.double)
            for b in range(B):
                for i in range(R):
                    o = [j for j in range(n) if j != i]
                    if o: f[b, i] = K[b, i, o] @ torch.linalg.solve(K[b][o][:, o] + penalty*torch.eye(len(o), dtype=torch.double), r[b, o])
            out.append(f)
    return torch.stack(out, -1).float()


def fast(x, y):
    n = y.shape[1]
    net = RDBPFN(ModelConfig(n_layers=1, width=4, n_heads=1, hidden=4, evidence=True, ridge=True))
    return net.inputs(x, y)[1][..., 1:]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('n', [2, 7, 60])
def test_equals_leaving_out_every_row(seed, n):
    x, y = columns(seed, R=70, n=n)
    if not 0 < y[0].sum() < n: y[:, 0], y[:, 1] = 0, 1
    assert (fast(x, y) - solved(x, y)).abs().max() < 1e-3


@pytest.mark.parametrize('y', [torch.zeros(1, 40), torch.ones(1, 40), torch.eye(40)[:1], torch.ones(1, 1)])
def test_is_finite_with_one_class_or_one_row_of_the_rarer(y):
    assert fast(columns(0, B=1, R=60, n=40)[0], y).isfinite().all()


@pytest.mark.parametrize('value', [math.inf, -math.inf, 3.4e38, math.nan, 0.])
def test_odd_and_equal_values_do_no_harm(value):
    x, y = columns(1)
    x[:, ::3] = value
    assert fast(x, y).isfinite().all()


@pytest.mark.parametrize('seed', range(3))
def test_rows_in_another_order_and_other_queries_change_nothing(seed):
    x, y = columns(seed)
    n, g = y.shape[1], generator(seed, 8)
    base, order = fast(x, y), torch.randperm(y.shape[1], generator=g)
    moved = fast(torch.cat([x[:, order], x[:, n:]], 1), y[:, order])
    assert (moved[:, n:] - base[:, n:]).abs().max() < 1e-4 and (moved[:, :n] - base[:, order]).abs().max() < 1e-4
    assert (fast(x[:, :n + 1], y) - base[:, :n + 1]).abs().max() < 1e-5


@pytest.mark.parametrize('seed', range(3))
def test_the_classes_are_treated_alike(seed):
    x, y = columns(seed)
    assert (fast(x, y) + fast(x, 1 - y)).abs().max() < 2e-3


def test_no_context_row_sees_its_own_label():
    x, y = columns(3)
    k, p, weight = places(torch.randn(2, 80, 6, generator=generator(4))), y.mean(1, keepdim=True), torch.ones(2, 1, 6)
    for i in range(0, 80, 9):
        other = y.clone(); other[:, i] = 1 - other[:, i]
        seen = [fit_ridges(k, weight, labels, p)[1][:, i] for labels in (y, other)]
        assert (seen[0] - seen[1]).abs().max() < 1e-4


def test_columns_that_say_nothing_weigh_little():
    g = generator(6, 6)
    x = torch.randn(1, 300, 5, generator=g)
    y = (x[..., 2] > 0).float()
    w = relevance(counted(x, y)[..., 3])[0, 0]
    assert w.argmax() == 2 and w[2] > 4*w[[0, 1, 3, 4]].max() and abs(float(w.square().mean()) - 1) < 1e-3


def test_a_checkerboard_is_told_apart_at_once():
    "No column says anything alone; a tiny network learns within sixty steps to take the regressions' word"
    torch.manual_seed(0)
    g = generator(9, 9)
    def table():
        x = 4*torch.rand(1, 300, 2, generator=g)
        return x, ((x.floor().sum(2) % 2) == int(torch.randint(2, (), generator=g))).float()
    def trained(**told):
        net = RDBPFN(ModelConfig(n_layers=1, width=16, n_heads=2, hidden=16, **told))
        optimizer, losses = torch.optim.Adam(net.parameters(), 1e-2), []
        for _ in range(60):
            x, y = table()
            losses.append(torch.nn.functional.cross_entropy(net(x, y[:, :200])[0], y[0, 200:].long()))
            optimizer.zero_grad(); losses[-1].backward(); optimizer.step()
        return float(sum(l.detach() for l in losses[-10:]))/10
    assert trained(evidence=True) > .6 and trained(evidence=True, ridge=True) < .5
