"""Tables of the documentation, made from the files in bench/results/."""
