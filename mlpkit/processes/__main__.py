"""The fork server: `python -m mlpkit.processes SOCKET MODULE...`, started by `ForkServer` only."""

from mlpkit.processes.forkserver import main

if __name__ == "__main__":
    main()
