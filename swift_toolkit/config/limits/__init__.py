"""What settings require and exclude together: conditions, the rules of algorithms, tuners and the trainer."""
