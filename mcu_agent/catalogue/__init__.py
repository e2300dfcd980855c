"""Board kinds as TOML files: core, memory, clock, supply and currents, each with its source."""
