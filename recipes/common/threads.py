"""Import this before torch: how its CPU threads wait."""

import os

# Threads that wait by spinning, torch's default on CPUs, are several times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
