"""The C++ attention against 64-bit arithmetic over shapes, strides, threads and ways to multiply; and what happens when it cannot be compiled, or half was."""
import os, platform, subprocess, sys
from pathlib import Path
import pytest, torch
from torch.nn import functional as F
from rdbpfn import kernel
from rdbpfn.compiled import build, compiler
from rdbpfn.core import InputError, generator
from rdbpfn.kernel import FusedAttention, available
from rdbpfn.model import RDBPFN

needs_compiler = pytest.mark.skipif(not compiler(), reason='this machine has no C++ compiler')
SHAPES = [(1, 1, 1, 1, 24), (2, 3, 5, 7, 24), (3, 1, 1, 31, 24), (1, 2, 17, 1, 24), (2, 4, 16, 8, 24), (1, 2, 33, 65, 24), (1, 3, 32, 64, 24),
          (1, 2, 100, 130, 24), (2, 2, 9, 9, 8), (1, 2, 50, 70, 8), (1, 2, 40, 90, 40), (1, 2, 15, 20, 64), (1, 2, 33, 129, 64)]


def draw(A, H, S, T, D, dtype=torch.float32):
    g = generator(A, H, S, T, D)
    return [torch.randn(A, n, H, D, generator=g).to(dtype).transpose(1, 2) for n in (S, T, T, S)]


def plain(q, k, v):
    return torch.softmax((q*q.shape[-1]**-.5) @ k.mT, -1) @ v


def answer(f, q, k, v, go):
    "Output and the three gradients"
    leaves = [t.detach().requires_grad_() for t in (q, k, v)]
    out = f(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, go)]


def errors(f, tensors):
    "Against 64 bits, relative to the norm (to the output's, where a gradient is nearly 0)"
    want = answer(plain, *(t.double() for t in tensors))
    return [float((a.double() - b).norm()/max(b.norm(), .1*want[0].norm())) for a, b in zip(answer(f, *tensors), want)]


def check(shape):
    "Right in 32 bits, and no worse than PyTorch in 16"
    assert available(torch.zeros(1, 1, 1, shape[-1]))
    assert max(errors(FusedAttention.apply, draw(*shape))) < 2e-6
    ours, theirs = (errors(f, draw(*shape, dtype=torch.bfloat16)) for f in (FusedAttention.apply, plain))
    assert ours[0] < 2.4e-3 and max(ours) < 3.6e-3 and all(a <= b + 1e-4 for a, b in zip(ours, theirs))


@needs_compiler
@pytest.mark.parametrize('shape', SHAPES)
def test_right_in_32_bits_and_no_worse_than_pytorch_in_16(shape): check(shape)


# the three ways to multiply

def instructions():
    "What the processor can do, as Linux names it"
    file = Path('/proc/cpuinfo')
    return set(next((line for line in file.read_text().splitlines() if line.startswith('flags')), '').split()) if file.exists() else set()


def macros(*options):
    "What the compiler says that it may use"
    return subprocess.run([*compiler(), *kernel.OPTIONS, *options, '-x', 'c++', '-dM', '-E', os.devnull], capture_output=True, text=True).stdout


@pytest.fixture
def compiled_for(monkeypatch, tmp_path):
    "Kernels of this test are compiled with one more option, into a cache of its own"
    def choose(option):
        monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
        monkeypatch.setattr(kernel, 'OPTIONS', (*kernel.OPTIONS, option))
        kernel.library.cache_clear()
    yield choose
    kernel.library.cache_clear()


OLDER = [('-march=x86-64', set(), 0), ('-march=x86-64-v3', {'avx2', 'bmi2', 'fma', 'f16c', 'movbe', 'abm'}, 0),
         ('-march=skylake-avx512', {'avx512f', 'avx512cd', 'avx512bw', 'avx512dq', 'avx512vl', 'clwb', 'pku', 'adx', 'rdseed', 'xsavec'}, 0),
         ('-march=cooperlake', {'avx512_bf16', 'avx512_vnni', 'avx512vl', 'clwb', 'pku', 'adx', 'rdseed', 'xsavec'}, 1)]

@needs_compiler
@pytest.mark.parametrize('option, needs, way', OLDER, ids=[o[0] for o in OLDER])
def test_processors_without_tiles_pairs_or_vectors(compiled_for, option, needs, way):
    if platform.machine() != 'x86_64' or needs - instructions(): pytest.skip('this processor cannot run it')
    if '__x86_64__' not in macros(option): pytest.skip('this compiler does not know that processor')
    compiled_for(option)
    assert kernel.library(24).way(1, 400) == way
    for shape in (s for s in SHAPES if s[-1] == 24): check(shape)


