"""What mlpkit knows of the platform around it: the machine it runs on, and its tables."""
