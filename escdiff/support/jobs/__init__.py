"""One function over many jobs: in this process, on all its cores, or on a cluster."""
