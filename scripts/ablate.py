"""What each part of the prior, and of what the network is told, is worth: small networks from nothing that differ in one thing, at equal core-hours.

    python scripts/ablate.py --data DATA_FOLDER --work runs/ablations --seeds 11 --out nbs/results/ablations_small.jsonl

An arm trains on tables of up to 1,000 rows, with a learning rate that falls to 0 over the second half; how many steps it may take follows from a trial of 30 steps, so that all cost the same.
It is judged on the validation splits of the development suite (128 and 512 labelled rows, plain features, single pass), on its single tables, and on synthetic tables (`scripts/judge_weights.py`).
(nbs/results/ablations.jsonl holds another experiment: short second stages begun from one stage 1.) Arms that are on record are not made again, so it can be stopped and started; several processes, one for each seed, may write to the same file.
"""
import argparse, json
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch
import torch
from torch.nn import functional as F
from judge_weights import judge, sets
from rdbpfn.core import atomic_path
from rdbpfn.evaluate import run_suite
from rdbpfn.model import load_model
from rdbpfn.records import append_record, read_records
from rdbpfn.runs import load_checkpoint, pretrain
from rdbpfn.train import PRESETS

BASE, TRIAL = PRESETS['small'], 30
S = BASE.stream
def told(**parts): return replace(BASE, model=replace(BASE.model, **parts))
def databases(stream): return replace(BASE, relational=1., stream=stream)
def prior(**parts): return databases(replace(S, prior=replace(S.prior, **parts)))
def mode(share): return prior(structure=replace(S.prior.structure, mixing=(share, share)))

ARMS = {'base': BASE, 'single tables': replace(BASE, relational=0.), 'databases': databases(S), 'no drift': replace(BASE, drift=0.),
        'evidence alone': told(ridge=False), 'z-scores alone': told(ridge=False, evidence=False), 'no laws or clusters': replace(BASE, prior=replace(BASE.prior, law_share=0., cluster_share=0.)),
        'no propensities': replace(BASE, stream=replace(S, tasks=replace(S.tasks, propensity_share=0.))),
        'learned schemas': prior(learned_share=1.), 'designed schemas': prior(learned_share=0.), 'Mode A only': mode(0.), 'Mode B only': mode(1.),
        'no messages': prior(content=replace(S.prior.content, n_rounds=(0, 0))), 'depth 1': databases(replace(S, tasks=replace(S.tasks, depth=(1, 1))))}
RECIPE = {'labels smoothed': BASE, 'no warm-up': replace(BASE, warmup=0), 'schedule-free AdamW': replace(BASE, optimizer='schedule-free'), 'half the rate': replace(BASE, lr=BASE.lr/2), 'twice the rate': replace(BASE, lr=2*BASE.lr),
          'six narrow layers': told(n_layers=6, width=48, hidden=96), 'two wide layers': told(n_layers=2, width=96, hidden=192), 'a ramp': replace(BASE, ramp=300)}

def steps_for(config, run, seconds):
    "Steps that cost so many core-seconds, by a trial that is made once"
    file = run/'steps.json'
    if not file.exists():
        pretrain(replace(config, steps=TRIAL), run/'trial', validate_every=1e9, progress_bar=False)
        cost = load_checkpoint(run/'trial'/'checkpoint.safetensors', 'cpu')[3]['core_seconds']
        with atomic_path(file) as tmp: tmp.write_text(json.dumps(round(seconds*TRIAL/cost)))
    return json.loads(file.read_text())

def train(name, seed, work, seconds):
    "The folder of an arm's run, which is made or goes on"
    run = work/f"{name.replace(' ', '-')}-{seed}"
    run.mkdir(parents=True, exist_ok=True)
    config = replace((ARMS | RECIPE)[name], seed=seed)
    n = steps_for(config, run, seconds)
    decay = 0 if config.optimizer == 'schedule-free' else n//2                    # an average takes the place of a falling rate
    loss = patch.object(F, 'cross_entropy', partial(F.cross_entropy, label_smoothing=.05)) if name == 'labels smoothed' else nullcontext()
    with loss: last = pretrain(replace(config, steps=n, decay=decay), run, resume=(run/'checkpoint.safetensors').exists(), validate_every=1e9, progress_bar=False)
    if last.get('step', n) < n: raise SystemExit(f'{run} was stopped at step {last["step"]} of {n}; the same command goes on with it.')
    return run

def real(weights, data, records):
    "Mean AUC by task and number of labelled rows: of relational tasks on validation rows"
    run_suite('dev', records, [f'arm={weights}'], data, processes=1, n_shots=(128, 512), n_draws=5, max_query=500, split='val')
    cells = {}
    for r in read_records(records):
        if r.get('auc') is not None: cells.setdefault(r['task'], {}).setdefault(r['n_shots'], []).append(r['auc'])
    return {t: {n: round(sum(v)/len(v), 5) for n, v in by.items()} for t, by in cells.items()}

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of the development suite')
    parser.add_argument('--work', type=Path, required=True, help='folder for the runs')
    parser.add_argument('--out', type=Path, required=True, help='file of records')
    parser.add_argument('--minutes', type=float, default=5., help='core-minutes of each arm')
    parser.add_argument('--seeds', default='11,12')
    parser.add_argument('--arms', default=','.join(ARMS), help='names, separated by commas; beside the default ones: ' + ', '.join(RECIPE))
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in map(int, args.seeds.split(',')):
        for name in args.arms.split(','):
            if args.out.exists() and any((r['arm'], r['seed']) == (name, seed) for r in map(json.loads, open(args.out))): continue
            run = train(name, seed, args.work, 60*args.minutes)
            model, last = load_model(run/'rdbpfn.safetensors', 'cpu'), load_checkpoint(run/'checkpoint.safetensors', 'cpu')[3]
            append_record(args.out, dict(arm=name, seed=seed, steps=last['step'], tables=last['tables'], core_minutes=round(last['core_seconds']/60, 2),
                                         real=real(run/'rdbpfn.safetensors', args.data, run/'val.jsonl'), loss={s: [round(v, 4) for v in judge(model, x, y, n)[0].tolist()] for s, x, y, n in sets()}))
            print(seed, name, flush=True)
