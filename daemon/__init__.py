"""The process: configuration, wiring, command line, admin endpoint."""
