#!/usr/bin/env python3
"""Photographs to a registered model, for a scheduler: all stages in order, in one process, without DVC and its memory.

    python scripts/run_training_job.py --workdir jobs/monday -S data.kind=folder -S data.root=DIR

Exit code 0 when the model is registered, otherwise the reason is on stderr. A scheduler that wants only stale stages
done calls `sads run`. """
import argparse
import sys
from pathlib import Path

from sads_jax.core.errors import SADSError
from sads_jax.core.params import load_params
from sads_jax.core.settings import load_settings
from sads_jax.orchestrators.training import NAMES, compose_training


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--params", type=Path, default=Path("params.yaml"))
    args.add_argument("--settings", type=Path, default=Path("settings.ini"))
    args.add_argument("--workdir", type=Path, default=Path())
    args.add_argument("--until", choices=NAMES, help="the last stage")
    args.add_argument(
        "-S", dest="assignments", action="append", default=[], metavar="KEY=VALUE", help="set one parameter"
    )
    args = args.parse_args()
    params = load_params(args.params, args.assignments)
    compose_training(params, load_settings(args.settings), args.workdir).run(until=args.until)


if __name__ == "__main__":
    try:
        main()
    except SADSError as e:
        sys.exit(f"error: {e}")
