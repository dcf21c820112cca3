"""The network against its written-out form, its symmetries over random shapes, the released weights, and damaged files."""
import json
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from rdbpfn.core import InputError, generator
from rdbpfn.model import ModelConfig, RDBPFN, attend, load_model, save_model
from test_evidence import counted
from test_ridge import solved

REFERENCE = Path(__file__).parents[2]/'shared'/'reference'
SHAPES = [(1, 9, 1, 2), (2, 40, 3, 30), (3, 64, 17, 5), (1, 200, 33, 150)]          # tables, rows, columns, context rows


@pytest.fixture(scope='module', params=[{}, dict(evidence=True), dict(evidence=True, ridge=True)], ids=['plain', 'evidence', 'ridge'])
def net(request):
    torch.manual_seed(0)
    return RDBPFN(ModelConfig(n_layers=3, **request.param)).eval()


def data(B, R, C, n):
    g = generator(R, C)
    x = torch.randn(B, R, C, generator=g)*torch.tensor(10.).pow(torch.randn(C, generator=g))
    x[torch.rand(x.shape, generator=g) < .1] = torch.nan
    return x, (torch.rand(B, n, generator=g) < .4).float()


def written_out(net, x, y):
    "Attention over all pairs with a mask instead of a slice: another way to say that rows see context rows only"
    n, (B, R, C) = y.shape[1], x.shape
    seen = ~x[:, :n].isnan()
    mean = x[:, :n].nan_to_num().sum(1, keepdim=True)/seen.sum(1, keepdim=True).clamp(min=1)
    std = (((x[:, :n] - mean).nan_to_num()**2).sum(1, keepdim=True)/seen.sum(1, keepdim=True).clamp(min=1)).sqrt()
    z = ((x - mean)/(std + 1e-8)).nan_to_num().clamp(-100, 100)
    labels = torch.cat([y, y.mean(1, keepdim=True).expand(B, R - n)], 1)[..., None]
    if net.config.ridge: labels = torch.cat([labels, solved(x, y)], -1)
    told = torch.cat([z[..., None], counted(x, y)], -1) if net.config.evidence else z[..., None]
    t = torch.cat([(told[..., None, :]*net.cell.weight).sum(-1) + net.cell.bias, (labels @ net.target.weight.T + net.target.bias)[:, :, None]], 2)
    blind = torch.zeros(R, R).masked_fill(torch.arange(R)[None, :] >= n, -torch.inf)
    def attention(layer, t, mask):                                                  # t (..., S, E)
        q, k, v = (f(t).unflatten(-1, (layer.n_heads, -1)).movedim(-2, -3) for f in (layer.q, layer.k, layer.v))
        w = (q @ k.mT/q.shape[-1]**.5 + mask).softmax(-1)
        return layer.out((w @ v).movedim(-3, -2).flatten(-2))
    for b in net.blocks:
        t = b.norm1(t + attention(b.columns, t, torch.zeros(C + 1, C + 1)))
        t = b.norm2(t + attention(b.rows, t.transpose(1, 2), blind).transpose(1, 2))
        t = b.norm3(t + b.mlp(t))
    return net.head(t[:, n:, -1])


@pytest.mark.parametrize('shape', SHAPES)
def test_equals_the_written_out_network(net, shape):
    x, y = data(*shape)
    with torch.no_grad(): assert (net(x, y) - written_out(net, x, y)).abs().max() < 1e-5


@pytest.mark.parametrize('shape', SHAPES)
def test_cached_context_gives_the_same_answers(net, shape):
    x, y = data(*shape); n = shape[3]
    with torch.no_grad():
        context, whole = net.read(x[:, :n], y), net(x, y)
        assert (net.answer(x[:, n:], context) - whole).abs().max() < 1e-5
        parts = [net.answer(q, context) for q in x[:, n:].split(2, 1)]
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5


@pytest.mark.parametrize('shape', SHAPES)
def test_symmetries(net, shape):
    x, y = data(*shape); B, R, C, n = shape; g = generator(1)
    with torch.no_grad():
        base = net(x, y)
        cols, ctx, qs = torch.randperm(C, generator=g), torch.randperm(n, generator=g), n + torch.randperm(R - n, generator=g)
        assert (net(x[:, :, cols], y) - base).abs().max() < 1e-5
        assert (net(torch.cat([x[:, ctx], x[:, n:]], 1), y[:, ctx]) - base).abs().max() < 1e-5
        assert (net(torch.cat([x[:, :n], x[:, qs]], 1), y) - base[:, qs - n]).abs().max() < 1e-5
        assert (net(x[:, :n + 1], y)[:, 0] - base[:, 0]).abs().max() < 1e-5         # the other queries do not matter
        other = x.clone(); other[:, n:] = other[:, n:].flip(1)*7
        assert (net(other, y) - base).abs().max() > 1e-4                            # but the query itself does


def test_labels_and_units_matter_as_they_should(net):
    x, y = data(2, 60, 4, 40)
    with torch.no_grad():
        assert (net(x, 1 - y) - net(x, y)).abs().max() > 1e-4
        assert (net(x*1e3 + 5, y) - net(x, y)).abs().max() < 1e-3


