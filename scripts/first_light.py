"""First light: shipped weights, released weights and a random forest side by side on rel-f1 (A.3, 512 shots, 10 draws, plain DFS features).

    python scripts/first_light.py --data REL_F1_FOLDER --released RELEASED.safetensors --out nbs/results/first_light.jsonl

Runs what the file does not have yet. Records of our own weights are kept by the content of the weights: new weights replace the old records.
"""
import argparse
import torch
from rdbpfn.evaluate import FewShot, evaluate
from rdbpfn.records import as_table, current, read_records
from rdbpfn.examples import Task

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--data', required=True, help='folder of rel-f1: schema.json, db/, tasks/')
parser.add_argument('--released', help="the paper's released weights; left out: their records stay as they are")
parser.add_argument('--out', default='nbs/results/first_light.jsonl', help='file of records')
parser.add_argument('--tasks', default='driver-top3,driver-dnf')
parser.add_argument('--regimes', default='seed')
parser.add_argument('--shots', default='512')
parser.add_argument('--models', default='random_forest,released,rdbpfn,rdbpfn-1', help='names of the records to run')
args = parser.parse_args()

torch.set_num_threads(1)
models = {m: m for m in args.models.split(',') if m != 'released'}
if args.released and 'released' in args.models.split(','): models['released'] = f'{args.released}-1'
try: current(args.out, models)
except FileNotFoundError: pass
for name in args.tasks.split(','):
    task = Task.from_folder(args.data, name)
    for regime in args.regimes.split(','):
        evaluate(FewShot(task, regime, tuple(map(int, args.shots.split(',')))), models, args.out)
print(as_table(read_records(args.out)).T.to_string())
