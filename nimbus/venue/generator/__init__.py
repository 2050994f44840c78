"""The generated day: a synthetic, valid ITCH 5.0 capture with news that moves its prices.

story.py  invents the news and the drift it causes        script.py  the scheduled messages of the day
flow.py   kernels: the order flow of all symbols          wire.py    kernels: messages -> packets -> pcap
state.py  the layouts they share, and the random draws    day.py     generate(): puts them together

Every number in these files is invented.  A profit made on a generated day says that the pipeline works,
and nothing about any market.
"""

from nimbus.venue.generator.day import generate

__all__ = ["generate"]