def test_bfloat16_stays_close_and_trains_the_same_way(net):
    x, y = data(4, 80, 6, 50); target = torch.arange(120) % 2
    def gradient(dtype):
        net.zero_grad()
        F.cross_entropy(net(x, y, dtype).flatten(0, 1), target).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])
    assert F.cosine_similarity(gradient(torch.bfloat16), gradient(torch.float32), 0) > .98


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attend_is_softmax_attention(dtype):
    q, k, v = (torch.randn(2, 3, s, 8, generator=generator(s)).to(dtype) for s in (5, 7, 7))
    want = torch.softmax(q.double() @ k.double().mT/8**.5, -1) @ v.double()
    assert (attend(q, k, v).double() - want).abs().max() < (1e-5 if dtype == torch.float32 else .05)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason='the released weights are not part of the repository')
@pytest.mark.parametrize('case', range(3))
def test_parity_with_the_released_weights(case):
    v = load_file(REFERENCE/'parity_vectors.safetensors')
    with torch.no_grad(): logits = load_model(REFERENCE/'rdbpfn_released.safetensors', 'cpu')(v[f'case{case}.x'][None], v[f'case{case}.y_context'][None])[0]
    assert (logits - v[f'case{case}.logits']).abs().max() < 1e-4


def test_a_released_checkpoint_in_a_torch_file_loads(net, tmp_path):
    state = net.state_dict()
    theirs = {}
    for name, t in state.items():
        if name.split('.')[-2] in 'qkv': continue
        for our, their in (('cell', 'feature_encoder.linear_layer'), ('target', 'target_encoder.linear_layer'), ('head.0', 'decoder.linear1'), ('head.2', 'decoder.linear2'),
                           ('mlp.0', 'linear1'), ('mlp.2', 'linear2'), ('columns.out', 'self_attention_between_features.out_proj'),
                           ('rows.out', 'self_attention_between_datapoints.out_proj')): name = name.replace(our, their)
        theirs[name.replace('blocks.', 'transformer_blocks.')] = t
    for i in range(3):
        for our, their in (('columns', 'features'), ('rows', 'datapoints')):
            for kind in ('weight', 'bias'):
                theirs[f'transformer_blocks.{i}.self_attention_between_{their}.in_proj_{kind}'] = torch.cat([state[f'blocks.{i}.{our}.{p}.{kind}'] for p in 'qkv'])
    torch.save({'model_state_dict': theirs}, tmp_path/'released.pt')
    again = load_model(tmp_path/'released.pt', 'cpu').state_dict()
    assert all(torch.equal(again[k], v) for k, v in state.items())


def test_damaged_or_foreign_weights_are_refused(net, tmp_path):
    good = save_model(net, tmp_path/'net.safetensors')
    def refuse(edit, words):
        path = tmp_path/'bad.safetensors'; state = dict(net.state_dict()); edit(state); save_file(state, path)
        (tmp_path/'bad.json').write_text(good.with_suffix('.json').read_text())
        with pytest.raises(InputError, match=words): load_model(path, 'cpu')
    refuse(lambda s: s.pop('blocks.1.mlp.0.bias'), "'blocks.1.mlp.0.bias' is missing")
    refuse(lambda s: s.update({'extra.weight': torch.zeros(1)}), "it also holds 'extra.weight'")
    refuse(lambda s: s.update({'head.2.bias': torch.zeros(3)}), r'is \(3,\), not \(2,\)')
    refuse(lambda s: s.pop('cell.weight'), 'holds no RDB-PFN weights')
    for text, error in (('{"n_layers": ', 'JSONDecodeError'), ('[]', 'AttributeError'), ('null', 'TypeError')):
        (tmp_path/'odd.safetensors').write_bytes(good.read_bytes()); (tmp_path/'odd.json').write_text(text)
        with pytest.raises(InputError, match=f'not a readable configuration .{error}'): load_model(tmp_path/'odd.safetensors', 'cpu')
    for lost in ('target.weight', 'head.2.weight', 'blocks.0.mlp.0.weight'):
        save_file({k: v for k, v in net.state_dict().items() if k != lost}, tmp_path/'bare.safetensors')          # and no configuration beside it
        with pytest.raises(InputError, match=f"holds no RDB-PFN weights: tensor '{lost}' is missing"): load_model(tmp_path/'bare.safetensors', 'cpu')
    good.write_bytes(good.read_bytes()[:5000])
    with pytest.raises(InputError, match='cut short'): load_model(good, 'cpu')
    class Evil:
        def __reduce__(self): return (Path.touch, (tmp_path/'pwned',))
    torch.save({'model_state_dict': Evil()}, tmp_path/'evil.pt')
    with pytest.raises(InputError, match='not a readable weights file'): load_model(tmp_path/'evil.pt', 'cpu')
    assert not (tmp_path/'pwned').exists()


def test_config_round_trip_and_refusals(tmp_path):
    net = RDBPFN(ModelConfig(n_layers=1, width=32, n_heads=2, hidden=16, n_outputs=3))
    assert load_model(save_model(net, tmp_path/'w.safetensors'), 'cpu').config == net.config
    (tmp_path/'w.json').unlink()
    assert load_model(tmp_path/'w.safetensors', 'cpu').config.width == 32           # shapes tell, when the config is lost
    with pytest.raises(InputError, match='multiple of n_heads'): ModelConfig(width=97)
    with pytest.raises(InputError, match='n_layers must lie in'): ModelConfig(n_layers=0)
