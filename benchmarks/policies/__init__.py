"""The comparison that decides the advice: seven policies of decay, swept, chosen, tested once."""
