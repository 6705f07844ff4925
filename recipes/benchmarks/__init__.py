"""What quantization costs and what it keeps: time, memory and accuracy, each beside the bar that edgeq holds itself to.

    python -m recipes.benchmarks                       all of it
    python -m recipes.benchmarks speed --networks resnet18 --size 224
    python -m recipes.benchmarks accuracy --network nets.py:MyNet --weights my.pt --images photos
    python -m recipes.benchmarks recovery --network nets.py:MyNet --weights my.pt --images photos

Times are ratios to the float network, measured in one process in which float, edgeq and torch.ao take turns, and
the median of the rounds counts: so a busy machine slows all alike. Absolute times mean little.

Files, in the order in which to read them: `bars` what edgeq promises, `tasks` what is measured, `timing` and
`speed`, `memory`, `subjects`, `accuracy`, `recovery` and `training`, `report` what is printed. `torch_ao` is the peer.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its starts and stops; read as torch is loaded
