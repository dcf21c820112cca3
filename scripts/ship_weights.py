"""Make a run's weights the default ones, with the model card and the records that belong to them.

    python scripts/ship_weights.py [--runs FOLDER[,FOLDER...]] [--after N]

Copies weights and configuration of the last run (of the others an about.json with `config` and `progress`, perhaps a `note`, serves in place of a checkpoint), and adds the logs, configurations and costs of these runs, in their order, to those of the runs on record (without any the default weights
stay as they are). The first of them began with the weights of run N on record; 0: it began from nothing. Then writes the model card from them and from the records nbs/results/stages.jsonl (judge_weights.py), dev.jsonl and relf1.jsonl (rdbpfn evaluate).
"""
import argparse, json, shutil
from pathlib import Path
import pandas as pd
from rdbpfn.core import atomic_path, to_dict
from rdbpfn.records import as_table, means_table, model_index, read_records, select, summary, weights_id
from rdbpfn.figures import to_markdown
from rdbpfn.model import load_model
from rdbpfn.runs import load_checkpoint

root = Path(__file__).parents[1]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('--runs', help='folders that rdbpfn pretrain wrote, each begun from the one before it; separated by commas')
parser.add_argument('--after', type=int, help='number of the run on record that the first of them began with, 0 for none; without it, the last')
args = parser.parse_args()

weights, results = root/'rdbpfn'/'weights', root/'nbs'/'results'
if args.runs:
    runs = [Path(r) for r in args.runs.split(',')]
    for name in ('rdbpfn.safetensors', 'rdbpfn.json'):
        with atomic_path(weights/name) as tmp: shutil.copyfile(runs[-1]/name, tmp)
    before = json.loads((results/'pretrain_config.json').read_text())
    log = [json.loads(line) for line in open(results/'pretrain.jsonl')]
    log += [dict(stage=len(before) + i + 1) | json.loads(line) for i, r in enumerate(runs) for line in open(r/'metrics.jsonl')]
    def about(r):
        "What is on record of a run"
        if (r/'about.json').exists(): found = json.loads((r/'about.json').read_text())
        else:
            _, _, config, progress = load_checkpoint(r/'checkpoint.safetensors', 'cpu')
            found = dict(config=to_dict(config), progress=progress)
        return found | dict(digest=weights_id(str(r/'rdbpfn.safetensors')) if (r/'rdbpfn.safetensors').exists() else None)
    with atomic_path(results/'pretrain.jsonl') as tmp: tmp.write_text(''.join(json.dumps(r) + '\n' for r in log), encoding='utf-8')
    with atomic_path(results/'pretrain_config.json') as tmp:
        tmp.write_text(json.dumps(before + [about(r) | dict(after=len(before) + i if i or args.after is None else args.after) for i, r in enumerate(runs)], indent=1) + '\n', encoding='utf-8')

def behind(runs):
    "Numbers of the runs behind the last one, from the one that began from nothing"
    found = [len(runs)]
    while (before := runs[found[0] - 1].get('after', found[0] - 1)): found.insert(0, before)
    return found

def last_rate(run):
    "Learning rate at which a run ended, or was left before its last step"
    c = run['config']
    return c['lr']*min(1, (c['steps'] - run['progress']['step'])/c['decay']) if c['decay'] else c['lr']

def stage(n, run):
    c, r, end = run['config'], run['progress'], last_rate(run)
    optimiser = f"{'Muon' if c['optimizer'] == 'muon' else 'schedule-free AdamW'}, {c['lr']:g}{f', falling to {end:.2g}' if c['decay'] else ''}"
    return {'run': n, 'steps': f"{r['step']:,}", 'rows, columns': '{}-{}, {}-{}'.format(*c['rows'], *c['cols']), 'noise of single tables': '{:g}-{:g}'.format(*c['prior']['noise']), 'laws, clusters': f"{c['prior'].get('law_share', 0):.0%}, {c['prior'].get('cluster_share', 0):.0%}",
            'told': ', '.join(['z-scores', *(what for what in ('evidence', 'ridge') if c['model'].get(what))]) + (f" ({run['note']})" if 'note' in run else ''),
            'databases': f"{c['relational']:.0%}", 'propensities': f"{c['stream']['tasks'].get('propensity_share', 0):.0%}", 'queries elsewhere': f"{c.get('drift', 0):.0%}", 'optimiser': optimiser, 'tables so far': f"{r['tables']:,}", 'core-hours so far': f"{r['core_seconds']/3600:.2f}"}

