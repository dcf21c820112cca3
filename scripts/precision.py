"""Training in bfloat16 beside training in 32 bits: the same network, the same batches, the loss of every step.

    python scripts/precision.py --seed 1 --out nbs/results/precision.jsonl

The network and the stream are those of the preset `small`, whose learning rate falls to 0 over the second half of the steps. Two seeds are on record; each may be made by a process of its own.
"""
import argparse, time
from dataclasses import replace
from pathlib import Path
import torch
from rdbpfn.records import append_record
from rdbpfn.runs import start
from rdbpfn.train import PRESETS, averaged, micro_batch, train_step, validate

def losses_of(config):
    "Loss of each step, and what the averaged weights are worth at the end"
    model, optimizer, _, _ = start(config, Path('/nonexistent'), False, torch.device('cpu'))
    begin, losses = time.process_time(), []
    for step in range(config.steps):
        losses.append(train_step(model, optimizer, config, step, [micro_batch(config, step*config.micro + i) for i in range(config.micro)])[0])
    spent, net = time.process_time() - begin, averaged(model, optimizer)
    return dict(seed=config.seed, bf16=config.bf16, losses=[round(v, 5) for v in losses], valid_loss=validate(net)['loss'], valid_relational_loss=validate(net, True)['loss'], core_seconds=round(spent, 1))

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seed', type=int, required=True)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--out', required=True, help='file of records')
    args = parser.parse_args()
    torch.set_num_threads(1)
    for bf16 in (True, False): append_record(args.out, losses_of(replace(PRESETS['small'], seed=args.seed, steps=args.steps, decay=args.steps//2, bf16=bf16)))
