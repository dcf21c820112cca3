"""Score several weights on the same synthetic tables, table by table, so that small differences show.

    python scripts/judge_weights.py stage-1=runs/one/rdbpfn.safetensors stage-2=runs/two/rdbpfn.safetensors --out nbs/results/stages.jsonl

Single tables of three shapes from the default prior and from a clean one, wide noisy ones with few labels, as real tasks often are, and databases of two shapes,
all from streams that training never draws from.
One record for each weights and set: mean loss and AUC, the loss of every table, and the core-hours of weights that lie beside the checkpoint of their run.
Takes about a minute for each weights on one core.
"""
import argparse, json
from pathlib import Path
import torch
from torch.nn import functional as F
from rdbpfn.core import atomic_path
from rdbpfn.model import load_model
from rdbpfn.records import weights_id
from rdbpfn.stream import sample_batch as relational_batch
from rdbpfn.tabular import TabularConfig, sample_batch as tabular_batch
from rdbpfn.runs import load_checkpoint
from rdbpfn.train import VALID_SEED, auc

CLEAN = TabularConfig(noise=(.001, .05), spare=1.2, tree_share=.5, category_share=.3, missing_share=.1, irrelevant_share=.1)
SHAPES = ((96, 160, 5, 100), (64, 400, 8, 250), (64, 600, 16, 450))                        # tables, rows, columns, context rows
DATABASES = ((12, 300, 16, 150), (10, 700, 24, 450))                                       # batches of four, rows, columns, context rows

def sets():
    "Name, x, y and context rows of each set"
    for prior, config in dict(default=TabularConfig(), clean=CLEAN).items():
        for i, (B, R, C, n) in enumerate(SHAPES): yield f'{prior}, {n} x {C}', *tabular_batch(VALID_SEED + 1, i, B, R, C, config), n
    yield 'noisy, 128 x 36', *tabular_batch(VALID_SEED + 1, 9, 48, 256, 36, TabularConfig(noise=(.3, 1.5))), 128
    for k, R, C, n in DATABASES:
        some = [relational_batch(VALID_SEED + 1, 1000*R + i, 4, R, C, n) for i in range(k)]
        width = min(x.shape[2] for x, _ in some)
        x, y = (torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*((x[:, :, :width], y) for x, y in some)))
        yield f'databases, {n} x {width}', x, y, n

def judge(model, x, y, n):
    "Loss and AUC of each table"
    with torch.no_grad(): logits = torch.cat([model(a, b[:, :n], torch.bfloat16) for a, b in zip(x.split(8), y.split(8))])
    loss = F.cross_entropy(logits.flatten(0, 1), y[:, n:].flatten().long(), reduction='none').view(len(y), -1).mean(1)
    return loss, auc(logits[..., 1] - logits[..., 0], y[:, n:])

def named(pairs):
    "What 'name=file' names -> network, None for 'name=forest'; and the digest of each"
    files = dict(p.split('=', 1) for p in pairs)
    return ({name: None if file == 'forest' else load_model(file, 'cpu') for name, file in files.items()},
            {name: None if file == 'forest' else weights_id(file) for name, file in files.items()})

def core_hours(file):
    "What the weights of a run have cost, None for others"
    checkpoint = file.with_name('checkpoint.safetensors')
    return round(load_checkpoint(checkpoint, 'cpu')[3]['core_seconds']/3600, 2) if checkpoint.exists() else None

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('weights', nargs='+', help='name=file.safetensors; differences are to the first')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    files = {name: Path(file) for name, file in (w.split('=', 1) for w in args.weights)}
    about = {name: dict(weights=name, hours=core_hours(file), digest=weights_id(str(file))) for name, file in files.items()}
    models = {name: load_model(file, 'cpu').eval() for name, file in files.items()}
    records, first = [], {}
    for name, x, y, n in sets():
        for weights, model in models.items():
            loss, area = judge(model, x, y, n)
            gap = loss - first.setdefault(name, loss)
            records.append(about[weights] | dict(set=name, tables=len(loss), loss=round(loss.mean().item(), 5), auc=round(area.nanmean().item(), 5), gap=round(gap.mean().item(), 5),
                                                 gap_error=round((gap.std()/len(gap)**.5).item(), 5), losses=[round(v, 4) for v in loss.tolist()]))
            print({k: v for k, v in records[-1].items() if k != 'losses'}, flush=True)
    with atomic_path(args.out) as tmp: tmp.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
