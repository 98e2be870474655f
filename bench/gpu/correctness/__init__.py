"""What must hold on a GPU before any figure is taken, one module per operation.

`pytest bench/gpu/correctness/patch_nt_xent.py` runs on the GPU; with PSCL_BENCH_DEVICE=cpu and TRITON_INTERPRET=1 the
small cases run in Triton's interpreter.
"""
