"""The console command: one file per command group, no logic."""
