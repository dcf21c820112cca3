"""Check what the prior promises on the seeds 0 ... n-1: whole databases, six valid targets each, the same bytes from 1 process and from 4.

    python scripts/check_prior.py --n 10000 --out nbs/results/prior_check.jsonl
"""
import argparse, hashlib, json, time
from collections import Counter
from functools import partial
import pandas as pd, torch
from tqdm import tqdm
from rdbpfn.core import atomic_path
from rdbpfn.prior import broken_promises, sample_database
from rdbpfn.stream import in_order
from rdbpfn.tasks import each_task
from rdbpfn.views import TaskConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--n', type=int, default=10_000, help='how many seeds')
parser.add_argument('--out', default='nbs/results/prior_check.jsonl', help='file to write the result to')
args = parser.parse_args()
torch.set_num_threads(1)
BALANCED = TaskConfig(noise_share=1.)               # every balanced target counts, learnable or not

def digest(db):
    "Of every value of every table"
    h = hashlib.sha256()
    for name, t in db.table_dict.items(): h.update(name.encode() + pd.util.hash_pandas_object(t).to_numpy().tobytes())
    return h.hexdigest()

def check(seed):
    "One process: everything"
    db = sample_database(seed)
    return digest(db), broken_promises(db), len(list(each_task(seed, db, 600, 30, config=BALANCED))), sum(map(len, db.table_dict.values()))

def bytes_only(seed): return digest(sample_database(seed))

begin, problems, targets, rows, digests = time.time(), [], Counter(), 0, []
for seed, (d, bad, n, r) in enumerate(tqdm(in_order(check, range(args.n), 4, 'the database of seed'), total=args.n)):
    digests.append(d); problems += [f'seed {seed}: {b}' for b in bad]; targets[n] += 1; rows += r
    if n < BALANCED.n_targets: problems.append(f'seed {seed}: {n} valid targets')
different = sum(a != b for a, b in zip(digests, tqdm(map(bytes_only, range(args.n)), total=args.n)))
record = dict(seeds=args.n, problems=len(problems), examples=problems[:5], databases_by_valid_targets={str(k): v for k, v in sorted(targets.items())}, different_bytes_with_1_process_and_4=different,
              rows=rows, all_digests=hashlib.sha256(''.join(digests).encode()).hexdigest(), seconds=round(time.time() - begin))
with atomic_path(args.out) as tmp: tmp.write_text(json.dumps(record) + '\n')
print(json.dumps(record, indent=1))
