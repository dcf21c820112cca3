"""Choose the defaults of the estimators (views, flips, columns, context policy, feature set) on validation splits, never on test.

    python scripts/choose_defaults.py --data FOLDER_OF_DATABASES --out nbs/results/ensemble.jsonl --draws 10 --queries 2000

For each task, number of shots and draw of labelled rows, every member is asked once, and ensembles are averages of their log-odds.
One record a variant; what the file has already (same weights, same number of queries) is not run again.
"""
import argparse, json, time, zlib
from pathlib import Path
import numpy as np, torch
from sklearn.metrics import log_loss, roc_auc_score
from rdbpfn.classifier import RDBPFNClassifier
from rdbpfn.ensemble import Ensemble, draw_contexts
from rdbpfn.examples import Task, task_names
from rdbpfn.questions import labelled, task_options
from rdbpfn.records import weights_id
from rdbpfn.relational import RelationalClassifier

VIEWS = ('raw', 'squashed', 'ranks')
SETS = {'raw': ['raw'], 'squashed': ['squashed'], 'ranks': ['ranks'], 'raw, raw flipped': ['raw', 'raw-'], 'raw, squashed flipped': ['raw', 'squashed-'], 'raw, ranks flipped': ['raw', 'ranks-'],
        '{raw, squashed} x flip': ['raw', 'raw-', 'squashed', 'squashed-'], '{raw, ranks} x flip': ['raw', 'raw-', 'ranks', 'ranks-'], 'all six': [v + f for v in VIEWS for f in ('', '-')]}
POLICIES = ('random', 'stratified', 'recent', 'recency', 'balanced')

def members_of(frame, codes, rows, **options):
    "Ensembles of one member each, of an estimator that reads some rows of a frame"
    rates = np.bincount(codes)/len(codes)                                              # of all labelled rows, for balanced contexts
    model = RDBPFNClassifier(device='cpu', **options).fit_contexts(frame, codes[rows], np.array([0, 1]), [np.arange(len(rows))]*options['n_estimators'], rates)
    e = model.ensemble_
    return model, [(m.view.name + '-'*m.flip, Ensemble(e.network, e.x, e.asked, [m])) for m in e.members]

def answers_of(frame, codes, rows, queries, **options):
    "{member: log-odds (m,)}, in order; frame: features of `rows`, codes: classes of all labelled rows"
    model, members = members_of(frame, codes, rows, **options)
    rows = model.encoder_.transform(queries)
    return {f'{i}:{name}': e.log_odds(rows)[:, 0] for i, (name, e) in enumerate(members)}

def variants(frames, queries, codes, contexts, groups):
    "Yield (group, variant, log-odds) for one draw; frames: {feature set: {policy: frame}}, contexts: {policy: positions}"
    single = lambda name='paper', policy='random', **o: answers_of(frames[name][policy], codes, contexts[policy], queries[name], n_estimators=1, **o)['0:raw']
    paper, asked = frames['paper']['random'], queries['paper']
    if 'members' in groups:
        found = {k.split(':')[1]: v for k, v in answers_of(paper, codes, contexts['random'], asked, n_estimators=6, views=VIEWS).items()}
        for name, members in SETS.items(): yield 'members', name, np.mean([found[m] for m in members], 0)
    if 'columns' in groups:
        yield 'columns', 'four members, columns drawn', np.mean(list(answers_of(paper, codes, contexts['random'], asked, n_estimators=4, columns='drawn').values()), 0)
        for n in (24, 60): yield 'columns', f'raw, {n} columns', single(n_columns=n)
    if 'policy' in groups:
        for policy in POLICIES: yield 'policy', policy, single(list(frames)[-1], policy=policy, context=policy)
    if 'features' in groups:
        for name in frames:
            for columns in ('novel', 'top'): yield 'features', f'{name}, {columns}', single(name, columns=columns)

