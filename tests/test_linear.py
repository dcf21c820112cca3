"""The linear layers on tiles against 64-bit arithmetic over shapes, strides and threads; and what happens where there are no tiles."""
import os, subprocess, sys
from pathlib import Path
import pytest, torch
from torch.nn import functional as F
from rdbpfn import linear
from rdbpfn.core import InputError, generator
from rdbpfn.linear import FusedLinear, available, library
from rdbpfn.model import RDBPFN, Linear
from rdbpfn.speed import gflop

needs_tiles = pytest.mark.skipif(library() is None, reason='this machine has no C++ compiler, or no processor with tiles')
ROWS, WIDTHS = (1, 31, 33, 2048, 5001), ((32, 32), (96, 96), (96, 192), (192, 96), (160, 64))


def draw(N, K=96, M=96):
    g = generator(N, K, M)
    return torch.randn(N, K, generator=g).bfloat16(), torch.randn(M, K, generator=g)/K**.5, torch.randn(M, generator=g), torch.randn(N, M, generator=g).bfloat16()


def plain(x, w, b): return F.linear(x, w.to(x.dtype), b.to(x.dtype))


def answer(f, x, w, b, go):
    "Output and the three gradients"
    leaves = [t.detach().requires_grad_() for t in (x, w, b)]
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, go)]


def same(a, b): return len(a) == len(b) and all(torch.equal(s, t) for s, t in zip(a, b))


def errors(f, x, w, b, go):
    "Against 64 bits, relative to the norm"
    want = answer(F.linear, x.double(), w.bfloat16().double(), b.double(), go.double())
    return [float((a.double() - t).norm()/t.norm()) for a, t in zip(answer(f, x, w, b, go), want)]


def said(program, **env):
    "What a program prints in a process of its own"
    done = subprocess.run([sys.executable, '-c', program], env={**os.environ, **env}, text=True, capture_output=True, timeout=240, cwd=Path(linear.__file__).parents[1])
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stderr)
    return done.stdout.split()


@needs_tiles
@pytest.mark.parametrize('N', ROWS)
@pytest.mark.parametrize('widths', WIDTHS, ids=str)
def test_right_for_every_shape(N, widths):
    x, w, b, go = draw(N, *widths)
    assert available(x, w)
    ours, theirs = errors(FusedLinear.apply, x, w, b, go), errors(plain, x, w, b, go)
    assert max(ours[:2]) < 2.5e-3 and max(ours[2:]) < 1e-6 and all(a < t + 1e-4 for a, t in zip(ours, theirs)), (ours, theirs)


@needs_tiles
def test_same_bytes_on_any_number_of_threads():
    threads, seen = torch.get_num_threads(), []
    try:
        for n in (1, 1, 2, 3, 40): torch.set_num_threads(n); seen.append(answer(FusedLinear.apply, *draw(9001, 96, 64)))
    finally: torch.set_num_threads(threads)
    assert all(same(seen[0], other) for other in seen[1:])


@needs_tiles
def test_a_row_is_answered_by_itself():
    x, w, b, go = draw(2100)
    whole = answer(FusedLinear.apply, x, w, b, go)
    for some in (slice(0, 1), slice(5, 38), slice(2040, 2100)): assert same(answer(FusedLinear.apply, x[some], w, b, go[some])[:2], [t[some] for t in whole[:2]])


