"""Many processes, many engines, one cache, and somebody who kills at random.

    python -m tests.storm                                       64 processes, 20 engines, two minutes
    python -m tests.storm --processes 8 --engines 4 --seconds 5 what the tests run
    python -m tests.storm --seed 7                              the same choices again
    python -m tests.storm --break leases                        break something, and see that it is noticed

Each process asks for engines, compares every file of what it gets with what it must be, byte for byte, for as long as
it holds the lease, and loads some of them. Callers and workers are killed with SIGKILL, callers are replaced. The
quota is wide and narrow in turn, and while it is narrow there is room for half of the engines.

Who counts: each worker writes a line when it begins (`workers`), and the kernel tells of every folder that comes to or
goes from among the published engines (`folder_watch`), so that no count is lost with a process that was killed.
Needs Linux.
"""
