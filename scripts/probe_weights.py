"""Ask weights about laws written by hand, to see what a network has learnt to do: look up, count, compare, combine.

    python scripts/probe_weights.py run-7=rdbpfn/weights/rdbpfn.safetensors forest=forest --out nbs/results/probes.jsonl

Sixteen tables of 800 rows a law, 600 of them the context; one record for each model and law, with the mean AUC of the other 200.
"""
import argparse, json, math
from pathlib import Path
import numpy as np, torch
from sklearn.ensemble import RandomForestClassifier
from judge_weights import named
from rdbpfn.core import atomic_path, generator
from rdbpfn.train import auc

B, R, CONTEXT = 16, 800, 600

def laws():
    "Name, x (B, R, C) and y (B, R) of each law"
    gen = generator(2026, 11)
    u = lambda *shape: torch.rand(shape, generator=gen)
    for K in (8, 32, 64):
        group = torch.randint(0, K, (B, R), generator=gen)
        y = ((u(B, K) > .5).float().gather(1, group) > .5) ^ (u(B, R) < .05)                    # one label in twenty is wrong
        yield f'a label for each of {K} groups', group[..., None].float(), y
        yield f'a label for each of {K} groups, 4 columns of noise', torch.cat([group[..., None].float(), torch.randn(B, R, 4, generator=gen)], 2), y
    for k in (1, 2, 4, 8):
        x = u(B, R, 1)
        yield f'a wave of {k} periods', x, torch.sin(2*math.pi*(k*x[..., 0] + u(B, 1))) > 0
    x = u(B, R, 2)
    for k in (2, 3, 5): yield f'a board of {k} x {k} fields', x, (x*k).floor().sum(2) % 2 > 0
    yield 'thirty cells of a plane', x, (u(B, 30) > .5).gather(1, torch.cdist(x, u(B, 30, 2)).argmin(2))
    x = torch.randn(B, R, 6, generator=gen)
    yield 'the sign of a product of three', x[..., :3], x[..., :3].prod(2) > 0
    yield 'inside a ball of six dimensions', x, x.square().sum(2) > 5.35
    yield 'a weighted sum of six', x, (x*torch.randn(B, 1, 6, generator=gen)).sum(2) > 0

def ask(model, x, y):
    "Scores (B, R - CONTEXT) of yes"
    if model is not None:
        with torch.no_grad(): logits = torch.cat([model(a, b[:, :CONTEXT]) for a, b in zip(x.split(4), y.split(4))])
        return logits[..., 1] - logits[..., 0]
    grow = lambda a, b: RandomForestClassifier(100, random_state=0).fit(a[:CONTEXT], b[:CONTEXT]).predict_proba(a[CONTEXT:])[:, -1]
    return torch.tensor(np.stack([grow(a, b) for a, b in zip(x.numpy(), y.numpy())]))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='+', help='name=file.safetensors, or name=forest')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models, digests = named(args.models)
    records = []
    for law, x, y in laws():
        y = y.float()
        for name, model in models.items():
            area = float(auc(ask(model, x, y), y[:, CONTEXT:]).nanmean())
            records.append(dict(law=law, model=name, weights=digests[name], auc=round(area, 4)))
        print(law, [r['auc'] for r in records[-len(models):]], flush=True)
    with atomic_path(args.out) as tmp: tmp.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
