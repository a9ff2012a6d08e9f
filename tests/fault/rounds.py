"""Tests of random faults run in rounds: what a busy machine can cause has to be wrong in both."""

import sys

MAX_ROUNDS = 2


def check_in_rounds(run_round, seed):
    """run_round(seed) raises what must never be: damage, a leak, a worker that stays away. What else was wrong it
    returns as a list; that may be a machine that is busy with something else, so it has to be wrong twice."""
    for round_seed in range(seed, seed + MAX_ROUNDS):
        problems = run_round(round_seed)
        if not problems:
            return
        print(f"FAILED with --seed {round_seed}", *problems, sep="\n", file=sys.stderr, flush=True)
    raise AssertionError(f"{len(problems)} problems in the last of {MAX_ROUNDS} rounds; replay with --seed {seed}")