@needs_tiles
def test_any_strides_in_and_any_axes():
    x, w, b, go = draw(60)
    want = answer(FusedLinear.apply, x, w, b, go)
    wide = lambda t: torch.stack([t, t*7], -1).flatten(-2)[..., ::2]                     # neighbours in memory that are not ours
    for change in (lambda t: t.T.contiguous().T, wide):
        assert same(answer(FusedLinear.apply, change(x), w, b, change(go)), want)
        assert same(answer(FusedLinear.apply, x, change(w), wide(b), go), want)
    axes = lambda t: t.unflatten(0, (3, 4, 5))
    deep = answer(FusedLinear.apply, axes(x), w, b, axes(go))
    assert same(deep, [*map(axes, want[:2]), *want[2:]])
    swapped = lambda t: axes(t).transpose(0, 2).contiguous().transpose(0, 2)
    assert same(answer(FusedLinear.apply, swapped(x), w, b, swapped(go)), deep)
    one = answer(FusedLinear.apply, x[0], w, b, go[0])                                   # a row without an axis for rows
    assert one[0].shape == (96,) and same(one[:2], [t[0] for t in want[:2]])
    ones = torch.ones((), dtype=torch.bfloat16).expand(60, 96)                           # the gradient of a sum has no strides at all
    assert same(answer(FusedLinear.apply, x, w, b, ones), answer(FusedLinear.apply, x, w, b, ones.contiguous()))
    leaf = x.clone().requires_grad_()
    FusedLinear.apply(leaf, w, b).sum().backward()
    assert torch.equal(leaf.grad, answer(FusedLinear.apply, x, w, b, ones)[1])


@needs_tiles
def test_only_the_gradients_that_are_wanted():
    x, w, b, go = draw(50)
    want = answer(FusedLinear.apply, x, w, b, go)
    with torch.no_grad(): assert torch.equal(FusedLinear.apply(x, w, b), want[0])
    for asked in ([0], [1], [2], [1, 2]):
        leaves = [t.detach().requires_grad_(i in asked) for i, t in enumerate((x, w, b))]
        got = torch.autograd.grad(FusedLinear.apply(*leaves), [leaves[i] for i in asked], go)
        assert same(got, [want[1 + i] for i in asked])


@needs_tiles
def test_the_defaults_of_pytorch_do_not_matter():
    tensors = draw(40)
    want = answer(FusedLinear.apply, *tensors)
    try:
        torch.set_default_dtype(torch.double); torch.set_default_device('meta')
        assert same(answer(FusedLinear.apply, *tensors), want)
    finally: torch.set_default_dtype(torch.float32); torch.set_default_device(None)


@needs_tiles
def test_nan_and_infinity_come_out_where_they_belong():
    x, w, b, go = draw(300)
    x[3, 4], x[290, 4], go[77, 9] = torch.nan, torch.inf, torch.nan
    y, gx, gw, gb = answer(FusedLinear.apply, x, w, b, go)
    for ours, theirs in zip((y, gx, gw, gb), answer(plain, x, w, b, go)): assert torch.equal(ours.isfinite(), theirs.isfinite()) and torch.equal(ours.isinf(), theirs.isinf())
    assert y[3].isnan().all() and y[290].isinf().all() and (~y.isfinite()).any(1).sum() == 2
    assert gx[77].isnan().all() and gx.isnan().any(1).sum() == 1 and gb.isnan().sum() == 1
    x, w, b, go = draw(40)
    for bits in (0x7fffffff, 0x7f800001, -1): w[5, 6] = torch.tensor(bits, dtype=torch.int32).view(torch.float32); assert FusedLinear.apply(x, w, b)[:, 5].isnan().all()   # no NaN becomes a number


@needs_tiles
def test_no_rows():
    x, w, b, go = draw(8)
    for t in (x[:0], x[:0].view(2, 0, 96)):
        y, gx, gw, gb = answer(FusedLinear.apply, t, w, b, t)
        assert y.shape == gx.shape == t.shape and not gw.any() and not gb.any()


END = """
import ctypes, mmap, torch
from rdbpfn.linear import FusedLinear
page, libc = mmap.PAGESIZE, ctypes.CDLL(None)
memory = mmap.mmap(-1, 2*page)
assert libc.mprotect(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + page), ctypes.c_size_t(page), 0) == 0
x = torch.frombuffer(memory, dtype=torch.bfloat16, count=5*96, offset=page - 2*5*96).view(5, 96).requires_grad_()     # who reads on is killed
y = FusedLinear.apply(x, torch.ones(96, 96), torch.zeros(96))
y.backward(x.detach())
print(float(y.detach().sum() + x.grad.sum()))
"""

@needs_tiles
def test_nothing_is_read_past_the_end(): assert said(END) == ['0.0']