def run(task, shots, draws, n_queries, features, groups, done, about, out):
    "All variants of one task"
    (X, y), (Xq, yq) = labelled(task, 'train'), labelled(task, 'val')
    codes, truth = (y == y.max()).to_numpy(int), (yq == yq.max()).to_numpy(int)
    rng = np.random.RandomState(zlib.crc32(task.name.encode()) % 2**31)
    if len(Xq) > n_queries: pick = np.sort(rng.permutation(len(Xq))[:n_queries]); Xq, truth = Xq.iloc[pick], truth[pick]
    times = X[task.time_col].to_numpy('datetime64[ns]')
    todo = [(n, d) for d in range(draws) for n in shots if (task.name, n, d) not in done]
    contexts = {}
    for n, d in todo:
        r = np.random.RandomState(1000*d + 7)
        contexts[n, d] = {p: draw_contexts(p, codes, times, min(n, len(X)), 1, r)[0] for p in POLICIES}
    if not todo: return
    pool = np.unique(np.concatenate([c for cs in contexts.values() for c in cs.values()]))
    frames, queries = {}, {}
    for name in features:
        m = RelationalClassifier(features=name, **task_options(task))
        db, rows, cutoffs = m._open(X, y)
        m._plan(db, cutoffs)
        frames[name], queries[name] = m.feature_frame(X.iloc[pool]), m.feature_frame(Xq)
    for n, d in todo:
        start, cs = time.time(), contexts[n, d]
        mine = {name: {p: f.iloc[np.searchsorted(pool, c)] for p, c in cs.items()} for name, f in frames.items()}
        if len(np.unique(codes[cs['random']])) < 2: continue
        records = []
        for group, name, odds in variants(mine, queries, codes, cs, groups):
            p = 1/(1 + np.exp(-odds))
            records.append(about | dict(task=task.name, n_shots=n, draw=d, group=group, variant=name, auc=float(roc_auc_score(truth, p)), log_loss=float(log_loss(truth, p)), n_query=len(truth)))
        with open(out, 'a') as f: f.write(''.join(json.dumps(r) + '\n' for r in records))
        print(task.name, n, d, f'{time.time() - start:.0f} s', flush=True)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, help='folder of databases with schema.json, db/ and tasks/')
    parser.add_argument('--out', default='nbs/results/ensemble.jsonl', help='file of records')
    parser.add_argument('--shots', default='128,512')
    parser.add_argument('--draws', type=int, default=10)
    parser.add_argument('--queries', type=int, default=2000, help='validation rows of a task, at most')
    parser.add_argument('--features', default='paper,recent,full', help='feature sets, the first must be paper')
    parser.add_argument('--groups', default='members,columns,policy,features', help='what to compare')
    parser.add_argument('--tasks', default='', help='names, separated by commas; none: all binary ones')
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = dict(weights=weights_id('rdbpfn'), split='val', regime='seed', n_query_limit=args.queries, groups=args.groups)
    lines = [json.loads(l) for l in Path(args.out).read_text().splitlines()] if Path(args.out).is_file() else []
    done = {(r['task'], r['n_shots'], r['draw']) for r in lines if all(r[k] == v for k, v in about.items())}
    folders = [f for f in sorted(Path(args.data).iterdir()) if (f/'schema.json').exists()]
    tasks = [Task.from_folder(f, n) for f in folders for n in task_names(f) if not args.tasks or n in args.tasks.split(',')]
    for d in range(1, args.draws + 1):                                                # draw by draw, so that a run cut short is balanced
        for task in tasks:
            if task.train[task.target_col].nunique() == 2: run(task, list(map(int, args.shots.split(','))), d, args.queries, args.features.split(','), args.groups.split(','), done, about, args.out)
        lines = [json.loads(l) for l in Path(args.out).read_text().splitlines()]
        done = {(r['task'], r['n_shots'], r['draw']) for r in lines if all(r[k] == v for k, v in about.items())}
