"""Long fault runs, by `scripts/faults AREA`: each line a count of trials and of wrong outcomes; the goal is 0 wrong."""
