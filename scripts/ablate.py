"""What each part of the prior is worth: short second stages that differ in one part, all begun from the same stage 1, at equal core-hours.

    python scripts/ablate.py --init runs/one --data DATA_FOLDER --work runs/ablations --out nbs/results/ablations.jsonl

An arm trains on tables of up to 600 rows, with a learning rate that falls to 0 from the first step; how many steps it may take follows from a trial of 30 steps, so that all cost the same.
It is judged on the validation splits of the development suite (128 and 512 labelled rows, plain features, single pass) and on synthetic tables (`scripts/judge_weights.py`).
Runs and seeds that are there are not made again, so it can be stopped and started; the records are written at the end of each seed.
"""
import argparse, json
from dataclasses import replace
from pathlib import Path
import torch
from judge_weights import judge, sets
from rdbpfn.core import atomic_path
from rdbpfn.evaluate import run_suite
from rdbpfn.model import load_model
from rdbpfn.records import read_records
from rdbpfn.stream import StreamConfig
from rdbpfn.train import PRESETS, load_checkpoint, pretrain

S, TRIAL = StreamConfig(), 30
def prior(**parts): return replace(S, prior=replace(S.prior, **parts))
def mode(share): return prior(structure=replace(S.prior.structure, mixing=(share, share)))

STREAMS = {'databases': S, 'learned schemas': prior(learned_share=1.), 'designed schemas': prior(learned_share=0.), 'Mode A only': mode(0.), 'Mode B only': mode(1.),
           'no messages': prior(content=replace(S.prior.content, n_rounds=(0, 0))), 'depth 1': replace(S, tasks=replace(S.tasks, depth=(1, 1)))}
BASE = replace(PRESETS['cpu-cooldown'], rows=(64, 600), cols=(3, 24))
ARMS = {'single tables': replace(BASE, relational=0.), 'half databases': replace(BASE, relational=.5)} | {name: replace(BASE, relational=1., stream=s) for name, s in STREAMS.items()}

def folder(work, name, seed): return work/f"{name.replace(' ', '-')}-{seed}"

def steps_for(config, run, init, seconds):
    "Steps that cost so many core-seconds, by a trial that is made once"
    file = run/'steps.json'
    if not file.exists():
        before = load_checkpoint(init/'checkpoint.safetensors', 'cpu')[3]['core_seconds']
        pretrain(replace(config, steps=TRIAL, decay=TRIAL), run/'trial', init=init, validate_every=1e9, progress_bar=False)
        after = load_checkpoint(run/'trial'/'checkpoint.safetensors', 'cpu')[3]['core_seconds']
        with atomic_path(file) as tmp: tmp.write_text(json.dumps(round(seconds*TRIAL/(after - before))))
    return json.loads(file.read_text())

def train(name, seed, work, init, seconds):
    run = folder(work, name, seed)
    run.mkdir(parents=True, exist_ok=True)
    config = replace(ARMS[name], seed=seed)
    n = steps_for(config, run, init, seconds)
    pretrain(replace(config, steps=n, decay=n), run, resume=(run/'checkpoint.safetensors').exists(), init=init, validate_every=1e9)

def real(weights, data, records):
    "Mean AUC by task and number of labelled rows for each of the named weights: of relational tasks on validation rows"
    run_suite('dev', records, [f'{name}={file}' for name, file in weights.items()], data, processes=1, n_shots=(128, 512), n_draws=5, max_query=500, split='val')
    cells = {}
    for r in read_records(records):
        if r.get('auc') is not None: cells.setdefault(r['model'], {}).setdefault(r['task'], {}).setdefault(r['n_shots'], []).append(r['auc'])
    return {m: {t: {n: round(sum(v)/len(v), 5) for n, v in by.items()} for t, by in tasks.items()} for m, tasks in cells.items()}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--init', type=Path, required=True, help='folder of the run of stage 1')
parser.add_argument('--data', required=True, help='folder of the development suite')
parser.add_argument('--work', type=Path, required=True, help='folder for the runs')
parser.add_argument('--out', type=Path, required=True, help='file of records')
parser.add_argument('--minutes', type=float, default=5., help='core-minutes of each arm')
parser.add_argument('--seeds', default='11,12')
args = parser.parse_args()

torch.set_num_threads(1)
records = [json.loads(line) for line in open(args.out)] if args.out.exists() else []
for seed in map(int, args.seeds.split(',')):
    if any(r['seed'] == seed for r in records): continue
    for name in ARMS: train(name, seed, args.work, args.init, 60*args.minutes)
    weights = {'stage 1': args.init/'rdbpfn.safetensors'} | {name: folder(args.work, name, seed)/'rdbpfn.safetensors' for name in ARMS}
    areas = real(weights, args.data, args.work/f'val-{seed}.jsonl')
    before = load_checkpoint(args.init/'checkpoint.safetensors', 'cpu')[3]
    for name, file in weights.items():
        model, last = load_model(file, 'cpu').eval(), load_checkpoint(file.with_name('checkpoint.safetensors'), 'cpu')[3]
        records.append(dict(arm=name, seed=seed, steps=last['step'] if name in ARMS else 0, tables=last['tables'] - before['tables'],
                            core_minutes=round((last['core_seconds'] - before['core_seconds'])/60, 2), real=areas[name],
                            loss={s: [round(v, 4) for v in judge(model, x, y, n)[0].tolist()] for s, x, y, n in sets()}))
        print(records[-1]['arm'], records[-1]['core_minutes'], flush=True)
    with atomic_path(args.out) as tmp: tmp.write_text(''.join(json.dumps(r) + '\n' for r in records), encoding='utf-8')
