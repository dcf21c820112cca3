"""Weight of evidence against counting every pair of rows, and what must not change it."""
import math
import pytest, torch
from rdbpfn.core import generator
from rdbpfn.evidence import evidence, ranked
from rdbpfn.model import ModelConfig, RDBPFN

nan = math.nan


def counted(x, y):
    "The same numbers from all pairs of rows: how much of each context row lies in each window"
    n, (B, R, C) = y.shape[1], x.shape
    v = x.nan_to_num(math.inf, posinf=3e38).double()
    c, y = v[:, :n], y.double()
    less, same = (c[:, None] < v[:, :, None]).double().sum(2), (c[:, None] == v[:, :, None]).double().sum(2)      # (B, R, C)
    first, size = less[:, :n], same[:, :n]
    mine = torch.zeros(B, R, C, dtype=torch.double); mine[:, :n] = y[..., None]
    is_context = (torch.arange(R) < n).double()[:, None]
    p = y.mean(1)[:, None, None].clamp(1e-3, 1 - 1e-3)
    out = []
    for h in (0, math.ceil(n/32), math.ceil(n/8)):
        a, b = (less - h).clamp(min=0), (less + same + h).clamp(max=n)
        share = (torch.minimum((first + size)[:, None], b[:, :, None]) - torch.maximum(first[:, None], a[:, :, None])).clamp(min=0)/size[:, None]
        s, k = (share*y[:, None, :, None]).sum(2) - mine, b - a - is_context
        out.append(((s + p)/(k - s + 1 - p)).log() - (p/(1 - p)).log())
        if not h: out.append((1 + k).log()/2)
    return torch.stack(out, -1).float()


def fast(x, y):
    n, base = y.shape[1], y.mean(1, keepdim=True)
    index = ranked(x[:, :n], y)
    return torch.cat([evidence(x[:, :n], *index, base, y), evidence(x[:, n:], *index, base)], 1)


def data(seed, B=2, R=120, C=6, n=80, rate=.3):
    "Measures, codes, counts, holes, a constant and a yes-no column"
    g = generator(seed, 7)
    x = torch.randn(B, R, C, generator=g)
    x[..., 1] = torch.randint(0, 20, (B, R), generator=g)
    x[..., 2] = x[..., 2].exp().floor()
    x[..., 3][torch.rand(B, R, generator=g) < .4] = nan
    x[..., 4] = 7.
    x[..., 5] = (x[..., 5] > .8).float()
    return x, (torch.rand(B, n, generator=g) < rate).float()


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('n', [2, 7, 80, 119])
def test_equals_counting_all_pairs(seed, n):
    x, y = data(seed, n=n)
    assert (fast(x, y) - counted(x, y)).abs().max() < 2e-4


@pytest.mark.parametrize('y', [torch.zeros(1, 40), torch.ones(1, 40), torch.eye(40)[:1]])
def test_is_finite_with_one_class_or_one_row_of_the_rarer(y):
    x = data(0, B=1, R=60, n=40)[0]
    assert fast(x, y).isfinite().all() and (fast(x, y) - counted(x, y)).abs().max() < 2e-3


@pytest.mark.parametrize('bad', [math.inf, -math.inf, 3.4e38, -1e-40])
def test_odd_values_are_values(bad):
    x, y = data(1)
    x[:, ::3, 0] = bad
    assert fast(x, y).isfinite().all()
    alike = fast(x, y)[:, 81::3, 0, 1]
    assert torch.equal(alike, torch.full_like(alike, .5*math.log(1 + 27)))          # 27 rows of the context hold it


@pytest.mark.parametrize('seed', range(4))
def test_rows_in_another_order_and_other_queries_change_nothing(seed):
    x, y = data(seed)
    n, g = y.shape[1], generator(seed, 8)
    base, order = fast(x, y), torch.randperm(n, generator=g)
    moved = fast(torch.cat([x[:, order], x[:, n:]], 1), y[:, order])
    assert torch.equal(moved[:, n:], base[:, n:]) and torch.equal(moved[:, :n], base[:, order])
    assert torch.equal(fast(x[:, :n + 1], y), base[:, :n + 1])


@pytest.mark.parametrize('seed', range(4))
def test_the_classes_are_treated_alike(seed):
    x, y = data(seed)
    a, b = fast(x, y), fast(x, 1 - y)
    for j in (0, 2, 3): assert (a[..., j] + b[..., j]).abs().max() < 1e-4
    assert torch.equal(a[..., 1], b[..., 1])


@pytest.mark.parametrize('f', [lambda x: 5*x - 3, lambda x: x.exp(), lambda x: x**3])
def test_only_the_order_of_values_matters(f):
    x, y = data(2)
    assert torch.equal(fast(f(x.double()).float(), y)[:, :, 1], fast(x, y)[:, :, 1])


def test_no_context_row_sees_its_own_label():
    x, y = data(3)
    base = y.mean(1, keepdim=True)
    for i in range(0, 80, 9):
        other = y.clone(); other[:, i] = 1 - other[:, i]
        seen = [evidence(x[:, :80], *ranked(x[:, :80], labels), base, labels)[:, i] for labels in (y, other)]
        assert (seen[0][..., :2] - seen[1][..., :2]).abs().max() < 1e-4
        assert (seen[0][:, [0, 3]] - seen[1][:, [0, 3]])[:, 0].abs().max() < 1e-4    # a measure has no ties, so the windows do not see it either


def test_a_hundred_thousand_rows_are_counted_right():
    g = generator(5, 5)
    x = torch.randint(0, 3, (1, 100_010, 1), generator=g).float()
    y = (torch.rand(1, 100_000, generator=g) < .2 + .2*x[:, :100_000, 0]).float()
    found, codes = fast(x, y)[0, 100_000:, 0], x[0, 100_000:, 0]
    for code in codes.unique():
        mine = y[0][x[0, :100_000, 0] == code]
        want = (mine.mean()/(1 - mine.mean())).log() - (y.mean()/(1 - y.mean())).log()
        assert (found[codes == code][:, 0] - want).abs().max() < 1e-3


def test_a_network_with_evidence_can_look_up_what_one_without_cannot_see():
    "An identifier that comes in twos, in any order: equal values tell, z-scores hardly do"
    torch.manual_seed(0)
    net = RDBPFN(ModelConfig(n_layers=1, width=16, n_heads=2, hidden=16, evidence=True))
    g = generator(9, 9)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        key = torch.randperm(20, generator=g).float()
        x, y = torch.cat([key, key]).view(1, 40, 1), (torch.rand(1, 20, generator=g) < .5).float()
        loss = torch.nn.functional.cross_entropy(net(x, y)[0], y[0].long())
        optimizer.zero_grad(); loss.backward(); optimizer.step()
    assert loss < .3
