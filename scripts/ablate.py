"""What each part of the prior is worth: short second stages that differ in one part, all begun from the same stage 1, at equal steps.

    python scripts/ablate.py --init runs/one --data DATA_FOLDER --work runs/ablations --out nbs/results/ablations.jsonl

An arm trains on tables of up to 600 rows, with a learning rate that falls to 0 from the first step. It is judged on the validation splits of the development suite (128 labelled rows,
plain features, single pass) and on synthetic tables (`scripts/judge_weights.py`). Arms that the file has already are passed over, so it can be stopped and started again.
"""
import argparse, json
from dataclasses import replace
from pathlib import Path
import torch
from judge_weights import judge, sets
from rdbpfn.evaluate import run_suite
from rdbpfn.model import load_model
from rdbpfn.records import read_records
from rdbpfn.stream import StreamConfig
from rdbpfn.train import PRESETS, load_checkpoint, pretrain

S = StreamConfig()
def prior(**parts): return replace(S, prior=replace(S.prior, **parts))
def mode(share): return prior(structure=replace(S.prior.structure, mixing=(share, share)))

STREAMS = {'databases': S, 'learned schemas': prior(learned_share=1.), 'designed schemas': prior(learned_share=0.), 'Mode A only': mode(0.), 'Mode B only': mode(1.),
           'no messages': prior(content=replace(S.prior.content, n_rounds=(0, 0))), 'depth 1': replace(S, tasks=replace(S.tasks, depth=(1, 1)))}
BASE = replace(PRESETS['cpu-cooldown'], rows=(64, 600), cols=(3, 24))
ARMS = {'single tables': replace(BASE, relational=0.), 'half databases': replace(BASE, relational=.5)} | {name: replace(BASE, relational=1., stream=s) for name, s in STREAMS.items()}

def real(weights, data, records):
    "Mean AUC of each task of the suite: of relational ones on validation rows"
    run_suite('dev', records, [f'arm={weights}-1'], data, processes=1, n_shots=(128,), n_draws=5, max_query=500, split='val')
    cells = {}
    for r in read_records(records):
        if r.get('auc') is not None: cells.setdefault(r['task'], []).append(r['auc'])
    return {t: round(sum(v)/len(v), 5) for t, v in cells.items()}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--init', type=Path, required=True, help='folder of the run of stage 1')
parser.add_argument('--data', required=True, help='folder of the development suite')
parser.add_argument('--work', type=Path, required=True, help='folder for the runs')
parser.add_argument('--out', type=Path, required=True, help='file of records')
parser.add_argument('--steps', type=int, default=400)
parser.add_argument('--seeds', default='11,12')
args = parser.parse_args()

torch.set_num_threads(1)
args.work.mkdir(parents=True, exist_ok=True)
done = {(r['arm'], r['seed'], r['steps']) for r in map(json.loads, open(args.out))} if args.out.exists() else set()
for seed in map(int, args.seeds.split(',')):
    for name, config in ARMS.items():
        if (name, seed, args.steps) in done: continue
        run = args.work/f"{name.replace(' ', '-')}-{seed}-{args.steps}"
        pretrain(replace(config, seed=seed, steps=args.steps, decay=args.steps), run, resume=(run/'checkpoint.safetensors').exists(), init=args.init, validate_every=1e9)
        last = load_checkpoint(run/'checkpoint.safetensors', 'cpu')[3]
        weights, model = run/'rdbpfn.safetensors', load_model(run/'rdbpfn.safetensors', 'cpu').eval()
        record = dict(arm=name, seed=seed, steps=args.steps, tables=last['tables'], core_seconds=round(last['core_seconds'], 1), real=real(weights, args.data, run/'val.jsonl'),
                      loss={s: round(judge(model, x, y, n)[0].mean().item(), 5) for s, x, y, n in sets()})
        with open(args.out, 'a') as f: f.write(json.dumps(record) + '\n')
        print(record, flush=True)
