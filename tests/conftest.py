"""What every test runs under: one thread (small tensors are slower with more), no window, no config file written by dgl."""
import os

for name, value in dict(OMP_NUM_THREADS='1', MPLBACKEND='Agg', DGLBACKEND='pytorch').items(): os.environ.setdefault(name, value)