runs = json.loads((results/'pretrain_config.json').read_text())
numbers, end = behind(runs), runs[-1]['progress']
stages = pd.DataFrame([stage(n, runs[n - 1]) for n in numbers])
suite = means_table(read_records(results/'dev.jsonl'), ['rdbpfn', 'released', 'lightgbm', 'random_forest', 'xgboost'])
f1 = as_table(select(read_records(results/'relf1.jsonl'), features='dfs-2', n_shots=512)).reset_index(['task', 'regime']).reset_index(drop=True)
judged = pd.DataFrame(map(json.loads, open(results/'stages.jsonl')))
unjudged = [str(n) for n in numbers if f'run {n}' not in set(judged.weights)]
held = [str(n) for n in numbers if str(n) not in unjudged and last_rate(runs[n - 1])]
short = (s := summary(select(read_records(results/'dev.jsonl'), model='rdbpfn')))[s.void > 0]
void = ''.join(f"; of `{t}` {' and '.join(f'{r.n} with {r.n_shots} rows' for r in some.itertuples())}, since the labels of the others were of one class" for t, some in short.groupby('task'))
judged = judged.pivot(index='set', columns='weights', values='loss').loc[list(dict.fromkeys(judged.set)), list(dict.fromkeys(judged.weights))].map('{:.4f}'.format).reset_index()
net = load_model(weights/'rdbpfn.safetensors', 'cpu')
told = '; cells come with their weight of evidence, notebook 14c'*net.config.evidence + '; rows with what ridge regressions on the others say, 14e'*net.config.ridge
mixed = ', in batches that take turns from the first step on; what the paper does in two stages is one stage here' if runs[numbers[0] - 1]['config']['relational'] else ''
others = f' (Runs before {numbers[0]} led to earlier weights, from which nothing was taken.)' if numbers[0] > 1 else ''
card = f'''---
license: apache-2.0
library_name: rdbpfn
pipeline_tag: tabular-classification
tags: [tabular, relational-databases, in-context-learning, prior-data-fitted-network, synthetic-data]
{model_index(read_records(results/'dev.jsonl'), 'rdbpfn')}---
# rdbpfn weights v5

A prior-data fitted network for binary classification of tables and of linearised relational databases: {sum(p.numel() for p in net.parameters()):,} parameters
({net.config.n_layers} layers of width {net.config.width}, {net.config.n_heads} heads{told}), float32, safetensors. Loaded by `RDBPFNClassifier()` and `RelationalClassifier(...)`; no download.

- **Data.** No real row: {end['tables']:,} synthetic tables, each used once, from the prior of notebook 10 (single tables) and, where the table below says so,
  from linearised synthetic databases (notebooks 04 to 14){mixed}. Half of their schemas are drawn from a model of public foreign-key graphs, see the last section.
- **Recipe.** Random initialisation, then the runs below, each from the averaged weights of the one before.{others} Nothing was initialised, tuned or distilled from other weights.
  The function `pretrain` (notebook 17c) with the configurations of `nbs/results/pretrain_config.json`; the logs are `nbs/results/pretrain.jsonl`.
- **Cost.** {end['core_seconds']/3600:.2f} core-hours on a machine with two cores and no GPU. The steps and batches of the paper's released code make 1.42 million draws of a table (72,000 x 8 and 105,600 x 8, the latter from some 107,000
  different tables); the paper itself says 2 million. Most are larger than ours.
- **Limits.** Contexts up to 1,024 rows and 36 columns; of more, some are chosen, without a warning (`used_` says how many). Two classes at a time, which one pass does not treat quite alike: 2 to 3 % of its answers on the relational tasks would change if they were exchanged. Where log-odds are a plain sum of the columns,
  logistic regression is ahead (with ten columns by .038 in AUC with 64 rows, by .006 with 1,024). One chain of runs, each with a seed of its own; none was made again with another.
  Real data were looked at to report, and to choose: validation splits of the eight relational tasks, the results of the eight single tables, and 55 other real tables (19 of KEEL, 36 of R). No weight was fitted to them. The ranges of
  the prior over databases were widened after its statistics were compared with those of four of these databases (notebook 22).

{to_markdown(stages)}
## What the runs added

Notebook 30 draws these losses over core-hours. Loss on synthetic tables that no run drew from (`scripts/judge_weights.py`): context rows x columns, from the default prior, from the clean one (little noise), from a noisy one and from databases.
{f"Not judged: {', '.join(unjudged)}. " if unjudged else ''}{f"Ended before the rate had fallen to 0, which hides a part of what was learned: {', '.join(held)}; the other runs of the table ended at 0. " if held else ''}The released weights were trained on the paper's own prior, ours on this one.

{to_markdown(judged)}
## Results

ROC-AUC on the development suite (databases: regime `seed`, each question sees everything strictly before its own time), means of eight tasks, ten draws of the labelled rows{void};
plain DFS features of depth 2, the same for all models. `rdbpfn` are these weights, `released` the paper's released ones, both in a single pass.
The networks read 36 columns, chosen for what each adds about the context's labels to those chosen before. The suite was used to build this project: validation splits to choose, test splits to report.

{to_markdown(suite)}
RelBench's Formula 1, 512 labelled rows, all test rows, mean ± standard deviation over ten draws. In `frozen` nothing after the start of the test period is seen.

{to_markdown(f1)}
Records: `nbs/results/dev.jsonl`, `nbs/results/relf1.jsonl`.

## layerdag.safetensors: the schema prior

A layer-wise discrete diffusion over schema graphs (notebook 05, float32, half a megabyte), fitted to the foreign-key graphs of 173 public schemas of Spider and BIRD
(CC BY-SA 4.0 to the best of our knowledge); only graphs, column counts and roles of tables were read, no data. Its judgement on held-out schemas stands in notebook 05,
from `nbs/results/layerdag.jsonl`.
'''
with atomic_path(weights/'README.md') as tmp: tmp.write_text(card, encoding='utf-8')
print(card)
