"""What to move between tiers, when, and who does it: pure deciders and one runner."""
