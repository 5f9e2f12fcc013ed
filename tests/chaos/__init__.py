"""Real sweeps of tiny cells under faults at random moments: nothing is lost, nothing stays behind.

    python -m tests.chaos [--kills 200] [--seeds 1,2,3] [--faults NAMES] [--report FILE.json]

`storm` drives a sweep until its matrix is complete, `faults`, `signals`, `outside` and `damage` are
what it is subjected to, `ledger` and `invariants` say what must hold after each of them.
"""
