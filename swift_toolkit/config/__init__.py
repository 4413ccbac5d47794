"""From a config file or flags to ms-swift's arguments: settings, presets, rules, names of all ms-swift generations."""
