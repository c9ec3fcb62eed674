"""The process of one training job.

Its command is `python -m mlpkit.training CHANNEL`, started by `process.py` only. With `--job URL` it is what the
command of `MLPKIT_LAUNCH` has started (`launch.py`).
"""

import sys

if sys.argv[1:2] == ["--job"]:
    from mlpkit.training.launch import main as run_launched

    run_launched(sys.argv[2])
else:
    from mlpkit.training.process import main

    main()
