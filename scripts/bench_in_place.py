"""Ten million orders in a DuckDB file: the same questions to the database in place and to a copy in memory (notebook 13b).

    python scripts/bench_in_place.py --out nbs/results/bench.jsonl

One process for each way, one thread; seconds to open, to read 512 labelled questions and to answer 100, and the peak of memory. The answers must be equal.
"""
import argparse, datetime, json, subprocess, sys, tempfile, time
from pathlib import Path

MAKE = '''create table customers(id integer primary key, age double);
insert into customers select i, (18 + hash(i) % 60)::int from range({rows}//100) t(i);
create table orders(id integer primary key, customer integer references customers(id), amount double, channel varchar, placed timestamp);
insert into orders select i, (hash(i, 1) % ({rows}//100))::int, (hash(i, 2) % 100)::int, ['web', 'shop', 'phone'][(1 + hash(i, 3) % 3)::int], timestamp '2020-01-01' + to_hours((hash(i, 4) % 33600)::int) from range({rows}) t(i);'''

def ask(way, file):
    "Open, read, answer; prints one JSON object"
    import numpy as np, pandas as pd, torch
    from rdbpfn import Database, InPlace, RelationalClassifier
    from rdbpfn.core import peak_mb
    torch.set_num_threads(1)
    rng, clock = np.random.default_rng(0), [time.perf_counter()]
    X = pd.DataFrame(dict(id=rng.integers(0, 1000, 612), when=pd.Timestamp('2023-06-01') + pd.to_timedelta(rng.integers(0, 60, 612), 'D')))
    db = dict(place=InPlace, memory=Database)[way].open(file); clock.append(time.perf_counter())
    model = RelationalClassifier(db, 'customers', 'id', 'when', n_estimators=1).fit(X[:512], rng.integers(0, 2, 512)); clock.append(time.perf_counter())
    p = model.predict_proba(X[512:])[:, 1]; clock.append(time.perf_counter())
    steps = dict(zip(('open', 'fit', 'predict'), (round(b - a, 2) for a, b in zip(clock, clock[1:]))))
    print(json.dumps(steps | dict(seconds=round(clock[-1] - clock[0], 2), peak_rss_mb=round(peak_mb()), answers=[round(float(v), 4) for v in p[:20]])))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, help='file of records, to which one is added')
    parser.add_argument('--rows', type=int, default=10_000_000)
    parser.add_argument('--ask', nargs=2, metavar=('WAY', 'FILE'), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ask: ask(*args.ask); sys.exit()
    import duckdb
    with tempfile.TemporaryDirectory() as folder:
        with duckdb.connect(f'{folder}/shop.duckdb') as con: con.execute(MAKE.format(rows=args.rows))
        ways = {way: json.loads(subprocess.run([sys.executable, __file__, '--ask', way, f'{folder}/shop.duckdb'], check=True, capture_output=True, text=True).stdout.splitlines()[-1]) for way in ('place', 'memory')}
    if ways['place']['answers'] != ways['memory']['answers']: sys.exit('the answers differ')
    record = dict(bench='in_place', day=str(datetime.date.today()), rows=args.rows, **{w: {k: v for k, v in r.items() if k != 'answers'} for w, r in ways.items()})
    print(json.dumps(record))
    if args.out:
        with open(args.out, 'a', encoding='utf-8') as f: f.write(json.dumps(record) + '\n')
