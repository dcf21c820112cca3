"""Make a folder that `rdbpfn pretrain --init` can begin with: the weights of the package, and what they have cost.

    python scripts/run_of_weights.py runs/shipped
    rdbpfn pretrain --preset cpu-relational --init runs/shipped --out runs/next --minutes 60

Checkpoints of earlier runs are not committed; this is how the training of the default weights goes on.
"""
import argparse, json
from dataclasses import replace
from pathlib import Path
from rdbpfn.core import InputError
from rdbpfn.model import load_model, save_model
from rdbpfn.runs import save_checkpoint
from rdbpfn.train import STAGE_2, make_optimizer

root = Path(__file__).parents[1]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument('out', type=Path, help='folder to make')
args = parser.parse_args()
if args.out.exists(): raise InputError(f"'{args.out}' is there already: name another folder.")
model = load_model(root/'rdbpfn'/'weights'/'rdbpfn.safetensors', 'cpu')
config = replace(STAGE_2, model=model.config)
progress = json.loads((root/'nbs'/'results'/'pretrain_config.json').read_text())[-1]['progress']
args.out.mkdir(parents=True)
save_checkpoint(args.out/'checkpoint.safetensors', model, make_optimizer(model, config), config, progress)
save_model(model, args.out/'rdbpfn.safetensors')
print(f"{args.out}: {progress['tables']:,} tables, {progress['core_seconds']/3600:.2f} core-hours")
