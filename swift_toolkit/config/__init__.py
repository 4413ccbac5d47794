"""From a file or flags to ms-swift's arguments: settings, presets, rules, the names of every generation."""
