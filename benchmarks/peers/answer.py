"""Answer on standard output what is asked on standard input, one line each, so that rivals can be timed in turn.

A question is the name of a job and how often to do it; the answer is a JSON list of seconds. `quit` ends.
"""
import json
import sys
import time


def answer(jobs, **facts):
    "Tell `facts`, then do what is asked; `jobs` maps a name to a function without arguments"
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip() == "quit": return
        name, n = line.rsplit(maxsplit=1)
        took = []
        for _ in range(int(n)):
            start = time.perf_counter()
            jobs[name]()
            took.append(time.perf_counter() - start)
        print(json.dumps(took), flush=True)
