"""From frames to ITCH messages: captures, packets, MoldUDP64, the message table."""