@needs_tiles
def test_the_network_trains_the_same_way(monkeypatch):
    torch.manual_seed(0)
    net, g = RDBPFN(), generator(3)
    x, y, target = torch.randn(3, 70, 6, generator=g), (torch.rand(3, 45, generator=g) < .4).float(), torch.arange(75) % 2
    def step():
        net.zero_grad()
        loss = F.cross_entropy(net(x, y, torch.bfloat16).flatten(0, 1), target)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])
    calls, call = [], linear._call
    monkeypatch.setattr(linear, '_call', lambda name, *a: (calls.append(name), call(name, *a)))
    loss, grad = step()
    assert calls.count('forward') == calls.count('backward') == 6*(8 + 2) + 1           # every layer of a block, and the first of the head
    monkeypatch.setenv('RDBPFN_KERNEL', '0')
    loss_0, grad_0 = step()
    assert len(calls) == 122 and abs(loss - loss_0) < 3e-3 and F.cosine_similarity(grad, grad_0, 0) > .999


def test_a_count_of_arithmetic_sees_the_layer():
    layer, x = Linear(96, 64), torch.zeros(10, 96, dtype=torch.bfloat16)
    assert abs(gflop(lambda: layer(x).sum().backward()) - 2*2*10*96*64/1e9) < 1e-12      # output and the gradient of the weights


def test_what_tiles_do_not_do():
    x, w, b, _ = draw(4)
    assert not available(x.float(), w) and not available(x, w[:2]) and not available(x[:, :80], w[:, :80]) and not available(x[:, :64], w) and not available(x[:, :0], w[:, :0])
    assert not available(x.to('meta'), w.to('meta')) and not available(x, w[0]) and not available(x[0, 0], w)
    for bad in ((x.float(), w, b), (x[:, :80], w[:, :80], b), (x[:, :64], w, b), (x, w[:2], b[:2]), (x, w, b[:64])):
        with pytest.raises(InputError, match='multiples of 32.*ask `available` first'): FusedLinear.apply(*bad)


def test_a_process_that_may_use_no_tiles(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    monkeypatch.setattr(linear, 'SOURCE', linear.SOURCE.replace('0x1023', '0x1fff'))     # another request, which Linux does not know
    assert library.__wrapped__() is None
    monkeypatch.setattr(linear, 'library', lambda: None)
    x, w, b, go = draw(40)
    assert not available(x, w)
    with pytest.raises(InputError, match='no processor with tiles'): FusedLinear.apply(x, w, b)
    layer = Linear(96, 96)
    assert torch.equal(layer(x), F.linear(x, layer.weight.bfloat16(), layer.bias.bfloat16()))


TRAIN = """
import torch
from rdbpfn.linear import available, library
from rdbpfn.model import ModelConfig, RDBPFN
torch.manual_seed(0)
net, x, y = RDBPFN(ModelConfig(n_layers=2, width=32, n_heads=2, hidden=64)), torch.linspace(-1, 1, 90).view(1, 30, 3), torch.arange(20.)[None] % 2
net(x, y).square().sum().backward()
print(library.cache_info().currsize)                                                     # libraries asked for after training in 32 bits
net(x, y, torch.bfloat16).square().sum().backward()
print(available(torch.zeros(1, 32, dtype=torch.bfloat16), torch.zeros(32, 32)), float(net.cell.weight.grad.norm()))
"""

def test_without_a_compiler_or_tiles_pytorch_does_it(tmp_path):
    empty = dict(XDG_CACHE_HOME=str(tmp_path))
    cases = [said(TRAIN, **empty | env) for env in (dict(PATH='', CXX=''), dict(XDG_CACHE_HOME='/dev/null/cache'), dict(RDBPFN_KERNEL='0'))]
    assert {tuple(c[:2]) for c in cases} == {('0', 'False')} and len({c[2] for c in cases}) == 1


@needs_tiles
def test_a_processor_without_tiles(tmp_path):
    "A compiler that knows no tiles stands for it"
    few, many = (said(TRAIN, XDG_CACHE_HOME=str(tmp_path), CXX=c) for c in ('c++ -mno-amx-bf16', 'c++'))
    assert few[:2] == ['0', 'False'] and many[:2] == ['0', 'True'] and abs(float(few[2])/float(many[2]) - 1) < .02
