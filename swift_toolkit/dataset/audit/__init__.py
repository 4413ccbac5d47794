"""What a run would learn of its rows, by ms-swift's own template: which tokens count for the loss, and which do not."""