def tiles_granted():
    "Does Linux give a process its tiles? Asked in another one, so that this one's state is what the kernel made it"
    ask = 'import ctypes; print(ctypes.CDLL(None).syscall(158, 0x1023, 18))'                            # arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA
    return subprocess.run([sys.executable, '-c', ask], capture_output=True, text=True).stdout.strip() == '0'


@needs_compiler
def test_tiles_are_used_exactly_where_they_can_be():
    can = 'amx_bf16' in instructions() and 'AVX512BF16' in macros() and ('__AMX_BF16__' in macros() or '__AMXBF16__' in macros()) and tiles_granted()
    way = kernel.library(24).way
    assert way(1, 400) == way(1, 9) == 2 if can else way(1, 400) == way(1, 8) < 2
    assert way(0, 400) == 0 and way(1, 8) == ('AVX512BF16' in macros())


@needs_compiler
def test_no_queries_no_gradients():
    for dtype in (torch.float32, torch.bfloat16):
        q, k, v, go = draw(2, 3, 0, 70, 24, dtype)
        for t, like in zip(answer(FusedAttention.apply, q, k, v, go), (q, q, k, v)): assert t.shape == like.shape and not t.any()


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_any_strides_in_and_views_without_copies_out(dtype):
    tensors = draw(2, 3, 20, 30, 24, dtype)
    want = answer(FusedAttention.apply, *tensors)
    wide = lambda t: torch.stack([t, t*7], -2).flatten(-2).unflatten(-1, (2, -1))[..., 0, :]       # neighbours in memory that are not ours
    for change in (torch.clone, lambda t: t.contiguous(), lambda t: t.mT.contiguous().mT, wide, lambda t: t.transpose(0, 2).contiguous().transpose(0, 2)):
        for a, b in zip(answer(FusedAttention.apply, *map(change, tensors)), want): assert torch.equal(a, b) and a.transpose(1, 2).is_contiguous()
    ones = torch.ones((), dtype=dtype).expand(2, 3, 20, 24)                                             # the gradient of a sum has no strides at all
    for a, b in zip(answer(FusedAttention.apply, *tensors[:3], ones), answer(FusedAttention.apply, *tensors[:3], ones.contiguous())): assert torch.equal(a, b)


@needs_compiler
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_extreme_logits_and_nan(dtype):
    q, k, v, go = draw(1, 2, 40, 70, 24, dtype)
    q, k = q.sign()*20, torch.cat([q.sign(), -q.sign()], 2)[:, :, :70]*5                              # logits up to +-490, one key far above the rest
    for t in answer(FusedAttention.apply, q, k, v, go): assert t.isfinite().all()
    assert max(errors(FusedAttention.apply, (q, k, v, go))[:2]) < .02
    low = answer(FusedAttention.apply, q.abs(), -k.abs(), v, go)                                      # every logit near -490
    assert all(t.isfinite().all() for t in low) and low[0].abs().max() <= v.abs().max()
    edge = answer(FusedAttention.apply, torch.ones_like(q), torch.full_like(k, -19.02), v, go)        # e^-lse overflows, and so would the weight of a key of zeros
    assert all(t.isfinite().all() for t in edge)
    for i in range(64, 68):                                                                           # whichever of four neighbours has the largest logit
        one = torch.zeros_like(k); one[:, :, i] = 5
        assert torch.equal(FusedAttention.apply(q.abs(), one, v), v[:, :, i:i + 1].expand_as(q))
    for i in range(4):
        bad = [t.clone() for t in (q, k, v, go)]
        bad[i][0, 1, 3, 5] = torch.nan
        got = answer(FusedAttention.apply, *bad)
        assert all(t[0, 0].isfinite().all() for t in got) and got[i == 3][0, 1].isnan().any()           # out, or the gradient of q


@needs_compiler
@pytest.mark.parametrize('keys, way', [(90, 'the best'), (90, 2), (8, 1)])
def test_same_bytes_on_any_number_of_threads(keys, way):
    if way != 'the best' and kernel.library(24).way(1, keys) != way: pytest.skip('this processor goes another way')
    threads, seen = torch.get_num_threads(), []
    try:
        for n in (1, 1, 2, 3, 40): torch.set_num_threads(n); seen.append(answer(FusedAttention.apply, *draw(2, 5, 50, keys, 24, torch.bfloat16)))
    finally: torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in seen[1:] for a, b in zip(seen[0], other))


