"""How fast it is, as ratios within one run. `python -m benches` runs all of them."""
