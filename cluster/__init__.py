"""Where samplers run: in this process, in local processes, or as xparl remote actors."""
