"""FIX 4.4 messages as templates and a parser."""
