#!/usr/bin/env python3
"""Photographs to a registered model, for a scheduler: the stages of `dvc repro` in one process, without DVC.

    python scripts/run_training_job.py --workdir jobs/monday -S data.kind=folder -S data.root=DIR

Arguments are those of `sads run`; exit code 0 when the model is registered, otherwise the reason is on stderr.
"""
import sys

from sads_jax.cli.main import main

if __name__ == '__main__':
    sys.argv[1:1] = ['run']
    main()
