"""Tick-to-trade measured from outside: a tap at the venue's end of the wire, and an echo as the floor."""
