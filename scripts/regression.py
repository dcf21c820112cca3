"""Numbers from the binary network: driver-position on rel-f1 beside LightGBM on the same features.

    python scripts/regression.py --data REL_F1_FOLDER --shots 512 --draws 10 --out nbs/results/regression.jsonl

Mean absolute error of the median (for LightGBM: of its prediction under an absolute loss), share of answers inside intervals of 80 %, seconds. Regime seed, all test rows. What the file has already (of ours: of the same weights) is not run again.
"""
import argparse, json, time
from pathlib import Path
import lightgbm, numpy as np, torch
from sklearn.base import BaseEstimator, RegressorMixin
from rdbpfn.evaluate import draw_support
from rdbpfn.examples import Task
from rdbpfn.questions import labelled
from rdbpfn.records import weights_id
from rdbpfn.relational import RelationalRegressor

class Booster(RegressorMixin, BaseEstimator):
    "LightGBM as it comes, under an absolute loss; intervals from two quantile losses"
    def fit(self, X, y):
        frame = self._numbers(X)
        make = lambda **o: lightgbm.LGBMRegressor(random_state=0, n_jobs=1, verbose=-1, **o).fit(frame, y)
        self.middle_, self.ends_ = make(objective='mae'), [make(objective='quantile', alpha=a) for a in (.1, .9)]
        return self
    def predict(self, X): return self.middle_.predict(self._numbers(X))
    def predict_quantiles(self, X): return np.stack([m.predict(self._numbers(X)) for m in (self.ends_[0], self.middle_, self.ends_[1])], 1)
    def _numbers(self, X): return X.apply(lambda c: c if c.dtype.kind == 'f' else c.cat.codes.astype(float)).set_axis([f'c{i}' for i in range(X.shape[1])], axis=1)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--data', required=True, help='folder of rel-f1: schema.json, db/, tasks/')
parser.add_argument('--out', default='nbs/results/regression.jsonl')
parser.add_argument('--shots', type=int, default=512)
parser.add_argument('--draws', type=int, default=10)
parser.add_argument('--features', default='paper')
args = parser.parse_args()
torch.set_num_threads(1)
weights = dict(rdbpfn=weights_id('rdbpfn'))                                         # a record of ours names them
task = Task.from_folder(args.data, 'driver-position')
(X, y), (Xq, yq) = labelled(task, 'train'), labelled(task, 'test')
yq = yq.to_numpy(float)
done = {(r['model'], r.get('weights'), r['features'], r['n_shots'], r['draw']) for r in map(json.loads, open(args.out))} if Path(args.out).exists() else set()
for draw in range(args.draws):
    at = draw_support(task.name, len(X), args.shots, draw)
    for name, options in dict(rdbpfn={}, lightgbm=dict(classifier=Booster())).items():
        if (name, weights.get(name), args.features, args.shots, draw) in done: continue
        start, model = time.time(), RelationalRegressor.for_task(task, features=args.features, **options)
        model.fit(X.iloc[at], y.iloc[at].to_numpy(float))
        frame = model._asked(Xq)
        begin = time.time()
        low, middle, high = model.classifier_.predict_quantiles(frame).T
        record = dict(task='driver-position', model=name, draw=draw, n_shots=args.shots, features=args.features, regime='seed', split='test', n_query=len(yq), mae=float(np.abs(middle - yq).mean()),
                      covered=float(((low <= yq) & (yq <= high)).mean()), width=float((high - low).mean()), constant=float(np.abs(np.median(y.iloc[at]) - yq).mean()), seconds=round(time.time() - start, 1), predict_seconds=round(time.time() - begin, 1))
        if name in weights: record['weights'] = weights[name]
        with open(args.out, 'a') as f: f.write(json.dumps(record) + '\n')
        print({k: record[k] for k in ('model', 'draw', 'mae', 'covered', 'width', 'constant', 'seconds')}, flush=True)