@needs_compiler
@pytest.mark.parametrize('dtype, close', [(torch.float32, 1e-5), (torch.bfloat16, 3e-3)])
def test_the_network_trains_the_same_way(monkeypatch, dtype, close):
    torch.manual_seed(0)
    net, g = RDBPFN(), generator(3)
    x, y, target = torch.randn(3, 70, 6, generator=g), (torch.rand(3, 45, generator=g) < .4).float(), torch.arange(75) % 2
    def step():
        net.zero_grad()
        loss = F.cross_entropy(net(x, y, dtype).flatten(0, 1), target)
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])
    calls, forward = [], kernel._run
    monkeypatch.setattr(kernel, '_run', lambda *a: (calls.append(a[2]), forward(*a)))
    loss, grad = step()
    assert calls.count(False) == calls.count(True) == 12                                            # two attentions a layer
    monkeypatch.setenv('RDBPFN_KERNEL', '0')
    loss_0, grad_0 = step()
    assert len(calls) == 24 and abs(loss - loss_0) < close and F.cosine_similarity(grad, grad_0, 0) > .999


def test_what_the_kernel_does_not_do():
    assert not available(torch.zeros(1, 1, 1, 20)) and not available(torch.zeros(1, 1, 1, 72))
    assert not available(torch.zeros(1, 1, 1, 24, dtype=torch.double)) and not available(torch.zeros(1, 1, 1, 24, device='meta'))
    with pytest.raises(InputError, match='no kernel for heads of 20 numbers'): FusedAttention.apply(*torch.zeros(3, 1, 1, 4, 20))


TRAIN = """
import torch
from rdbpfn.kernel import available, library
from rdbpfn.model import ModelConfig, RDBPFN
torch.manual_seed(0)
net, x, y = RDBPFN(ModelConfig(n_layers=2, width=32, n_heads=2)), torch.linspace(-1, 1, 90).view(1, 30, 3), torch.arange(20.)[None] % 2
with torch.no_grad(): net(x, y)
print(library.cache_info().currsize)
net(x, y).square().sum().backward()
print(available(torch.zeros(1, 1, 1, 16)), float(net.cell.weight.grad.norm()))
"""

def child(tmp_path, **env):
    "A fresh process with an empty cache that predicts, then trains"
    return subprocess.Popen([sys.executable, '-c', TRAIN], env={**os.environ, 'XDG_CACHE_HOME': str(tmp_path), **env}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            cwd=Path(kernel.__file__).parents[1])

def said(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not err, err
    return out.split()


@needs_compiler
def test_two_processes_compile_at_once_and_a_prediction_compiles_nothing(tmp_path):
    both = [said(p) for p in [child(tmp_path) for _ in range(2)]]
    assert both[0] == both[1] and both[0][:2] == ['0', 'True']
    assert sorted(p.suffix for p in (tmp_path/'rdbpfn').iterdir()) == ['.sha256', '.so']              # one library, nothing half done


def test_without_a_compiler_pytorch_does_it(tmp_path):
    cases = [said(p) for p in [child(tmp_path, PATH='', CXX=''), child(tmp_path, CXX='nowhere/c++'), child(tmp_path, CXX=f'{sys.executable} -c 0 --'),
                               child(tmp_path, XDG_CACHE_HOME='/dev/null/cache'), child(tmp_path, RDBPFN_KERNEL='0')]]
    assert {tuple(c[:2]) for c in cases} == {('0', 'False')} and len({c[2] for c in cases}) == 1


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "A function that builds a library and its digest, into a cache of their own"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
        options = [o for o in kernel.OPTIONS if o != '-O3']                                            # compiles in a second
        yield lambda: build('attention', kernel.SOURCE, *options, '-DWIDTH=16')


@needs_compiler
@pytest.mark.parametrize('damage', [lambda p: p.write_bytes(b'not a library'), lambda p: p.write_bytes(p.read_bytes()[:20_000]), Path.unlink,
                                    lambda p: p.with_suffix('.sha256').unlink()])
def test_a_damaged_cache_is_mended(whole, damage):
    path = whole()
    before = path.stat().st_mtime_ns
    assert whole() == path and path.stat().st_mtime_ns == before                                     # whole: used as it is
    damage(path)
    assert whole() == path and path.stat().st_size > 20_000 and path.stat().st_mtime_ns > before
    subprocess.run([sys.executable, '-c', f'import ctypes; ctypes.CDLL({str(path)!r}).attention'], check=True)   # not here: the next damage would hit loaded code
